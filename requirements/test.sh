#!/bin/sh
# Run the tests in .venv, with mosquitto as the broker wherever that can be had.
#
#   sh requirements/test.sh [pytest's arguments]
#
# TEST_BROKER=embedded keeps to the broker that comes with the test extra. It speaks plain MQTT 3.1.1
# and keeps no sessions; the tests that need more are left out, and the last lines say how many.
set -eu
cd "$(dirname "$0")/.."

say() { echo "==> $*"; }
# shellcheck source=requirements/python.sh
. requirements/python.sh

# Debian keeps daemons where an ordinary user's PATH does not look.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

if [ -z "${TEST_BROKER:-}" ]; then
    TEST_BROKER=mosquitto
    command -v mosquitto >/dev/null || apt_install mosquitto || {
        say "mosquitto is not on this machine and could not be installed"
        TEST_BROKER=embedded
    }
fi
export TEST_BROKER PATH

say "Running the tests (broker: $TEST_BROKER)"
# Most tests wait for other processes: a few at a time keep two processors busy.
.venv/bin/python -m pytest -n 4 --dist worksteal "$@"
