#!/usr/bin/env bash
# EDSR (8 blocks of 32 channels) and VDSR for scale 2, adder networks and CNN twins by the same recipe and for as many
# steps: "AdderSR" (CVPR 2021) on 400 images in the place of DIV2K's 800, and for a CPU's hours in the place of a GPU's.
#
#     bash scripts/reproduce/super_resolution.sh SR [OUT [WEIGHTS [NETWORK ...]]]
#
# SR: folder with train/ (BSDS500's 400 training and test images), and Set5/x2 and Set14/x2, each with HR/ and LR/. OUT:
# folder of the trainings (output/super_resolution). WEIGHTS: where they are published (OUT/weights; adderzoo/weights holds
# what the package brings). The test images are measured once, at the end; the rates were chosen on 20 training images
# held out. A run that was interrupted goes on when the command is given again.
set -euo pipefail
data=${1:?usage: bash scripts/reproduce/super_resolution.sh SR [OUT [WEIGHTS [NETWORK ...]]]}
out=${2:-output/super_resolution}
weights=${3:-$out/weights}
here=$(dirname "$0")
shift $(($# < 3 ? $# : 3))
networks=${*:-adder_edsr_small_x2 cnn_edsr_small_x2 adder_vdsr cnn_vdsr}

for network in $networks; do
    # Adam's step does not depend on the size of the gradient: adder filters, which are larger than weights, get a rate
    # of eta times the others'.
    case $network in
    *vdsr) recipe="--img-size 20 --batch-size 8 --lr 0.001" batches=8 ;;
    *) recipe="--img-size 24 --batch-size 16 --lr 0.001" ;;
    esac
    adderzoo train --model $network.bsds400 --data-dir "$data" --val-split "" $recipe --eta 100 --epoch-repeats 40 \
        --epochs 16 --sched cosine --sched-on-updates --warmup-epochs 1 --seed 0 --workers 0 --output "$out" \
        --experiment $network --resume
    for set in Set5 Set14; do
        adderzoo validate --model $network.bsds400 --checkpoint "$out/$network/last.safetensors" \
            --data-dir "$data/$set/x2" --results-file "$out/$network/$set.json"
    done
done
