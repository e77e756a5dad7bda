#!/usr/bin/env bash
# Instructions of ResNet-8 and ResNet-20 on microcontrollers under qemu: the tables of benchmarks in docs/. CIFAR10 is a
# folder with images in train/ (see scripts/reproduce/cifar10.sh), RESNET8 a name or a checkpoint; with CMSIS-NN, a copy of
# its repository, the CNN twins too.
#
#   bash scripts/reproduce/microcontroller/count.sh CIFAR10 [RESNET8 [CMSIS-NN]]
set -euo pipefail
cd "$(dirname "$0")/../../.."
images=$1
eight=${2:-adder_resnet8.cifar10}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
adderzoo export "$out/resnet8" -m "$eight" --quantize "$images"
adderzoo export "$out/resnet20" -m adder_resnet20.cifar10 --quantize "$images"
adderzoo export "$out/resnet8_shifts" -m "$eight" --quantize "$images" --no-multiply
for network in resnet8 resnet8_shifts resnet20; do
    echo "$network"
    python scripts/reproduce/microcontroller/count.py "$out/$network" --layers
done
if [ $# -gt 2 ]; then
    python scripts/reproduce/microcontroller/cmsis_nn.py "$3" --layers
fi
