# Finding a Python that is new enough and can make virtual environments; read in by other scripts,
# which define `say` and `fail`.
# shellcheck shell=sh

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

# The interpreter to use: $PYTHON if set, else the first on the PATH that is new enough.
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
    fail "no Python 3.10 or newer on the PATH; install one, or name it: PYTHON=/path/to/python3"
}

can_make_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# Debian's package that brings `venv` to this interpreter: python3-venv, or one by version.
venv_package() {
    case $(command -v "$1") in
        /usr/bin/python3) echo python3-venv ;;
        *) "$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])' ;;
    esac
}

# Install a Debian package, if this user may without a password. Fails quietly.
apt_install() {
    command -v apt-get >/dev/null || return 1
    as_root=
    [ "$(id -u)" = 0 ] || as_root="sudo -n"
    $as_root true 2>/dev/null || return 1
    say "Installing Debian's $1"
    # A new image has no lists of packages yet, and old lists name files that are gone.
    $as_root apt-get -qq update >/dev/null 2>&1 || true
    # A run level in which no service starts of itself, a broker for instance.
    $as_root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends "$1" >/dev/null 2>&1
}

# Debian splits `venv` from Python; bring it, or end with the command that would.
need_venv() {
    can_make_venv "$1" && return
    package=$(venv_package "$1")
    apt_install "$package" || true
    can_make_venv "$1" ||
        fail "$1 cannot make virtual environments; type: sudo apt-get install $package"
}
