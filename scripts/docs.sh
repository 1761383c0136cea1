#!/usr/bin/env bash
# The site of docs/, into site/ or the folder given. Every warning, such as a link that leads nowhere, is an error.
# `python -m http.server -d site` shows it with its search.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/env.sh
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet --site-dir "${1:-site}"
