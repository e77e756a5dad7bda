#!/usr/bin/env bash
# CIFAR ResNet-20 as an adder network, alone and taught by its CNN twin: by the logits of the trained CNN, and by PKKD
# (NeurIPS 2020), whose CNN is trained at the same time. All by the recipe of cifar10.sh, for as many epochs.
#
#     bash scripts/reproduce/distillation.sh CIFAR10 [OUT [EPOCHS]]
#
# CIFAR10: folder with train/CLASS/IMAGE and test/CLASS/IMAGE. OUT: folder of the trainings (output/distillation).
# EPOCHS: 40, as in cifar10.sh. The last 5,000 training images are held out (hold_out.py), and the networks compared on
# them (compare.py); the test images are measured once, at the end. A run that was interrupted goes on when the command
# is given again. An epoch of 40,000 images takes 1.5 (alone), 1.2 (CNN), 2 (logits) and 3.5 minutes (PKKD) on one core
# of 2024.
set -euo pipefail
data=${1:?usage: bash scripts/reproduce/distillation.sh CIFAR10 [OUT [EPOCHS]]}
out=${2:-output/distillation}
epochs=${3:-40}
here=$(dirname "$0")
[ -d "$out/held_out" ] || python "$here/hold_out.py" "$data" "$out/held_out"

train() {
    local name=$1 model=$2
    shift 2
    adderzoo train --model "$model" --data-dir "$out/held_out" --batch-size 64 --epochs "$epochs" --lr 0.1 \
        --weight-decay 5e-4 --eta 0.2 --sched cosine --sched-on-updates --channels-last --seed 0 --output "$out" \
        --experiment "$name" --resume "$@"
}

train alone adder_resnet20
train cnn cnn_resnet20
train logits adder_resnet20 --kd logits --kd-checkpoint "$out/cnn/last.safetensors"
train pkkd adder_resnet20 --kd pkkd

for images in "$out/held_out/validation" "$data/test"; do
    echo "$images:"
    python "$here/compare.py" "$images" "$out"/{alone,logits,pkkd,cnn}/last.safetensors
done
