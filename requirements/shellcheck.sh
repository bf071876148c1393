#!/bin/sh
# Check every shell script of the repository with shellcheck, where it is installed.
set -eu
cd "$(dirname "$0")/.."

command -v shellcheck >/dev/null || {
    echo "shellcheck is not on this machine: the shell scripts stay unchecked"
    exit 0
}
shellcheck .ci/run requirements/*.sh systemd/*.sh
