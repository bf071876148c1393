#!/bin/sh
# Prepare .venv-model-signing with the field's standard tool, and print the path of its Python: what
# PYTHON_WITH_MODEL_SIGNING names for the tests that hold our signatures against it.
#
# Does nothing, quickly, when model-signing.txt is that of the last time.
set -eu
cd "$(dirname "$0")/.."
venv=.venv-model-signing
pins=requirements/model-signing.txt

say() { echo "==> $*" >&2; }
fail() {
    echo "model_signing: $*" >&2
    exit 1
}
# shellcheck source=requirements/python.sh
. requirements/python.sh

stamp=$venv/.made-from
inputs="$(cksum <"$pins") $PWD"
if [ "$(cat "$stamp" 2>/dev/null)" != "$inputs" ] || ! "$venv/bin/python" -c ''; then
    python=$(find_python)
    need_venv "$python" >&2
    say "Installing model-signing into $venv"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$pins" model-signing pyopenssl >&2
    echo "$inputs" >"$stamp"
fi
echo "$PWD/$venv/bin/python"
