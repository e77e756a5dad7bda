#!/usr/bin/env bash
# CIFAR ResNet-20 on CIFAR-10, adder network and CNN twin by the same recipe: the paper's (CVPR 2020, section 4.2), but
# 40 epochs in batches of 64 where the paper has 400 in batches of 256, since it is meant for a CPU.
#
#     bash scripts/reproduce/cifar10.sh CIFAR10 [OUT [WEIGHTS]]
#
# CIFAR10: folder with train/CLASS/IMAGE and test/CLASS/IMAGE. OUT: folder of the trainings (output/cifar10). WEIGHTS:
# where they are published (OUT/weights; adderzoo/weights holds what the package brings). The test images are measured
# once, at the end; the recipe was chosen on 5,000 training images held out (scripts/reproduce/hold_out.py). A run that
# was interrupted goes on when the command is given again. An hour and a half for both on one core of 2024 each.
set -euo pipefail
data=${1:?usage: bash scripts/reproduce/cifar10.sh CIFAR10 [OUT [WEIGHTS]]}
out=${2:-output/cifar10}
weights=${3:-$out/weights}
here=$(dirname "$0")
count() { find "$data/$1/" -name '*.png' | wc -l; }

for model in adder_resnet20 cnn_resnet20; do
    rate=$([ $model = cnn_resnet20 ] || echo ", adaptive learning rate of adder filters (eta 0.2)")
    adderzoo train --model $model.cifar10 --no-pretrained --data-dir "$data" --val-split "" --batch-size 64 --epochs 40 \
        --lr 0.1 --weight-decay 5e-4 --eta 0.2 --sched cosine --sched-on-updates --channels-last --seed 0 \
        --output "$out" --experiment $model --resume
    adderzoo validate "$data" --split test -m $model.cifar10 --checkpoint "$out/$model/last.safetensors" \
        --channels-last --json "$out/$model/test.json"
    python "$here/publish_weights.py" $model.cifar10 "$out/$model/last.safetensors" --out "$weights" \
        --result "$out/$model/test.json" --dataset "CIFAR-10, $(count test) test images" \
        --command "bash scripts/reproduce/cifar10.sh CIFAR10" \
        --recipe "SGD on $(count train) of CIFAR-10's training images, 40 epochs in batches of 64: learning rate 0.1 to 0 on a \
cosine, momentum 0.9, weight decay 0.0005$rate. Images are shifted by up to 4 pixels and flipped; seed 0. The recipe \
was chosen on training images held out, nothing on the test images."
done
