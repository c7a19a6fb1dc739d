#!/usr/bin/env bash
# Everything that needs a GPU, in one run of a few minutes: checks, timings, and PyTorch doing the same work beside it.
#   benches/gpu/run.sh DELLA OUTPUT [CASES]
# DELLA is a release binary (built anywhere with an older glibc), OUTPUT a new directory, CASES tests/fixtures or a copy.
set -uo pipefail
della=$(realpath "$1")
mkdir "$2" && output=$(realpath "$2") || exit 1
here=$(realpath "$(dirname "$0")")
cases=$(realpath "${3:-$here/../../tests/fixtures}")
failed=0

check() { # name, command: its output goes to a file, its status to the summary
  local name=$1
  shift
  local start=$SECONDS
  local state=ok
  "$@" >"$output/$name.txt" 2>&1 || state=FAILED
  printf '%-28s %s in %d s\n' "$name" "$state" $((SECONDS - start)) | tee -a "$output/summary.txt"
  [ $state = ok ] || { failed=1; return 1; }
}

aside() { # as check, in the background: what is not timed
  check "$@" &
  checks+=($!)
}

check doctor "$della" doctor
nvidia-smi >"$output/nvidia-smi.txt" 2>&1 || true
check gpu-bf16 "$della" gpu --dtype bf16 -o "$output/gpu-bf16.json"
torch=no
if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
  torch=yes
  check pytorch python3 "$here/torch_della.py" --modes eager --out "$output/pytorch.json"
else
  echo "PyTorch with CUDA is not here: skipped" | tee -a "$output/summary.txt"
fi

checks=()
for model in vae cvae greedy_vae greedy_cvae train; do
  aside "verify-$model-f32" "$della" verify "$cases/$model" "$cases/$model"/case_*.safetensors --device cuda:0 --dtype f32
done
for model in vae cvae; do
  aside "verify-$model-bf16" "$della" verify "$cases/$model" "$cases/$model"/case_*.safetensors --device cuda:0 --dtype bf16
done
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck synccheck; do
    for dtype in f32 bf16; do
      aside "$tool-$dtype" timeout 120 compute-sanitizer --tool $tool --error-exitcode 1 \
        "$della" verify "$cases/vae" "$cases/vae/case_single.safetensors" --device cuda:0 --dtype $dtype
    done
  done
else
  echo "compute-sanitizer is not here: skipped" | tee -a "$output/summary.txt"
fi
for pid in "${checks[@]}"; do
  wait "$pid" || failed=1
done

check gpu-f32 "$della" gpu --dtype f32 -o "$output/gpu-f32.json"
if [ $torch = yes ]; then
  check pytorch-compiled timeout 180 python3 "$here/torch_della.py" --modes compiled --out "$output/pytorch-compiled.json"
fi
exit $failed
