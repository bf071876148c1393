#!/bin/sh
# Check edgeward.service with systemd's own checker, on a machine where the agent is not installed.
set -eu

command -v systemd-analyze >/dev/null || {
    echo "systemd-analyze is not on this machine: edgeward.service stays unchecked"
    exit 0
}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The checker wants to see the program; everything else in the unit is checked as it stands.
sed 's|^ExecStart=/opt/edgeward/bin/edgeward|ExecStart=/bin/true|' \
    "$here/edgeward.service" >"$work/edgeward.service"
for drop_in in "$here"/drop-ins/*.conf; do
    mkdir -p "$work/edgeward.service.d"
    # Their lines are examples, commented out; here each must be one that systemd understands.
    sed 's|^#\([A-Z][A-Za-z]*=\)|\1|' "$drop_in" >"$work/edgeward.service.d/$(basename "$drop_in")"
done

# It ends with 0 after an unknown key, and speaks of the machine's other units too.
found=$(SYSTEMD_LOG_LEVEL=warning systemd-analyze verify --man=no "$work/edgeward.service" 2>&1 |
    grep edgeward || true)
if [ -n "$found" ]; then
    echo "$found" | sed "s|$work|systemd|g" >&2
    exit 1
fi
