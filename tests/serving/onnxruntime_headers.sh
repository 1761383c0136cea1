#!/usr/bin/env bash
# Unpacks the headers of ONNX Runtime's C++ API, which its Python package does not have, from Debian 13:
#
#   bash tests/serving/onnxruntime_headers.sh FOLDER
#   ONNXRUNTIME_INCLUDE=FOLDER/usr/include/onnxruntime .venv/bin/python -m pytest -m slow tests/serving/test_cpp.py
set -euo pipefail
package=pool/main/o/onnxruntime/libonnxruntime-dev_1.21.0+dfsg-1_amd64.deb
sha256=14f7d959d5deacbcf1504830d4189f91fc67382b399ed9ae9d3aa9c4050ced08
mkdir -p "$1"
curl --fail --silent --show-error --location --retry 3 --output "$1/headers.deb" "https://deb.debian.org/debian/$package"
echo "$sha256  $1/headers.deb" | sha256sum --check --quiet
dpkg-deb --extract "$1/headers.deb" "$1"
