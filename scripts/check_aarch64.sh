#!/usr/bin/env bash
# Compiles the loops of the CPU kernels for aarch64 and holds them to the definition under an emulator. Takes seven
# minutes; an argument n takes every n-th combination of form, layouts and type. Needs neither PyTorch nor Python.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v aarch64-linux-gnu-g++ >/dev/null || ! command -v qemu-aarch64 >/dev/null; then
    sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo"
    $sudo apt-get update -qq && $sudo apt-get install -qq -y g++-aarch64-linux-gnu qemu-user
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
aarch64-linux-gnu-g++ -std=c++20 -O3 -Wno-psabi -static -Icsrc/cpu -o "$folder/loops" \
    tests/ops/loops_main.cpp csrc/cpu/{adder2d_plan*,adder2d_loops*,capability}.cpp csrc/benchmark/ceilings*.cpp
qemu-aarch64 "$folder/loops" "$@"
