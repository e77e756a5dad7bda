#!/usr/bin/env bash
# The published adder networks for classification in bytes: 8 bits, ranges from 200 training images, nothing trained.
#
#     bash scripts/reproduce/quantized.sh CIFAR10 MNIST [OUT [WEIGHTS]]
#
# CIFAR10: folder with train/CLASS/IMAGE and test/CLASS/IMAGE. MNIST: folder with torchvision's MNIST/raw. OUT: folder of
# files (output/quantized). WEIGHTS: where they are published (OUT/weights; adderzoo/weights holds what the package
# brings). Three minutes on one core of 2021.
set -euo pipefail
usage="usage: bash scripts/reproduce/quantized.sh CIFAR10 MNIST [OUT [WEIGHTS]]"
cifar10=${1:?$usage}
mnist=${2:?$usage}
out=${3:-output/quantized}
weights=${4:-$out/weights}
here=$(dirname "$0")

for name in adder_resnet20.cifar10 adder_resnet20.dist_cifar10 adder_resnet8.cifar10 adder_lenet5.mnist; do
    case $name in
    *.mnist) data=$mnist dataset="--dataset torch/mnist" images="MNIST, test images" ;;
    *) data=$cifar10 dataset="" images="CIFAR-10, all 10,000 test images" ;;
    esac
    adderzoo quantize "$data" $dataset "$out/$name.safetensors" -m $name
    adderzoo validate "$data" $dataset --split test -m "$out/$name.safetensors" --json "$out/$name.json"
    python "$here/publish_weights.py" ${name}_u8 "$out/$name.safetensors" --out "$weights" --result "$out/$name.json" \
        --dataset "$images" --command "bash scripts/reproduce/quantized.sh CIFAR10 MNIST" \
        --recipe "The weights of $name in 8 bits: the ranges of what bytes stand for were measured on 200 training images, \
evenly spaced over them, and nothing was trained."
done
