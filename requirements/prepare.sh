#!/bin/sh
# Prepare .venv with one extra of this project, at the versions of constraints.txt.
#
#   sh requirements/prepare.sh EXTRA        PYTHON=python3.12 chooses the interpreter
#
# Does nothing, quickly, when pyproject.toml and constraints.txt are those of the last time.
set -eu

extra=$1
cd "$(dirname "$0")/.."
venv=.venv

say() { echo "==> $*"; }
fail() {
    echo "prepare: $*" >&2
    exit 1
}
# shellcheck source=requirements/python.sh
. requirements/python.sh

version() { "$1" -c 'import sys; print(sys.version)' 2>/dev/null; }

works() {
    "$venv/bin/python" -c 'import pip' 2>/dev/null &&
        { [ -z "${PYTHON:-}" ] || [ "$(version "$PYTHON")" = "$(version "$venv/bin/python")" ]; }
}

make_venv() {
    python=$(find_python)
    need_venv "$python"
    say "Making $venv with $("$python" --version)"
    # Not only --clear: the interpreter of a moved or half-made environment may not even start.
    rm -rf "$venv"
    "$python" -m venv "$venv"
}

stamp=$venv/.stamps/$extra
# With the place, because an editable installation points to it.
inputs="$(cat pyproject.toml requirements/constraints.txt | cksum) $PWD"
if works && [ "$(cat "$stamp" 2>/dev/null)" = "$inputs" ]; then
    exit 0
fi
works || make_venv
say "Installing edgeward[$extra] into $venv (the first time takes a minute or two)"
# setuptools warns of every editable installation; here it is what is wanted.
PYTHONWARNINGS=ignore "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint requirements/constraints.txt --editable ".[$extra]"
mkdir -p "$venv/.stamps"
echo "$inputs" >"$stamp"
