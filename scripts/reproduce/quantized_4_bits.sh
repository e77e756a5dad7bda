#!/usr/bin/env bash
# CIFAR ResNet-20 in 4 bits: adder_resnet20.dist_cifar10 trained on, rounded as the integer network rounds, and taught by
# itself in 8 bits.
#
#     bash scripts/reproduce/quantized_4_bits.sh CIFAR10 [OUT [WEIGHTS]]
#
# CIFAR10: folder with train/CLASS/IMAGE and test/CLASS/IMAGE. OUT: folder of the training (output/quantized). WEIGHTS:
# where it is published (OUT/weights; adderzoo/weights holds what the package brings). A run that was interrupted goes on
# when the command is given again. Half an hour on one core of 2023, another training on the next core.
set -euo pipefail
data=${1:?usage: bash scripts/reproduce/quantized_4_bits.sh CIFAR10 [OUT [WEIGHTS]]}
out=${2:-output/quantized}
weights=${3:-$out/weights}
here=$(dirname "$0")
name=adder_resnet20.dist_cifar10

adderzoo train "$data" -m $name --quantize-bits 4 --val-split "" --batch-size 64 --epochs 3 --lr 0.002 --sched poly \
    --decay-rate 1 --sched-on-updates --kd logits --kd-model-name ${name}_u8 --kd-temperature 3 --task-loss-weight 0.1 \
    --channels-last --seed 0 --output "$out" --experiment ${name}_u4 --resume
adderzoo quantize "$out/${name}_u4.safetensors" -m "$out/${name}_u4"
adderzoo validate "$data" --split test -m "$out/${name}_u4.safetensors" --json "$out/${name}_u4.json"
python "$here/publish_weights.py" ${name}_u4 "$out/${name}_u4.safetensors" --out "$weights" \
    --result "$out/${name}_u4.json" --dataset "CIFAR-10, all 10,000 test images" \
    --command "bash scripts/reproduce/quantized_4_bits.sh CIFAR10" \
    --recipe "The weights of $name in 4 bits, after 3 epochs of SGD on CIFAR-10's 50,000 training images in batches of 64, \
in which filters and inputs were rounded to 4 bits with the paper's gradients: learning rate 0.002 to 0 on a straight line, \
momentum 0.9, weight decay 0.0005, adaptive learning rate of adder filters (eta 0.2), a tenth of the loss by the labels and \
the rest by ${name}_u8 at temperature 3. Images are shifted by up to 4 pixels and flipped; seed 0. Ranges are of 512 \
training images. Nothing was chosen on the test images."
