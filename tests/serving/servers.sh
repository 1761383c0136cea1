#!/usr/bin/env bash
# Makes an environment with the Triton Inference Server, its client and the Python models of KServe's documents:
#
#   bash tests/serving/servers.sh SERVERS          (on x86_64, with glibc 2.35 or newer)
#   SERVERS=SERVERS .venv/bin/python -m pytest -m slow tests/serving/test_servers.py
#
# The server is that of the package nvidia-pytriton, which is built with the backend of Python alone, and that one knows
# no numpy 2. The client and KServe ask for older packages than the project's, and so this is an environment of its own.
set -euo pipefail
python=$PWD/.venv/bin/python
versions() { "$python" -c 'import sys; from importlib.metadata import version
for name in sys.argv[1:]: print(f"{name}=={version(name)}")' "$@"; }
pip() { "$1/bin/pip" --quiet --disable-pip-version-check install --no-warn-conflicts "${@:2}"; }
"$python" -m venv "$1"
pip "$1" 'kserve==0.21.0' 'tritonclient[grpc,http]==2.73.0'
pip "$1" --no-deps 'nvidia-pytriton==0.7.0'
pip "$1" --target "$1/packages" 'numpy==1.26.4' $(versions onnxruntime openvino)
