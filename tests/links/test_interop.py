"""docs/interop.md says what the brokers on this machine do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.brokers import MOSQUITTO
from tests.links.interop_brokers import BROKERS, Absent
from tests.links.interop_table import CHECKS, NEEDED, documented, row

# Another transport changes little; all rows are compared where time does not matter.
QUICK = ("mosquitto, MQTT 3.1.1", "mosquitto, MQTT 5") if MOSQUITTO else ("amqtt",)


@pytest.mark.parametrize("name", BROKERS)
def test_the_table_says_what_a_broker_does(name: str, tmp_path: Path) -> None:
    if name not in QUICK and "EDGEWARD_INTEROP" not in os.environ:
        pytest.skip("set EDGEWARD_INTEROP to try every broker that this machine has")
    try:
        cells = row(name, tmp_path)
    except Absent as reason:
        pytest.skip(str(reason))
    stands = documented()[name]
    if cells[1] == stands[1]:
        assert cells == stands
    else:  # another release may do more or less, but not less than a link needs
        results = dict(zip(CHECKS, cells[2:], strict=True))
        assert [results[check] for check in NEEDED] == ["yes"] * len(NEEDED)


def test_every_broker_stands_in_the_table() -> None:
    assert list(documented()) == list(BROKERS)
    assert all(len(cells) == 2 + len(CHECKS) for cells in documented().values())
