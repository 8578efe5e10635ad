#!/usr/bin/env bash
# How the bundled priors were trained, on 2 CPU cores: data, then one command a prior. Each goes on after a kill when it is given again.
#
#     scripts/train_bundled.sh ../shared/data WORK
#
# ct-128 begins with medical-128, bundled before it: 8000 steps on the same training patients and on MR slices. The learning rate
# of runs with --minutes falls with the clock, so another machine ends with other weights; a GPU should take more of everything.
set -euo pipefail
shared=$1 work=$2
here=$(cd "$(dirname "$0")" && pwd)
python "$here/prior_data.py" "$shared" "$work"
git -C "$here" show 9e11036:plugins/weights/medical-128.safetensors > "$work/medical-128.safetensors"
common=(--split split --groups group --flip 1 --precision bf16)

invsolve train "$work/ct-128.h5" -o "$work/ct-128.safetensors" "${common[@]}" --range=-1000:1200 --minutes 50 --batch-size 4 \
    --set start="$work/medical-128.safetensors" --set clip=true --set unit=HU --set rotate=5 --set zoom=0.12 --set gain=0.08 \
    --set lr=3e-4 --set ema=0.999 --set dropout=0.05 --set validate_every=400

# The MR priors were trained in two goes; the second begins with the first's weights.
mr=(--width 24 --batch-size 4 --set rotate=5 --set zoom=0.12 --set dropout=0.0 --set lr=8e-4)
invsolve train "$work/mr-128.h5" -o "$work/mr-128-first.safetensors" "${common[@]}" "${mr[@]}" --range 0:1 --minutes 48 \
    --set gain=0.1 --set ema=0.999 --set validate_every=400
invsolve train "$work/mr-complex-128.h5" -o "$work/mr-complex-128-first.safetensors" "${common[@]}" "${mr[@]}" --range=-1:1 --steps 1100 \
    --set start="$work/mr-128-first.safetensors" --set ema=0.998 --set validate_every=250
invsolve train "$work/mr-128.h5" -o "$work/mr-128.safetensors" "${common[@]}" "${mr[@]}" --range 0:1 --minutes 55 \
    --set start="$work/mr-128-first.safetensors" --set gain=0.1 --set ema=0.999 --set validate_every=400
invsolve train "$work/mr-complex-128.h5" -o "$work/mr-complex-128.safetensors" "${common[@]}" "${mr[@]}" --range=-1:1 --minutes 55 \
    --set start="$work/mr-complex-128-first.safetensors" --set ema=0.999 --set validate_every=400

invsolve train "$work/natural.h5" -o "$work/natural.safetensors" "${common[@]}" --range 0:1 --steps 2400 --width 24 --batch-size 16 \
    --crop 64 --set gain=0.1 --set lr=8e-4 --set ema=0.999 --set dropout=0.0 --set validate_every=400
