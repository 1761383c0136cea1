# Sourced by the other scripts: creates .venv with everything that exporting and testing needs, once.
# PYTHON chooses the interpreter (3.10 or newer); the versions are those of constraints.txt.
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "vitdeploy needs Python 3.10 or newer; name one with PYTHON=python3.11" >&2
    exit 2
fi
stamp=.venv/installed-$(cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
if [ ! -e "$stamp" ]; then
    [ -e .venv/bin/python ] || "$python" -m venv .venv
    echo "installing into .venv (torch is the large part) …" >&2
    .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
    .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
    touch "$stamp"
fi
