#!/bin/sh
# Run the tests in .venv, with mosquitto as the broker wherever that can be had.
#
#   sh requirements/test.sh [pytest's arguments]
#
# TEST_BROKER=embedded keeps to the broker that comes with the test extra: it plays the demo.
set -eu
cd "$(dirname "$0")/.."

say() { echo "==> $*"; }
# shellcheck source=requirements/python.sh
. requirements/python.sh

# Debian keeps daemons where an ordinary user's PATH does not look.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

if [ -z "${TEST_BROKER:-}" ]; then
    TEST_BROKER=mosquitto
    command -v mosquitto >/dev/null || apt_install mosquitto || TEST_BROKER=embedded
fi
export TEST_BROKER PATH

say "Running the tests (broker: $TEST_BROKER)"
status=0
# Most tests wait for other processes: a few at a time keep two processors busy.
.venv/bin/python -m pytest -n 4 --dist worksteal "$@" || status=$?
if [ "$TEST_BROKER" = embedded ]; then
    echo "Note: mosquitto is not on this machine and could not be installed. The demo's whole story ran"
    echo "on the embedded broker (MQTT 3.1.1, no stored sessions); the other tests that need a broker"
    echo "were skipped. For all of them: sudo apt-get install mosquitto, then make test."
fi
exit "$status"
