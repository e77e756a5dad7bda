#!/usr/bin/env bash
# EDSR (8 blocks of 32 channels) for scales 2, 3 and 4, and VDSR for scale 2, adder networks and CNN twins by the same
# recipe and for as many steps: "AdderSR" (CVPR 2021), on 400 images in the place of DIV2K's 800 and for an hour of a
# CPU's core a network. Scales 3 and 4 start from the published weights of scale 2 (start_weights.py).
#
#     bash scripts/reproduce/super_resolution.sh SR [OUT [WEIGHTS [NETWORK ...]]]
#
# SR: folder with train/ (BSDS500's 400 training and test images) and the test sets, each with HR/ and LR/: Set5/x2,
# Set14/x2 and so on; and B100/x4/HR and Urban100/HR, whose images are made smaller here. OUT: folder of the trainings
# (output/super_resolution). WEIGHTS: where they are published (OUT/weights; adderzoo/weights holds what the package
# brings). The test images are measured once, at the end; rates were chosen on 20 training images held out
# (scripts/reproduce/hold_out.py). A run that was interrupted goes on when the command is given again.
set -euo pipefail
data=${1:?usage: bash scripts/reproduce/super_resolution.sh SR [OUT [WEIGHTS [NETWORK ...]]]}
out=${2:-output/super_resolution}
weights=${3:-$out/weights}
networks=${*:4}
here=$(dirname "$0")

mkdir -p "$out/B100" "$out/Urban100"
ln -sfn "$(realpath "$data/B100/x4/HR")" "$out/B100/HR"
ln -sfn "$(realpath "$data/Urban100/HR")" "$out/Urban100/HR"

networks=${networks:-adder_edsr_small_x2 cnn_edsr_small_x2 adder_edsr_small_x3 cnn_edsr_small_x3 adder_edsr_small_x4 \
    cnn_edsr_small_x4 adder_vdsr cnn_vdsr}
for network in $networks; do
    # Adam divides the size of the gradient out. Adder filters, which are larger than weights, get eta times the rate.
    scale=2 size=24 batch=16 eta=50 repeats=40 start="--no-pretrained" begun=""
    chosen="Adder networks' rates were chosen on training images held out, nothing on the test images."
    case $network in
    adder_edsr_small_x2) rate=0.002 epochs=16 ;;
    cnn_edsr_small_x2) rate=0.0005 epochs=16 ;; # at 0.002 it breaks down in the seventh epoch
    adder_edsr*) rate=0.001 epochs=4 ;;
    cnn_edsr*) rate=0.0005 epochs=4 ;;
    *vdsr) size=20 batch=8 rate=0.001 eta=100 epochs=6 repeats=20 ;;
    esac
    if [[ $network == *_x[34] ]]; then
        scale=${network##*_x}
        start="--initial-checkpoint $out/$network.safetensors" begun=", from ${network%_x?}_x2.bsds400"
        chosen="Nothing was chosen on the test images."
        [ -f "$out/$network.safetensors" ] ||
            python "$here/start_weights.py" "${network%_x?}_x2.bsds400" "$network" "$out/$network.safetensors"
    fi
    adderzoo train -m $network $start --data-dir "$data" --val-split "" --workers 0 --seed 0 --img-size $size \
        --batch-size $batch --lr $rate --eta $eta --epochs $epochs --epoch-repeats $repeats --sched cosine \
        --sched-on-updates --warmup-epochs 1 --output "$out" --experiment $network --resume
    for set in "$data"/{Set5,Set14}/x$scale "$out"/{B100,Urban100}; do
        adderzoo validate "$set" -m $network.bsds400 --checkpoint "$out/$network/last.safetensors" \
            --json "$out/$network/$(basename "${set%/x?}").json"
    done
    filters=$([ "${network#cnn}" != "$network" ] || echo "; $(awk "BEGIN {print $rate * $eta}") for adder filters")
    python "$here/publish_weights.py" $network.bsds400 "$out/$network/last.safetensors" --out "$weights" \
        --result "$out/$network"/{Set5,Set14,B100,Urban100}.json --command "bash scripts/reproduce/super_resolution.sh SR" \
        --recipe "Adam on the L1 loss$begun, $((400 * repeats * epochs / batch)) steps of $batch patches of ${size}x$size pixels \
of BSDS500's 400 training and test images, made smaller by bicubic interpolation, flipped and turned: learning rate $rate to \
0 on a cosine$filters; seed 0. $chosen"
done
