#!/usr/bin/env bash
# Style, types and tests. Arguments go to pytest; without any, the fast suite runs. `-m slow` draws new examples for its
# property tests, and `-m hypothesis --hypothesis-profile slow` for all of them (see tests/conftest.py).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# mypy checks the code as Python 3.10 reads it, on any newer Python: numpy 2.2, the last one for 3.10, lacks types.
if .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then .venv/bin/mypy; fi
if [ $# -eq 0 ]; then set -- -m 'not slow' --durations=40; fi
if [[ " $* " == *" -m slow "* ]]; then set -- --hypothesis-profile=slow "$@"; fi
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 "$@"
