#!/usr/bin/env bash
# Instructions of ResNet-8 (random weights, of which their number does not depend) and ResNet-20 on microcontrollers under
# qemu: the table of benchmarks in docs/. CIFAR10 is a folder with images in train/ (see scripts/reproduce/cifar10.sh).
set -euo pipefail
cd "$(dirname "$0")/../../.."
images=$1
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
adderzoo export "$out/resnet8" -m adder_resnet8 --random-weights --quantize "$images"
adderzoo export "$out/resnet20" -m adder_resnet20.cifar10 --quantize "$images"
adderzoo export "$out/resnet8_shifts" -m adder_resnet8 --random-weights --quantize "$images" --no-multiply
for network in resnet8 resnet8_shifts resnet20; do
    echo "$network"
    python scripts/reproduce/microcontroller/count.py "$out/$network" --layers
done
