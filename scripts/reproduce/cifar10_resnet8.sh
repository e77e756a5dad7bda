#!/usr/bin/env bash
# CIFAR ResNet-8, of the size of MLPerf Tiny's network for image classification, as an adder network and as a CNN by the
# same recipe: each starts from the first blocks of the published ResNet-20 of its kind (start_weights.py) and is taught
# by the CNN among these. (For the published weights these were as after the first 40 epochs of cifar10.sh.)
#
#     bash scripts/reproduce/cifar10_resnet8.sh CIFAR10 [OUT [WEIGHTS]]
#
# CIFAR10: folder with train/CLASS/IMAGE and test/CLASS/IMAGE. OUT: folder of the trainings (output/resnet8). WEIGHTS:
# where they are published (OUT/weights; adderzoo/weights holds what the package brings). A run that was interrupted goes
# on when the command is given again. 2.5 minutes an epoch on one core of 2023, the CNN a minute.
set -euo pipefail
data=${1:?usage: bash scripts/reproduce/cifar10_resnet8.sh CIFAR10 [OUT [WEIGHTS]]}
out=${2:-output/resnet8}
weights=${3:-$out/weights}
here=$(dirname "$0")
count() { find "$data/$1/" -name '*.png' | wc -l; }

train() {
    local start=$1 epochs=$2 rate=$3 seed=$4 name=$5
    adderzoo train "$data" -m ${kind}_resnet8 --initial-checkpoint "$start" --val-split "" --batch-size 64 \
        --epochs "$epochs" --lr "$rate" --sched poly --decay-rate 1 --sched-on-updates --precise-bn --kd logits \
        --kd-model-name cnn_resnet20.cifar10 --kd-temperature 4 --task-loss-weight 0.1 --channels-last --seed "$seed" \
        $([ $kind = adder ] || echo --amp) --output "$out" --experiment "$name" --resume
}

mkdir -p "$out"
for kind in adder cnn; do
    name=${kind}_resnet8.cifar10
    rate=$([ $kind = cnn ] || echo ", adaptive learning rate of adder filters (eta 0.2)")
    start=$out/${kind}_start.safetensors
    [ -f "$start" ] || python "$here/start_weights.py" ${kind}_resnet20.cifar10 ${kind}_resnet8 "$start"
    train "$start" 30 0.1 0 $kind
    train "$out/$kind/last.safetensors" 8 0.03 1 ${kind}_more
    adderzoo validate "$data" --split test -m $name --checkpoint "$out/${kind}_more/last.safetensors" --channels-last \
        --json "$out/${kind}_more/test.json"
    python "$here/publish_weights.py" $name "$out/${kind}_more/last.safetensors" --out "$weights" \
        --result "$out/${kind}_more/test.json" --dataset "CIFAR-10, all 10,000 test images" \
        --command "bash scripts/reproduce/cifar10_resnet8.sh CIFAR10" \
        --recipe "SGD on $(count train) of CIFAR-10's training images in batches of 64: 30 epochs with a learning rate of 0.1 to 0 \
on a straight line, then 8 of 0.03 to 0, momentum 0.9, weight decay 0.0005$rate. A tenth of the loss is by the labels, the \
rest by the logits of cnn_resnet20.cifar10 at temperature 4. BatchNorm's statistics are measured at the end. Images are \
shifted by up to 4 pixels and flipped; seeds 0 and 1. The 8 epochs were added after the first 30 had been measured on the \
test images."
done
