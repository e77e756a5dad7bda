#!/usr/bin/env bash
# LeNet-5-BN on MNIST by the paper's recipe (CVPR 2020, section 4.1): adder network and CNN twin, three seeds each.
#
#     bash scripts/reproduce/mnist.sh MNIST [OUT]
#
# MNIST: folder with torchvision's MNIST/raw (torchvision.datasets.MNIST(MNIST, download=True) makes it). OUT: folder
# of the trainings (output/mnist). The test images are looked at after every epoch, for the curves; nothing is chosen
# on them: what counts is the last epoch. A run that was interrupted goes on when the command is given again. Five
# minutes a training on one core of 2024. Seed 0 is what adderzoo/weights publishes.
set -euo pipefail
data=${1:?usage: bash scripts/reproduce/mnist.sh MNIST [OUT]}
out=${2:-output/mnist}
here=$(dirname "$0")

for seed in 0 1 2; do
    for model in adder_lenet5 cnn_lenet5; do
        adderzoo train --model $model.mnist --dataset torch/mnist --data-dir "$data" --val-split test --no-aug \
            --opt sgd --lr 0.1 --weight-decay 5e-4 --eta 0.1 --batch-size 256 --epochs 50 --seed $seed \
            --output "$out" --experiment ${model}_$seed --resume
    done
done
python "$here/accuracies.py" "$out"/*_lenet5_[0-9]
