#!/bin/sh
# Run the tests in .venv, with mosquitto as the broker wherever that can be had.
#
#   sh requirements/test.sh [pytest's arguments]
#
# EDGEWARD_TEST_BROKER=embedded keeps to the broker that comes with the test extra.
set -eu
cd "$(dirname "$0")/.."

# Debian keeps daemons where an ordinary user's PATH does not look.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

install_mosquitto() {
    command -v apt-get >/dev/null || return 1
    root=
    [ "$(id -u)" = 0 ] || root="sudo -n"
    $root true 2>/dev/null || return 1
    echo "==> Installing mosquitto, the broker that the tests talk to"
    $root apt-get -qq update >/dev/null || true
    # A run level in which nothing starts: the tests run their own brokers.
    $root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends mosquitto >/dev/null 2>&1
}

if [ -z "${EDGEWARD_TEST_BROKER:-}" ]; then
    EDGEWARD_TEST_BROKER=mosquitto
    command -v mosquitto >/dev/null || install_mosquitto || EDGEWARD_TEST_BROKER=embedded
fi
export EDGEWARD_TEST_BROKER PATH

echo "==> Running the tests (broker: $EDGEWARD_TEST_BROKER)"
status=0
.venv/bin/python -m pytest "$@" || status=$?
if [ "$EDGEWARD_TEST_BROKER" = embedded ]; then
    echo "Note: mosquitto is not on this machine and could not be installed. The tests that need a"
    echo "broker ran on the embedded one (MQTT 3.1.1, no stored sessions); those that need more were"
    echo "skipped. For all of them: sudo apt-get install mosquitto, then make test."
fi
exit "$status"
