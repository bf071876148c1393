"""What was tried against which broker: `python -m tests.links.interop_table` rewrites the table.

Rows of brokers that this machine does not have are left as they stand in docs/interop.md.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from agent.wire.mqtt.options import Will
from agent.wire.mqtt.packets import Message
from agent.wire.mqtt.properties import Properties
from tests.links.driver import Driver
from tests.links.interop_brokers import BROKERS, Absent, Access
from tests.witness import Witness

PAGE = Path(__file__).resolve().parents[2] / "docs" / "interop.md"
WITHIN_S = 15.0
QUIET_S = 0.5
_AWAY = 50
_LARGE = 100_000
_FLOOD = 300


def _driver(access: Access, client_id: str, **more: Any) -> Driver:
    session = {"version": "auto"} | access.session | {"client_id": client_id} | more
    return Driver(access.url, link=access.link, **session)


def _witness(access: Access, version: int = 4) -> Witness:
    def login(client: Any) -> None:
        if "username" in access.session:
            client.username_pw_set(access.session["username"], "any")

    return Witness(access.port, version=version, setup=login)


async def _version(access: Access) -> str:
    driver = _driver(access, "version")
    async with driver.running():
        state = await driver.phase("connected")
        assert state.granted is not None
        return "5" if state.granted.version == 5 else "3.1.1"


async def _both_ways(access: Access, qos: int) -> str:
    with _witness(access) as witness:
        await asyncio.to_thread(witness.subscribe, f"out{qos}", qos)
        driver = _driver(access, f"both{qos}")
        async with driver.running():
            await driver.subscribe((f"in{qos}", qos))
            witness.client.publish(f"in{qos}", b"in", qos)
            message = await driver.next()
            driver.publish(f"out{qos}", b"out", qos=qos)
            seen = await asyncio.to_thread(witness.next)
            await driver.all_done(1)
            right = (message.payload, message.qos, seen.payload, seen.qos)
            return "yes" if right == (b"in", qos, b"out", qos) else f"no: {right}"


async def _retained(access: Access) -> str:
    driver = _driver(access, "retained")
    async with driver.running():
        driver.publish("kept", b"old", qos=1, retain=True)
        await driver.all_done(1)
        driver.link.subscribe([("kept", 1)])
        message = await driver.next()
        driver.publish("kept", b"", qos=1, retain=True)
        await driver.all_done(2)
        return "yes" if message.retain else "yes, but not marked"


async def _last_will(access: Access) -> str:
    with _witness(access) as witness:
        await asyncio.to_thread(witness.subscribe, "gone")
        driver = _driver(access, "will", will=Will("gone", b"offline", 1, False))
        async with driver.running():
            await driver.phase("connected")
            assert driver.link._pipe is not None
            driver.link._pipe.abort()
            seen = await asyncio.to_thread(witness.next)
            return "yes" if seen.payload == b"offline" else "no"


async def _large(access: Access) -> str:
    driver = _driver(access, "large")
    async with driver.running():
        await driver.subscribe(("large", 1))
        driver.publish("large", bytes(_LARGE), qos=1)
        return "yes" if len((await driver.next()).payload) == _LARGE else "no"


async def _properties(access: Access) -> str:
    driver = _driver(access, "properties")
    async with driver.running():
        await driver.subscribe(("question", 1))
        if driver.link.version == 4:
            return "–"
        sent = Properties("answer", b"\1\2", "text/plain", None, (("a", "b"), ("a", "c")))
        driver.publish("question", b"", qos=1, properties=sent)
        message = await driver.next()
        got = (message.response_topic, message.correlation_data, message.content_type)
        right = got == ("answer", b"\1\2", "text/plain")
        return "yes" if right and message.user_properties == sent.user_properties else "no"


async def _what_is_kept(driver: Driver) -> list[Message]:
    """Messages until a last one that is published now has come, and no more in a while.

    Some brokers send what is new before what they kept.
    """
    driver.publish("kept/last", b"", qos=1)
    messages: list[Message] = []
    last = False
    while True:
        try:
            message = await asyncio.wait_for(driver.messages.get(), QUIET_S if last else WITHIN_S)
        except asyncio.TimeoutError:
            return messages
        last = last or message.topic == "kept/last"
        if message.topic != "kept/last":
            messages.append(message)


async def _while_away(access: Access) -> str:
    async with _driver(access, "away").running() as first:
        await first.subscribe(("kept/#", 1))
    with _witness(access) as witness:
        for number in range(_AWAY):
            await asyncio.to_thread(witness.publish, "kept/a", bytes([number]))
    second = _driver(access, "away")
    async with second.running():
        state = await second.phase("connected")
        if not state.session_present:
            return f"0 of {_AWAY}: session gone"
        seen = {message.payload for message in await _what_is_kept(second)}
        return f"{len(seen)} of {_AWAY}"


async def _in_flight(access: Access) -> str:
    """How many messages a broker sends while none is acknowledged."""
    driver = _driver(access, "flight")
    driver._acks = False
    async with driver.running():
        await driver.subscribe(("flight", 1))
        with _witness(access) as witness:
            for _ in range(_FLOOD):
                witness.client.publish("flight", b"", 1)
            count = 0
            try:
                while count < _FLOOD:
                    quiet_s = QUIET_S if count else WITHIN_S
                    await asyncio.wait_for(driver.messages.get(), quiet_s)
                    count += 1
            except asyncio.TimeoutError:
                return str(count)
    return f"{_FLOOD} or more"


async def _unacknowledged(access: Access) -> str:
    first = _driver(access, "again")
    first._acks = False
    async with first.running():
        await first.subscribe(("kept/#", 1))
        for number in range(3):
            first.publish("kept/b", bytes([number]), qos=1)
        await first.next()
        await first.all_done(3)
    second = _driver(access, "again")
    async with second.running():
        state = await second.phase("connected")
        if not state.session_present:
            return "no: session gone"
        again = await _what_is_kept(second)
        if sorted(message.payload for message in again) != [b"\0", b"\1", b"\2"]:
            return f"{len(again)} of 3"
        return "yes" if again[0].dup else "yes, not marked DUP"


async def _reconnect(access: Access) -> str:
    """A message in work over a reconnect: its acknowledgement counts, and it is not repeated."""
    driver = _driver(access, "rearm")
    driver._acks = False
    async with driver.running():
        await driver.subscribe(("kept/#", 1))
        driver.publish("kept/c", b"once", qos=1)
        message = await driver.next()
        await driver.all_done(1)
        pipe = driver.link._pipe
        assert pipe is not None
        pipe.abort()
        await driver.until(lambda: driver.link._pipe not in {None, pipe})
        await driver.phase("connected")
        driver.link.ack(message)
        again = await _what_is_kept(driver)
    return "yes" if not again else f"handed out {1 + len(again)} times"


CHECKS: Mapping[str, Callable[[Access], Awaitable[str]]] = {
    "speaks MQTT": _version,
    "QoS 0": lambda access: _both_ways(access, 0),
    "QoS 1": lambda access: _both_ways(access, 1),
    "retained": _retained,
    "last will": _last_will,
    "100 kB": _large,
    "properties": _properties,
    "kept while away": _while_away,
    "in flight": _in_flight,
    "repeats unacknowledged": _unacknowledged,
    "in work over a reconnect": _reconnect,
}
# What a link needs; the rest a broker may lack, and the table says so.
NEEDED = ("QoS 0", "QoS 1", "100 kB")


def row(name: str, folder: Path) -> list[str]:
    """Try everything against one broker.

    Raises:
        Absent: This machine does not have it.
    """
    with BROKERS[name](folder) as access:
        cells = [name, access.release]
        for check in CHECKS.values():
            if cells[-1] == "3.1.1":  # it need not be found out again each time
                access.session["version"] = 4
            try:
                cells.append(asyncio.run(asyncio.wait_for(check(access), WITHIN_S)))
            except (asyncio.TimeoutError, AssertionError, RuntimeError, LookupError) as error:
                cells.append(f"no ({type(error).__name__})")
        return cells


def documented() -> dict[str, list[str]]:
    """The rows that stand in the page, by broker."""
    rows = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] in BROKERS:
            rows[cells[0]] = cells
    return rows


def render(rows: Mapping[str, list[str]]) -> str:
    """The table, in the order of `BROKERS`."""
    head = ["broker", "release", *CHECKS]
    lines = [head, ["---"] * len(head), *(rows[name] for name in BROKERS if name in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def main() -> None:
    """Rewrite the rows of the brokers that are here."""
    rows = documented()
    for name in BROKERS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows[name] = row(name, Path(folder))
                sys.stdout.write(f"{name}: {rows[name][1:]}\n")
            except Absent as reason:
                sys.stdout.write(f"{name}: left as it is ({reason})\n")
    text = PAGE.read_text()
    start, end = text.index("| broker |"), text.rindex("|\n") + 2
    PAGE.write_text(text[:start] + render(rows) + text[end:])


if __name__ == "__main__":
    main()
