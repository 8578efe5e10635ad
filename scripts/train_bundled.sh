#!/usr/bin/env bash
# How the bundled priors are trained: the data, then all of them side by side on one GPU, each ended by the clock.
#
#     MINUTES=9 scripts/train_bundled.sh ../shared/data WORK [ct-128 mr-128 mr-complex-128 natural]
#
# WORK/data and WORK/priors are made; data that are there are used as they are. Each training goes on after a kill when the
# script is given again; WORK/priors/*.preview.safetensors are the averaged weights at the last snapshot. On two CPU cores:
# MINUTES=600 BATCH=4 EVERY=2000 SNAPSHOT=600 and one prior.
set -euo pipefail
shared=$1 work=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
priors=("$@")
[ ${#priors[@]} -gt 0 ] || priors=(ct-128 mr-128 mr-complex-128 natural)
mkdir -p "$work/data" "$work/priors"
[ -e "$work/data/natural.h5" ] || ${PYTHON:-python} "$here/training_data.py" "$shared" "$work/data"

# Norm-free networks bear this rate with clipped gradients; the average forgets within a tenth of the run.
common=(--split split --groups group --flip 1 --minutes "${MINUTES:-9}" --precision bf16 --batch-size "${BATCH:-64}"
    --snapshot-seconds "${SNAPSHOT:-60}" --set network=fast --set resident=yes --set weight=weight --set clip=true
    --set lr=1e-3 --set ema="${EMA:-0.9993}" --set sigma_mean=-1.0 --set sigma_std=1.6 --set warped=0.5 --set rotate=6
    --set zoom=0.15 --set shift=10 --set gain=0.08 --set log_every=100 --set validate_every="${EVERY:-1000}" --set store=float16)

train() {
    local data=$1
    case $1 in mr-complex-128) data=mr-128 ;; esac
    local own=(--range 0:1)
    case $1 in
        ct-128) own=(--range=-1000:1200 --set unit=HU) ;;
        # At the others' rate this one diverged.
        mr-complex-128) own=(--range=-1:1 --set phase=1.2 --set lr=4e-4 --set warmup=1000 --set clip_gradient=0.3) ;;
        natural) own=(--range 0:1 --crop 128 --set zoom=0.3) ;;
    esac
    ${INVSOLVE:-invsolve} train "$work/data/$data.h5" -o "$work/priors/$1.safetensors" "${common[@]}" "${own[@]}" \
        --set dropout="${DROPOUT:-0.05}" >"$work/priors/$1.log" 2>&1
}

running=()
for prior in "${priors[@]}"; do
    train "$prior" &
    running+=($!)
done
# One signal to this script stops them all, each with a snapshot.
trap 'kill -TERM $(jobs -p) 2>/dev/null || true' TERM INT
status=0
for process in "${running[@]}"; do wait "$process" || status=$?; done
exit "$status"
