#!/usr/bin/env python3
"""della and what one would run instead of it, measured side by side. See README.md beside this file.

    benches/peers/run.py [--quick] [--threads N] [--rounds N] [--systems della,torch,…] [--output results.json]
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / "target" / "peers"
PYTHON = WORK / "venv" / "bin" / "python"

# name: title, script and its flags, whether it needs `--kind prepare`, packages, of which some it can do without
PEERS = {
    "torch": ("PyTorch", ["torch_gpt2.py"], False, ["torch", "transformers"], []),
    "openvino": ("OpenVINO", ["openvino_gpt2.py"], True, ["torch", "openvino"], ["nncf"]),
    "ct2": ("CTranslate2", ["ct2_gpt2.py"], True, ["ctranslate2"], []),
    "llamacpp": ("llama.cpp", ["llamacpp_gpt2.py"], True, ["gguf", "llama-cpp-python"], []),
    "torch-della": ("PyTorch", ["torch_della.py"], False, ["torch"], []),
    "torch-compile": ("PyTorch, compiled", ["torch_della.py", "--compile"], False, ["torch"], []),
}

# title, unit, kind, batch, length, dtypes
WORKS = [
    ("decode, 1 sequence", "tok/s", "decode", 1, 64, ["f32", "bf16", "int8", "int4"]),
    ("decode, 16 sequences", "tok/s", "decode", 16, 64, ["f32", "bf16", "int8", "int4"]),
    ("prefill, 16 × 64 tokens", "tok/s", "prefill", 16, 64, ["f32", "bf16", "int8", "int4"]),
    ("encode to latents, 32 × 64 tokens", "sentences/s", "encode", 32, 64, ["f32", "bf16"]),
    ("training step, 8 × 64 tokens", "tok/s", "train", 8, 64, ["f32", "bf16"]),
    ("training step, 64 × 64 tokens", "tok/s", "train", 64, 64, ["f32", "bf16"]),
]

# The published PyTorch code of DELLA, on another machine: two cores of a Xeon with AMX. Never measured here.
RECORDED = {
    ("decode", 1, "f32"): 16,
    ("decode", 16, "f32"): 32.6,
    ("encode", 32, "f32"): 21.3,
    ("train", 8, "f32"): 136,
    ("train", 8, "bf16"): 275,
}


class Skip(Exception):
    """Why a system does not do a piece of work."""


def execute(command, timeout, env=None):
    """Standard output, and the peak of memory in bytes; `Skip` with the last line of errors if the command fails."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen(list(map(str, command)), stdout=out, stderr=err, env=env)
        end = time.monotonic() + timeout
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                child.kill()
            time.sleep(0.05)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        if child.returncode != 0:
            late = f"took longer than {timeout} s" if time.monotonic() > end else f"exit status {child.returncode}"
            lines = [line.strip() for line in err if line.strip()]
            raise Skip(next((line for line in lines if line.lower().startswith("error")), lines[-1] if lines else late))
        return out.read(), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def install(names, skipped):
    """The peers' packages, from their registries, into a virtual environment that sees the machine's own packages."""
    if not PYTHON.exists():
        print("creating", WORK / "venv", file=sys.stderr)
        execute([sys.executable, "-m", "venv", "--system-site-packages", WORK / "venv"], 600)
    env = dict(os.environ, CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_OPENSSL=OFF")
    env.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count()))
    if platform.machine() == "x86_64":
        # llama.cpp's AMX code has crashed on quantised weights.
        for flags in ("CFLAGS", "CXXFLAGS"):
            env[flags] = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    pip = lambda *packages: execute([PYTHON, "-m", "pip", "install", "-q", *packages], 7200, env)
    pip("numpy", "safetensors")
    for name in names:
        title, _, _, packages, optional = PEERS[name]
        print("installing", title, file=sys.stderr)
        try:
            pip(*packages)
        except Skip as reason:
            skipped[name] = f"not installed: {reason}"
            continue
        for package in optional:
            try:
                pip(package)
            except Skip as reason:
                print(f"{title} goes without {package}: {reason}", file=sys.stderr)


def ours(della, kind, dtype, batch, length, threads, repetitions):
    """della's own measurement, as a peer's script reports its own."""
    flag = {"decode": "-n", "prefill": "-p", "encode": "-e", "train": "--train"}[kind]
    shape = [flag, length, "-b", batch, "-t", threads, "--dtype", dtype]
    out, peak = execute([della, "bench", "-o", "jsonl", *shape, "-r", repetitions], 3600)
    for row in map(json.loads, out.splitlines()):
        if row.get("kind") == kind and row["dtype"] == dtype and row["batch"] == batch:
            version, _ = execute([della, "--version"], 60)
            units = batch if kind == "encode" else batch * length
            seconds = [ns / 1e9 for ns in row["samples_ns"]]
            return {"seconds": seconds, "units": units, "version": version.strip(), "peak": peak}
    raise Skip("no such line in the output of `della bench`")


def theirs(name, data, kind, dtype, batch, length, threads, repetitions):
    script, *flags = PEERS[name][1]
    numbers = ["--batch", batch, "--length", length, "--threads", threads, "--repetitions", repetitions]
    command = [PYTHON, HERE / script, "--data", data, "--kind", kind, "--dtype", dtype, *numbers, *flags]
    out, peak = execute(command, 3600, dict(os.environ, OMP_NUM_THREADS=str(threads)))
    row = json.loads(out.splitlines()[-1])
    if "skip" in row:
        raise Skip(row["skip"])
    return row | {"peak": peak}


def does(name, kind):
    latents = kind in ("encode", "train")
    return name == "della" or latents == (PEERS[name][1][0] == "torch_della.py")


def measure(args, names, data, skipped):
    """Rows of results. The systems take turns: each of them once in every round."""
    results = []
    for title, unit, kind, batch, length, dtypes in WORKS:
        if args.works and kind not in args.works:
            continue
        if args.quick:
            batch, length = min(batch, 4), 8
        # The longest work is measured once a turn.
        repetitions = 1 if batch * length >= 4096 else args.repetitions
        for dtype in dtypes:
            row = {"work": title, "unit": unit, "kind": kind, "batch": batch, "length": length, "dtype": dtype}
            runs, row["skipped"] = {}, {}
            for round in range(args.rounds):
                for name in names:
                    if not does(name, kind) or name in row["skipped"] or name in skipped:
                        continue
                    print(f"{title}, {dtype}, round {round + 1}: {name}", file=sys.stderr)
                    work = (kind, dtype, batch, length, args.threads, repetitions)
                    try:
                        run = ours(args.della, *work) if name == "della" else theirs(name, data, *work)
                        runs.setdefault(name, []).append(run)
                    except (Skip, OSError, ValueError, KeyError, IndexError) as reason:
                        row["skipped"][name] = str(reason) or type(reason).__name__
            row["systems"] = {}
            for name, all in runs.items():
                rates = [run["units"] / statistics.median(run["seconds"]) for run in all]
                row["systems"][name] = {
                    "rate": statistics.median(rates), "rates": rates, "runs": all,
                    "peak_bytes": max(run["peak"] for run in all), "version": all[0]["version"],
                }
            results.append(row)
    return results


def number(x):
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def title(name):
    return "della" if name == "della" else PEERS[name][0]


def tables(results, quick):
    """The README's table, and one with everything."""
    head = ["work", "dtype", "della", "best peer", "", "ratio", "published code (recorded †)"]
    print("|", " | ".join(head), "|\n| --- | --- | ---: | --- | ---: | ---: | ---: |")
    for row in results:
        rates = {name: system["rate"] for name, system in row["systems"].items()}
        mine, peers = rates.pop("della", None), rates
        best = max(peers, key=peers.get, default=None)
        recorded = None if quick else RECORDED.get((row["kind"], row["batch"], row["dtype"]))
        print("|", " | ".join([
            f"{row['work']}, {row['unit']}", row["dtype"], number(mine) if mine else "–", title(best) if best else "–",
            number(peers[best]) if best else "–", f"{mine / peers[best]:.2f}" if mine and best else "–",
            f"{recorded} †" if recorded else "–",
        ]), "|")
    print("\n† from the record, on another machine: two cores of a Xeon with AMX; not measured in this run.\n")
    print("| work | dtype | system | rate | lowest–highest of rounds | peak of memory |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    for row in results:
        for name, s in row["systems"].items():
            spread = f"{number(min(s['rates']))}–{number(max(s['rates']))}"
            cells = [row["work"], row["dtype"], title(name), f"{number(s['rate'])} {row['unit']}", spread]
            print("|", " | ".join([*cells, f"{s['peak_bytes'] / 2**30:.2f} GiB"]), "|")


def print_skipped(results, skipped):
    reasons = {(title(name), reason): ["everything"] for name, reason in skipped.items()}
    for row in results:
        for name, reason in row["skipped"].items():
            reasons.setdefault((title(name), reason), []).append(f"{row['work']} in {row['dtype']}")
    print("\nSkipped:\n" if reasons else "\nNothing was skipped.")
    for (name, reason), works in reasons.items():
        print(f"- {name}: {reason} ({'; '.join(works)})")


def machine():
    model, flags = platform.processor() or platform.machine(), ""
    if os.path.exists("/proc/cpuinfo"):
        info = dict(line.split(":", 1) for line in open("/proc/cpuinfo") if ":" in line)
        info = {key.strip(): value.strip() for key, value in info.items()}
        model, flags = info.get("model name", model), info.get("flags", "")
    isa = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if flag in flags.split()]
    return {"cpu": model, "isa": isa, "cores": os.cpu_count(), "system": platform.platform()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="for every system; default: all cores")
    parser.add_argument("--rounds", type=int, help="how often each system has its turn (3)")
    parser.add_argument("--repetitions", type=int, help="measurements in a turn, after a warm-up (3)")
    parser.add_argument("--systems", default=",".join(["della", *PEERS]), help="comma-separated; default: %(default)s")
    parser.add_argument("--works", type=lambda s: s.split(","), help="some of decode,prefill,encode,train")
    parser.add_argument("--della", type=Path, default=ROOT / "target" / "release" / "della")
    parser.add_argument("--output", type=Path, help="everything measured, as JSON")
    parser.add_argument("--no-install", action="store_true", help="use the packages that are there")
    parser.add_argument("--quick", action="store_true", help="tiny models, one round: does everything run?")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.repetitions = args.repetitions or (1 if args.quick else 3)
    names, skipped = args.systems.split(","), {}
    if unknown := set(names) - {"della", *PEERS}:
        parser.error(f"no such system: {', '.join(sorted(unknown))}")
    peers = [name for name in names if name != "della"]
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    started = datetime.datetime.now().astimezone()

    WORK.mkdir(parents=True, exist_ok=True)
    if not args.no_install:
        install(peers, skipped)
    data = WORK / ("data-quick" if args.quick else "data")
    data.mkdir(exist_ok=True)
    execute([PYTHON, HERE / "common.py", data, *(["--quick"] if args.quick else [])], 600)
    for name in peers:
        if PEERS[name][2] and name not in skipped:
            print("preparing", name, file=sys.stderr)
            try:
                execute([PYTHON, HERE / PEERS[name][1][0], "--data", data, "--kind", "prepare"], 1800)
            except Skip as reason:
                skipped[name] = f"not prepared: {reason}"
    if "della" in names and not os.access(args.della, os.X_OK):
        skipped["della"] = f"no {args.della}: cargo build --release"

    results = measure(args, names, data, skipped)
    versions = {name: s["version"] for row in results for name, s in row["systems"].items()}
    host = machine()
    print(f"{started:%Y-%m-%d %H:%M}, {host['cpu']} ({', '.join(host['isa'])}), {args.threads} threads of "
          f"{host['cores']} cores; medians of {args.rounds} rounds. {'; '.join(sorted(set(versions.values())))}.\n")
    if args.quick:
        print("A trial, with tiny models for the peers and one measurement each: these speeds mean nothing.\n")
    tables(results, args.quick)
    print_skipped(results, skipped)
    if args.output:
        settings = {key: getattr(args, key) for key in ("threads", "rounds", "repetitions", "quick")}
        everything = {"started": started.isoformat(), "machine": host, "settings": settings, "versions": versions,
                      "skipped": skipped, "results": results}
        args.output.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
