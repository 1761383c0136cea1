#!/usr/bin/env bash
# Style, types and tests. Arguments go to pytest; without any, the fast suite runs. `-m slow` draws new examples for its
# property tests, and `-m hypothesis --hypothesis-profile slow` for all of them (see tests/conftest.py).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
if [ $# -eq 0 ]; then set -- -m 'not slow' --durations=40; fi
if [[ " $* " == *" -m slow "* ]]; then set -- --hypothesis-profile=slow "$@"; fi
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 "$@"
