#!/usr/bin/env bash
# CIFAR ResNet-20 on CIFAR-10, adder network and CNN twin by the same recipe: first the paper's (CVPR 2020, section 4.2),
# but 40 epochs in batches of 64 where the paper has 400 in batches of 256, since it is meant for a CPU; then 20 epochs
# that both of these teach, by the mean of their probabilities.
#
#     bash scripts/reproduce/cifar10.sh CIFAR10 [OUT [WEIGHTS]]
#
# CIFAR10: folder with train/CLASS/IMAGE and test/CLASS/IMAGE. OUT: folder of the trainings (output/cifar10). WEIGHTS:
# where they are published (OUT/weights; adderzoo/weights holds what the package brings). The test images are measured
# after the first part and at the end; nothing was chosen on them (the first recipe was on 5,000 training images held out,
# scripts/reproduce/hold_out.py). A run that was interrupted goes on when the command is given again. Five hours for all
# on one core of 2024.
set -euo pipefail
data=${1:?usage: bash scripts/reproduce/cifar10.sh CIFAR10 [OUT [WEIGHTS]]}
out=${2:-output/cifar10}
weights=${3:-$out/weights}
here=$(dirname "$0")

validate() {
    adderzoo validate "$data" --split test -m $1.cifar10 --checkpoint "$out/$2/last.safetensors" --channels-last \
        --json "$out/$2/test.json"
}

for model in adder_resnet20 cnn_resnet20; do
    adderzoo train --model $model.cifar10 --no-pretrained --data-dir "$data" --val-split "" --batch-size 64 --epochs 40 \
        --lr 0.1 --weight-decay 5e-4 --eta 0.2 --sched cosine --sched-on-updates --channels-last --seed 0 \
        --output "$out" --experiment $model --resume
    validate $model $model
done

teacher=$out/adder_resnet20_bytes.safetensors  # as a teacher it works on bytes, which takes a third of the time
[ -f "$teacher" ] || adderzoo quantize "$data" "$teacher" -m adder_resnet20 --checkpoint "$out/adder_resnet20/last.safetensors"
for model in adder_resnet20 cnn_resnet20; do
    rate=$([ $model = cnn_resnet20 ] || echo ", adaptive learning rate of adder filters (eta 0.2)")
    adderzoo train "$data" -m $model --initial-checkpoint "$out/$model/last.safetensors" --val-split "" --batch-size 64 \
        --epochs 20 --lr 0.05 --sched poly --decay-rate 1 --sched-on-updates --precise-bn --kd logits \
        --kd-model-name cnn_resnet20 adder_resnet20 --kd-checkpoint "$out/cnn_resnet20/last.safetensors" "$teacher" \
        --kd-temperature 4 --task-loss-weight 0.1 $([ $model = adder_resnet20 ] || echo --amp) --channels-last --seed 1 \
        --output "$out" --experiment ${model}_more --resume
    validate $model ${model}_more
    python "$here/publish_weights.py" $model.cifar10 "$out/${model}_more/last.safetensors" --out "$weights" \
        --result "$out/${model}_more/test.json" --dataset "CIFAR-10, all 10,000 test images" \
        --command "bash scripts/reproduce/cifar10.sh CIFAR10" \
        --recipe "SGD on CIFAR-10's training images in batches of 64, momentum 0.9, weight decay 0.0005$rate: 40 epochs with \
a learning rate of 0.1 to 0 on a cosine, then 20 of 0.05 to 0 on a straight line. In these a tenth of the loss is by the \
labels, the rest by the mean of the probabilities of adder_resnet20 and cnn_resnet20 after the 40 epochs, at temperature 4, \
and BatchNorm's statistics are measured at the end. Images are shifted by up to 4 pixels and flipped; seeds 0 and 1. (The \
40 epochs of the published weights were on 45,000 of the 50,000 images.) Nothing was chosen on the test images."
done
