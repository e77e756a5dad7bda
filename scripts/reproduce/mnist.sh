#!/usr/bin/env bash
# LeNet-5-BN on MNIST by the paper's recipe (CVPR 2020, section 4.1): adder network and CNN twin, three seeds each.
#
#     bash scripts/reproduce/mnist.sh MNIST [OUT [WEIGHTS]]
#
# MNIST: folder with torchvision's MNIST/raw (torchvision.datasets.MNIST(MNIST, download=True) makes it). OUT: folder
# of the trainings (output/mnist). WEIGHTS: where seed 0 is published (OUT/weights; adderzoo/weights holds what the
# package brings). The test images are looked at after every epoch, for the curves; nothing is chosen on them: what
# counts is the last epoch. A run that was interrupted goes on when the command is given again. Five minutes a training
# on one core of 2024.
set -euo pipefail
data=${1:?usage: bash scripts/reproduce/mnist.sh MNIST [OUT [WEIGHTS]]}
out=${2:-output/mnist}
weights=${3:-$out/weights}
here=$(dirname "$0")

for seed in 0 1 2; do
    for model in adder_lenet5 cnn_lenet5; do
        adderzoo train --model $model.mnist --no-pretrained --dataset torch/mnist --data-dir "$data" --val-split test --no-aug \
            --opt sgd --lr 0.1 --weight-decay 5e-4 --eta 0.1 --batch-size 256 --epochs 50 --seed $seed \
            --output "$out" --experiment ${model}_$seed --resume
    done
done
python "$here/accuracies.py" "$out"/*_lenet5_[0-9]

for model in adder_lenet5 cnn_lenet5; do
    rate=$([ $model = cnn_lenet5 ] || echo ", adaptive learning rate of adder filters (eta 0.1)")
    adderzoo validate "$data" --dataset torch/mnist --split test -m $model.mnist \
        --checkpoint "$out/${model}_0/last.safetensors" --json "$out/${model}_0/test.json"
    python "$here/publish_weights.py" $model.mnist "$out/${model}_0/last.safetensors" \
        --result "$out/${model}_0/test.json" --dataset "MNIST, test images" --out "$weights" \
        --command "bash scripts/reproduce/mnist.sh MNIST" \
        --recipe "SGD on MNIST's 60,000 training images, 50 epochs in batches of 256: learning rate 0.1 to 0 on a \
cosine, Nesterov momentum 0.9, weight decay 0.0005$rate. Images are resized to 32x32, not \
augmented; seed 0, the last epoch, nothing chosen on the test images."
done
