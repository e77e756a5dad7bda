#!/usr/bin/env bash
# What the paper's LeNet-5-BN on MNIST owes to the full-precision gradient and the adaptive learning rate (CVPR 2020,
# section 4.5 and Figure 3), to eta (Table 4), and why (Table 1): one seed each. The paper does not say whether its sign
# gradient is that of the filters alone (sign_*) or that of the layers' inputs too (signs_*).
#
#     bash scripts/reproduce/mnist_ablation.sh MNIST [OUT]
#
# Arguments, and going on when interrupted, as for mnist.sh, which has eta 0.1 with the full gradient: run it before.
set -euo pipefail
data=${1:?usage: bash scripts/reproduce/mnist_ablation.sh MNIST [OUT]}
out=${2:-output/mnist}
here=$(dirname "$0")

train() {  # NAME, then options
    adderzoo train --model adder_lenet5.mnist --no-pretrained --dataset torch/mnist --data-dir "$data" --val-split test --no-aug \
        --opt sgd --lr 0.1 --weight-decay 5e-4 --batch-size 256 --epochs 50 --seed 0 \
        --output "$out" --experiment "$@" --resume
}

train full_x100 --filter-lr-scale 100
train sign_adaptive --filter-grad sign --eta 0.1
train sign_x100 --filter-grad sign --filter-lr-scale 100
train full_unchanged --eta 0
train sign_unchanged --filter-grad sign --eta 0
train signs_adaptive --filter-grad sign --input-grad sign --eta 0.1
for eta in 1 0.5 0.2 0.05; do
    train eta_$eta --eta $eta
done
python "$here/accuracies.py" "$out"/adder_lenet5_0 "$out"/{full,sign,signs}_* "$out"/eta_*
python "$here/gradient_norms.py" "$data"
