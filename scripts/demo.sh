#!/usr/bin/env bash
# The main job on the embedded weights: PyTorch to a verified FP16 bundle, checked again and run on an image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
out=${1:-runs/lemevit_tiny.eurosat-fp16}
set -x
.venv/bin/vitdeploy export lemevit_tiny.eurosat --fp16 --force -o "$out"
.venv/bin/vitdeploy verify "$out"
.venv/bin/vitdeploy predict "$out" examples/water.png --top-k 3
