#!/usr/bin/env bash
# CIFAR ResNet-20 on CIFAR-100, adder network and CNN twin, from their weights for CIFAR-10. The CNN learns from the labels
# until its rate is zero and teaches the rest: itself once more, and the adder network behind a few epochs of its own.
#
#     bash scripts/reproduce/cifar100.sh CIFAR100 [OUT [WEIGHTS]]
#
# CIFAR100: folder with train/CLASS/IMAGE and test/CLASS/IMAGE. OUT: folder of the trainings (output/cifar100). WEIGHTS:
# where they are published (OUT/weights; adderzoo/weights holds what the package brings). The test images are measured at
# the end; nothing was chosen on them. A run that was interrupted goes on when the command is given again. Three
# hours on one core of 2023 (an estimate: the published ones were trained side by side on two in two).
set -euo pipefail
data=${1:?usage: bash scripts/reproduce/cifar100.sh CIFAR100 [OUT [WEIGHTS]]}
out=${2:-output/cifar100}
weights=${3:-$out/weights}
here=$(dirname "$0")
teacher=$out/cnn_first/last.safetensors

fit() {  # EXPERIMENT OPTION...
    adderzoo train "$data" --val-split "" --batch-size 64 --precise-bn --channels-last --output "$out" \
        --resume --experiment "$@"
}

more() {  # NETWORK ITS-FIRST-PART OPTION...: taught by the CNN after its first part
    fit $1 -m $1 --initial-checkpoint "$out/$2/last.safetensors" --epochs 13 --lr 0.05 --sched poly --decay-rate 1 \
        --sched-on-updates --kd logits --kd-model-name cnn_resnet20 --kd-checkpoint "$teacher" --kd-temperature 4 \
        --task-loss-weight 0.1 --seed 1 "${@:3}"
}

publish() {  # NETWORK RECIPE
    adderzoo validate "$data" --split test -m $1.cifar100 --checkpoint "$out/$1/last.safetensors" --channels-last \
        --json "$out/$1/test.json"
    python "$here/publish_weights.py" $1.cifar100 "$out/$1/last.safetensors" --out "$weights" \
        --result "$out/$1/test.json" --dataset "CIFAR-100, all 10,000 test images" \
        --command "bash scripts/reproduce/cifar100.sh CIFAR100" \
        --recipe "SGD on CIFAR-100's 50,000 training images in batches of 64, momentum 0.9, weight decay 0.0005, $2 \
BatchNorm's statistics are measured at the end. Images are shifted by up to 4 pixels and flipped; seeds 0 and 1. Nothing \
was chosen on the test images."
}

taught="then 13 epochs of 0.05 to 0 on a straight line, a tenth of whose loss is by the labels and the rest by"
fit cnn_first -m cnn_resnet20.cifar10 --epochs 12 --lr 0.1 --sched poly --decay-rate 1 --sched-on-updates --amp --seed 0
more cnn_resnet20 cnn_first --amp
publish cnn_resnet20 "from cnn_resnet20.cifar10: 12 epochs with a learning rate of 0.1 to 0 on a straight line, $taught \
the network after these 12, at temperature 4."
fit adder_first -m adder_resnet20.dist_cifar10 --epochs 5 --lr 0.05 --sched constant --seed 0
more adder_resnet20 adder_first
publish adder_resnet20 "from adder_resnet20.dist_cifar10 (of the authors' weights, BSD-3), adaptive learning rate of adder \
filters (eta 0.2): 5 epochs with a learning rate of 0.05, $taught cnn_resnet20 after 12 epochs by the labels, at \
temperature 4."

adderzoo quantize "$data" "$out/u8.safetensors" -m "$out/adder_resnet20"
adderzoo validate "$data" --split test -m "$out/u8.safetensors" --json "$out/u8.json"
python "$here/publish_weights.py" adder_resnet20.cifar100_u8 "$out/u8.safetensors" --out "$weights" \
    --result "$out/u8.json" --dataset "CIFAR-100, all 10,000 test images" \
    --command "bash scripts/reproduce/cifar100.sh CIFAR100" \
    --recipe "The weights of adder_resnet20.cifar100 in 8 bits: the ranges of what bytes stand for were measured on 200 \
training images, evenly spaced over them, and nothing was trained."
