#!/bin/sh
# Put all that a device needs into one file: DIST/edgeward-VERSION-device.tar.gz, from DIST's wheel.
#   sh systemd/bundle.sh [DIST]
set -eu
mkdir -p "${1:-dist}"
dist=$(cd "${1:-dist}" && pwd)
cd "$(dirname "$0")/.."

set -- "$dist"/edgeward-*.whl
if [ $# != 1 ] || [ ! -f "$1" ]; then
    echo "bundle: expected one wheel in $dist, found: $*" >&2
    exit 1
fi
version=$(basename "$1" | cut -d - -f 2)
name=edgeward-$version-device
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/$name"
cp "$1" requirements/python.sh requirements/constraints.txt "$work/$name/"
cp -R systemd/install.sh systemd/agent.toml systemd/edgeward.service systemd/edgeward.sysusers \
    systemd/drop-ins "$work/$name/"
tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner -czf "$dist/$name.tar.gz" "$name"
echo "Successfully built $name.tar.gz"
