"""Nothing is lost at QoS 1, whatever is killed."""

from __future__ import annotations

import pytest

from tests.brokers import LocalBroker
from tests.scenarios import chaos
from tests.scenarios.conftest import Packs
from tests.scenarios.device import Device


@pytest.mark.needs_broker("sessions")
def test_nothing_is_lost_while_worker_agent_and_broker_are_killed(
    device: Device, broker: LocalBroker, packs: Packs
) -> None:
    one = packs.affine(1)
    chaos.prepare(device, broker, one.directory, one.pack)
    verdict = chaos.run(device, broker, seconds=6.0, rounds=2)
    assert verdict.lost == 0, verdict
    assert verdict.sent > 600
    assert verdict.kills == {"worker": 2, "agent": 2, "broker": 2}
