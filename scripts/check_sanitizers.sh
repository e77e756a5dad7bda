#!/usr/bin/env bash
# Holds the loops of the CPU kernels to the definition with AddressSanitizer and UndefinedBehaviorSanitizer, for every
# instruction set that this processor has, in listed and in random geometries. Takes a quarter of an hour. Arguments, all
# optional: n, to take every n-th combination of form, layouts and type; how many random geometries; their seed (which
# is printed). Needs neither PyTorch nor Python.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
${CXX:-c++} -std=c++20 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -Wno-psabi -Icsrc/cpu \
    -o "$folder/loops" tests/ops/loops_main.cpp csrc/cpu/{adder2d_plan*,adder2d_loops*,capability}.cpp csrc/benchmark/ceilings*.cpp
for capability in default avx2 avx512vl avx512; do
    export ADDERZOO_CPU_CAPABILITY=$capability
    "$folder/loops" 1000000 0 >/dev/null || break  # which this processor lacks
    "$folder/loops" "$@"
done
