#!/usr/bin/env bash
# Real micro-CT of a tooth, 45 of 181 angles: FBP of all angles as the reference, then five methods and a report.
#
#     examples/tooth.sh ../shared/data/ct_tooth/tooth.h5 OUTPUT_FOLDER
#
# The file is TomoPy's tooth in DXchange layout: flats, darks and the rotation centre are handled on the way in.
set -euo pipefail
scan=$1 out=$2
mkdir -p "$out"
read=(--read bin=4 --read rows=[0,1])
sparse=("${read[@]}" --read thin=4 --prior ct-128 --scale 0:0.0085)

invsolve reconstruct "$scan" -o "$out/reference.h5" --strategy linear "${read[@]}" --overwrite
python - "$out" <<'PY'
# The reference becomes a truth file: the full-angle image, in the scan's unit.
import sys
from invsolve.datasets.hdf5 import read_result, write_images
out = sys.argv[1]
result = read_result(f"{out}/reference.h5")
write_images(f"{out}/truth.h5", result.mean[0:1], result.unit, overwrite=True)
PY
invsolve reconstruct "$scan" -o "$out/linear.h5" --strategy linear "${sparse[@]}" --overwrite
invsolve reconstruct "$scan" -o "$out/tv.h5" --strategy tv --set steps=2000 "${sparse[@]}" --overwrite
invsolve reconstruct "$scan" -o "$out/red-diff.h5" --strategy red-diff --set steps=150 --set weight=0.08 "${sparse[@]}" --overwrite
invsolve reconstruct "$scan" -o "$out/moment.h5" --strategy moment --samples 2 "${sparse[@]}" --overwrite
invsolve reconstruct "$scan" -o "$out/dps.h5" --strategy dps-fitted --set steps=300 --samples 4 "${sparse[@]}" --overwrite
for method in linear tv red-diff moment dps; do
    echo "== $method"
    invsolve evaluate "$out/$method.h5" --truth "$out/truth.h5"
done
invsolve report "$out/dps.h5" -o "$out/dps.png" --truth "$out/truth.h5" --overwrite
