#!/usr/bin/env bash
# Trains the demo model again from PneumoniaMNIST's training split and says
# whether it is the committed one, bit for bit. If it is not (another type of
# processor, a changed recipe), the new model takes its place and the package
# is sealed again, its methods of explanation are surveyed again and the verifiers
# of its answer fitted again. The card and the manifest's operating point are then
# yours to bring up to date: a test of package model compares them with
# training.json and explanation.json. Any change of the package, the card too, takes
# the last two commands again.
set -euo pipefail
cd "$(dirname "$0")/.."
data="${VIGIE_DATA:-../shared/data}/pneumoniamnist-trainval.npz"
package=models/chest-pneumonia-28
if [ ! -f "$data" ]; then
  echo "model: $data is not here: set VIGIE_DATA to the folder that holds PneumoniaMNIST" >&2
  exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bin/vigie train --data "$data" --out "$work"
if cmp -s "$work/model.onnx" "$package/model.onnx"; then
  echo "model: the committed model.onnx is reproduced, bit for bit"
  exit 0
fi
echo "model: differs from the committed model.onnx: replacing it and sealing the package" >&2
cp "$work/model.onnx" "$work/calibration.json" "$work/training.json" "$package/"
rm -f "$package/explanation.json" "$package/verifiers.json" # of the former model
bin/vigie model seal "$package"
bin/vigie model survey "$package" --phantoms 24 --seed 200 --write
# No guards of the input: they would have to be fitted on drawn chests, and call
# every radiograph unusual, or on radiographs, and call every drawn chest so.
bin/vigie model fit "$package" --data "$data" --split val --without-guards --review-budget 0.13
