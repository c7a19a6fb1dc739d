#!/bin/bash
# Compiles the test kernels, each also with every mutation, and runs them under the six schedules.
#   run.sh [NAME...]            FLAGS and RUNTIME_FLAGS are passed to g++
# A kernel must be right under all schedules, a mutation wrong under one at least.
cd "$(dirname "$0")" || exit 1
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
options="-std=c++17 -O2 -fPIC -shared -DDELLA_EMULATOR -I ../../common -I .. $FLAGS"
g++ $options $RUNTIME_FLAGS ../emulator.cpp -o "$out/runtime.so" -lpthread || exit 1
g++ -std=c++17 -O2 driver.cpp -o "$out/driver" -ldl || exit 1
failed=0
for name in ${@:-barriers warp tile mma wgmma store histogram}; do
    last=$(grep -c '^// MUTATION ' $name.cu)
    for mutation in $(seq 0 "$last"); do
        printf '#include "%s/%s.cu"\nextern "C" void emulator_entry(void** args) { emulator::call(%s, args); }\n' \
            "$PWD" $name $name >"$out/$name.cpp"
        g++ $options -DMUTATION=$mutation "$out/$name.cpp" -o "$out/$name.so" || exit 1
        result=$(timeout 300 "$out/driver" "$out/runtime.so" "$out/$name.so" $name 2>&1)
        status=$?
        right=$(grep -c ': right$' <<<"$result")
        what=$(sed -n "s|^// MUTATION $mutation: ||p" $name.cu)
        if [ $mutation = 0 ]; then
            verdict="right under all schedules"
            [ $status = 0 ] || { failed=1; verdict=$'FAILED\n'"$result"; }
            echo "$name: $verdict"
        else
            caught=$(grep -v ': right$' <<<"$result" | sed -nE 's/^order ([0-9]) eager ([0-9]).*/\1\2/p' | tr '\n' ' ')
            [ $status = 1 ] && [ "$right" -lt 6 ] && verdict="caught by" || { verdict=MISSED; failed=1; }
            echo "$name $mutation ($what): $verdict $caught"
            [ $status -gt 1 ] && echo "$result"
            [ -n "$VERBOSE" ] && echo "$result" | grep -v ': right$'
        fi
    done
done
exit $failed
