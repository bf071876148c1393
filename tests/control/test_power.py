"""A machine that went off without a word is told from one that was shut down, and from an agent
that was killed."""

from __future__ import annotations

from typing import get_args

import pytest
from msgspec.structs import replace

from agent.control.power import PowerRecord, Verdict, in_words, started
from agent.documents.telemetry import EVENTS

SERVED = PowerRecord(boot="one", serving=True, hot_c=85.0)


def test_a_new_device_has_lost_nothing() -> None:
    assert started(PowerRecord(), "one") == (PowerRecord(boot="one"), "")


def test_an_agent_that_was_killed_is_no_loss_of_power() -> None:
    assert started(SERVED, "one") == (SERVED, "")


def test_a_machine_that_was_shut_down_is_no_loss_of_power() -> None:
    record, verdict = started(replace(SERVED, serving=False, resets=1, undervoltage=True), "two")
    assert verdict == ""
    assert record == PowerRecord(boot="two", hot_c=85.0)


def test_a_restart_under_load_is_a_loss_of_power() -> None:
    record, verdict = started(SERVED, "two")
    assert verdict == "power_lost"
    assert record == PowerRecord(boot="two", resets=1, hot_c=85.0)


def test_a_second_one_within_an_hour_points_to_the_supply() -> None:
    first, _ = started(SERVED, "two")
    second, verdict = started(replace(first, serving=True), "three")
    assert verdict == "power_supply"
    assert second.resets == 2
    calm = replace(second, serving=True, resets=0)
    assert started(calm, "four")[1] == "power_lost"


def test_low_voltage_before_points_to_the_supply() -> None:
    assert started(replace(SERVED, undervoltage=True), "two")[1] == "power_supply"


def test_without_a_boot_id_nothing_is_claimed() -> None:
    assert started(SERVED, "") == (SERVED, "")
    assert started(replace(SERVED, boot=""), "two")[1] == ""


@pytest.mark.parametrize("verdict", [v for v in get_args(Verdict) if v])
def test_the_pack_is_not_blamed(verdict: Verdict) -> None:
    before = replace(SERVED, undervoltage=True)
    what, hint = in_words(verdict, before, replace(SERVED, resets=2))
    assert "restarted without being shut down" in what
    assert "voltage" in what
    assert "2 times" in what
    assert "power supply" in hint
    assert "not held against any pack" in hint
    assert verdict in EVENTS
