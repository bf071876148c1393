"""What a plain broker's messages mean."""

from __future__ import annotations

import pytest

from agent.clouds.dialect import Block, Command, Desired, FromCloud, Metered, Stale
from agent.clouds.plain_mqtt import PlainMqtt

PREFIX = "edgeward/press-7/"


def received(name: str, *, retain: bool = False) -> FromCloud | None:
    return PlainMqtt(PREFIX).receive(f"{PREFIX}{name}", b"{}", None, None, retain=retain)


def test_a_retained_desired_document_is_what_is_desired() -> None:
    assert received("desired", retain=True) == received("desired") == Desired(b"{}")


def test_a_command_is_carried_out_when_it_comes_and_not_when_a_broker_has_stored_it() -> None:
    assert received("command/rollback") == Command("rollback", b"{}", None, None)
    assert received("command/rollback", retain=True) == Stale(f"{PREFIX}command/rollback")


def test_a_stored_block_is_of_another_fetch() -> None:
    assert isinstance(received("blocks/ab/data"), Block)
    assert isinstance(received("blocks/ab/data", retain=True), Stale)


@pytest.mark.parametrize("name", ["", "desired/x", "command", "command/a/b", "reported"])
def test_what_is_not_for_the_agent_means_nothing(name: str) -> None:
    assert received(name) is None
    assert received(name, retain=True) is None
    assert PlainMqtt(PREFIX).receive("line3/temperature", b"21", None, None) is None


@pytest.mark.parametrize(
    ("payload", "on"),
    [(b"true", True), (b" True\n", True), (b"1", True), (b"yes", True), (b"on", True)]
    + [(other, False) for other in (b"false", b"", b"0", b"maybe", b"\xff")],
)
def test_a_topic_says_whether_the_network_is_metered(payload: bytes, on: bool) -> None:
    for retain in (True, False):
        meaning = PlainMqtt(PREFIX).receive(f"{PREFIX}metered", payload, None, None, retain=retain)
        assert meaning == Metered(on)
