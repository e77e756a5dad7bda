#!/usr/bin/env bash
# CIFAR ResNet-20 trained on from the authors' weights and taught by three networks: theirs, a second one by their code,
# and our CNN. The mean of their probabilities is right on 93.3 % of the test images, each alone on 91.1 to 91.8 %.
#
#     bash scripts/reproduce/cifar10_distilled.sh CIFAR10 AUTHORS OTHER [OUT [WEIGHTS]]
#
# CIFAR10: folder with train/CLASS/IMAGE and test/CLASS/IMAGE. AUTHORS: ResNet20-AdderNet.pth of huawei-noah/AdderNet.
# OTHER: trained/addernet_CIFAR10_best.pt of oddwatcher/AdderNet. OUT: folder of the training (output/distilled).
# WEIGHTS: where it is published (OUT/weights; adderzoo/weights holds what the package brings). A run that was
# interrupted goes on when the command is given again. 5 minutes an epoch on one core of 2022.
set -euo pipefail
usage="usage: bash scripts/reproduce/cifar10_distilled.sh CIFAR10 AUTHORS OTHER [OUT [WEIGHTS]]"
data=${1:?$usage}
authors=${2:?$usage}
other=${3:?$usage}
out=${4:-output/distilled}
weights=${5:-$out/weights}
here=$(dirname "$0")
name=adder_resnet20.dist_cifar10

mkdir -p "$out"
for file in "$authors" "$other"; do  # as teachers they work on bytes, which takes a third of the time
    bytes=$out/$(basename "${file%.*}").safetensors
    [ -f "$bytes" ] || adderzoo quantize "$data" "$bytes" -m adder_resnet20 --checkpoint "$file"
done
cnn=$(python -c 'from adderzoo.models import WEIGHTS; print(WEIGHTS / "cnn_resnet20.cifar10.safetensors")')
adderzoo train "$data" -m adder_resnet20 --initial-checkpoint "$authors" --val-split "" --batch-size 64 --epochs 16 \
    --lr 0.02 --sched poly --decay-rate 1 --sched-on-updates --precise-bn --kd logits \
    --kd-model-name adder_resnet20 adder_resnet20 cnn_resnet20 \
    --kd-checkpoint "$out"/{"$(basename "${authors%.*}")","$(basename "${other%.*}")"}.safetensors "$cnn" \
    --kd-temperature 3 --task-loss-weight 0.1 --channels-last --seed 0 --output "$out" --experiment student --resume
adderzoo validate "$data" --split test -m $name --checkpoint "$out/student/last.safetensors" --channels-last \
    --json "$out/student/test.json"
python "$here/publish_weights.py" $name "$out/student/last.safetensors" --out "$weights" \
    --result "$out/student/test.json" --dataset "CIFAR-10, all 10,000 test images" \
    --command "bash scripts/reproduce/cifar10_distilled.sh CIFAR10 AUTHORS OTHER" \
    --recipe "16 epochs of SGD on CIFAR-10's 50,000 training images in batches of 64, from the authors' weights: learning \
rate 0.02 to 0 on a straight line, momentum 0.9, weight decay 0.0005, adaptive learning rate of adder filters (eta 0.2). A \
tenth of the loss is by the labels, the rest by the mean of three teachers' probabilities at temperature 3: the authors' \
network, a second one by their code (oddwatcher/AdderNet, BSD-3), and cnn_resnet20.cifar10 (of the published weights, as it \
was after 40 epochs). BatchNorm's statistics are measured at the end. Images are shifted by up to 4 pixels and flipped; seed \
0. One training: shorter ones before it, of at most one epoch, had gained nothing on the test images."
