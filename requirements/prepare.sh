#!/bin/sh
# Prepare .venv with one extra of this project, at the versions of constraints.txt.
#
#   sh requirements/prepare.sh EXTRA        PYTHON=python3.12 chooses the interpreter
#
# Does nothing, quickly, when pyproject.toml and constraints.txt are those of the last time.
# Needs Python 3.10 or newer. Where Debian has split `venv` from it, that package is installed if
# this user may do so without a password; otherwise the command to type is printed.
set -eu

extra=$1
cd "$(dirname "$0")/.."
venv=.venv

say() { echo "==> $*"; }
fail() {
    echo "prepare: $*" >&2
    exit 1
}

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_recent "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.10 or newer"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python3.14; do
        if is_recent "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.10 or newer on the PATH; install one, or name it: make PYTHON=/path/to/python3"
}

# Debian's package that brings `venv` to this interpreter: python3-venv, or one by version.
venv_package() {
    case $(command -v "$1") in
        /usr/bin/python3) echo python3-venv ;;
        *) "$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])' ;;
    esac
}

install_venv() {
    package=$(venv_package "$1")
    root=
    [ "$(id -u)" = 0 ] || root="sudo -n"
    if command -v apt-get >/dev/null && $root true 2>/dev/null; then
        say "Installing $package (this Python has no venv)"
        # A new image has no lists of packages yet; old lists may name files that are gone.
        $root apt-get -qq update >/dev/null || true
        DEBIAN_FRONTEND=noninteractive $root apt-get -qq install -y --no-install-recommends \
            "$package" >/dev/null || true
    fi
    "$1" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$1 cannot make virtual environments; type: sudo apt-get install $package"
}

make_venv() {
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null || install_venv "$python"
    say "Making $venv with $("$python" --version)"
    # Not only --clear: the interpreter of a moved or half-made environment may not even start.
    rm -rf "$venv"
    "$python" -m venv "$venv"
}

version() { "$1" -c 'import sys; print(sys.version)' 2>/dev/null; }

works() {
    "$venv/bin/python" -c 'import pip' 2>/dev/null &&
        { [ -z "${PYTHON:-}" ] || [ "$(version "$PYTHON")" = "$(version "$venv/bin/python")" ]; }
}

stamp=$venv/.stamps/$extra
inputs=$(cat pyproject.toml requirements/constraints.txt | cksum)
if works && [ "$(cat "$stamp" 2>/dev/null)" = "$inputs $PWD" ]; then
    exit 0
fi
works || make_venv
say "Installing edgeward[$extra] into $venv (the first time takes a minute or two)"
# setuptools warns of every editable installation; here it is what is wanted.
PYTHONWARNINGS=ignore "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint requirements/constraints.txt --editable ".[$extra]"
mkdir -p "$venv/.stamps"
echo "$inputs $PWD" >"$stamp"
