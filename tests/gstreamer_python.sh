#!/usr/bin/env bash
# Makes an environment whose OpenCV has GStreamer, for the pipelines of examples/camera.py:
#
#   bash tests/gstreamer_python.sh FOLDER          (as root, on Debian 12)
#   GSTREAMER_PYTHON=FOLDER/bin/python .venv/bin/python -m pytest tests/test_camera_example.py
#
# Debian's OpenCV is built for numpy 1.
set -euo pipefail
apt-get install --yes --no-install-recommends python3-opencv python3-venv gstreamer1.0-tools gstreamer1.0-plugins-good
/usr/bin/python3 -m venv --system-site-packages "$1"
"$1/bin/pip" install --quiet --disable-pip-version-check onnxruntime onnx pillow 'numpy<2'
