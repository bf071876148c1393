"""Deploy a pack to one device through a broker: document, blocks, and the device's verdict.

The desired document is one retained message for all slots of a device, so deploying one slot means:
read it, change that slot alone, write it back. Brokers know no compare-and-swap; two people who do
this at one moment are noticed by what the broker passes on, and the slot is put in once more.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from agent.author.broker import Broker, Received
from agent.author.offer import Offer
from agent.documents import codec
from agent.documents.deployment import MAX_DEPLOYMENT_BYTES, Deployment, Slot
from agent.documents.report import Failure, Report, SlotReport
from agent.errors import AgentError, DocumentError, UsageError
from agent.wire import blocks
from agent.wire.blocks import BlockRefused
from agent.wire.topic_rules import check_topics

# Retained messages come right after the subscription; not every broker says when that was all.
QUIET_S = 1.0
# How much longer when the device speaks of slots for which no document has come.
QUIET_MORE_S = 4.0
# Within this time another document without our slot is a race, not somebody's will.
RACE_S = 10.0
MAX_MERGES = 3
MAX_REPORT_BYTES = 256 * 1024

VerdictState = Literal[
    "active", "failed", "rolled_back", "refused", "overtaken", "timed_out", "published"
]


class Order(msgspec.Struct, frozen=True):
    """What is to be deployed where."""

    device: str
    prefix: str
    slot: str
    target: Slot
    # Names the deployment in reports; must be new each time.
    deployment: str
    # Replace the whole document, whatever it says of other slots.
    replace: bool = False
    # Wait for the verdict, not only until the device has the pack.
    wait: bool = True
    timeout_s: float = 600.0


class Published(msgspec.Struct, frozen=True):
    deployment: str


class DeviceStatus(msgspec.Struct, frozen=True):
    """The device came or went."""

    # None: the broker keeps nothing of such a device.
    online: bool | None


class Transferred(msgspec.Struct, frozen=True):
    """How much of the pack the device has."""

    done_bytes: int
    total_bytes: int


class Moved(msgspec.Struct, frozen=True):
    """The device reports a new state of the slot, or another error beside it."""

    state: str
    error: Failure | None


class Verdict(msgspec.Struct, frozen=True):
    """How it ended. `report` is the last that the device said of the slot."""

    state: VerdictState
    error: Failure | None = None
    report: SlotReport | None = None


Event = Published | DeviceStatus | Transferred | Moved | Verdict


def new_deployment_id(slot: str, offer: Offer) -> str:
    """An id that a person recognises and nobody else has."""
    return f"{slot}-{offer.manifest.version}-{secrets.token_hex(4)}"[:128]


def deploy(broker: Broker, offer: Offer, order: Order) -> Iterator[Event]:
    """Publish the document, give the device the pack, and tell what happens until the verdict.

    Args:
        broker: Connected; nobody else reads its messages meanwhile.
        offer: The pack. It is served as long as the iteration goes on.
        order: What is wanted. With a `source` other than `mqtt:` nothing is served.

    Yields:
        What happened; the last is a `Verdict`.

    Raises:
        DocumentError: The order makes no valid document.
        UsageError: It would stop slots that are not in any document here.
        LinkError: The broker refuses or is gone.
    """
    return _Delivery(broker, offer, order).run()


@dataclass
class _Delivery:
    broker: Broker
    offer: Offer
    order: Order
    now: Callable[[], float] = time.monotonic
    desired: bytes = b""
    # The document we wrote last, and the one that it was made from.
    own: bytes = b""
    base: bytes = b""
    report: Report | None = None
    # Deployments that want our slot as we do: our own and those that have kept it.
    deployments: set[str] = field(default_factory=set)
    published_at: float = 0.0
    merges: int = 0
    last: Moved | None = None
    given: set[tuple[str, int]] = field(default_factory=set)
    done_bytes: int = 0
    # Something of the device's own has come.
    seen: bool = False

    def run(self) -> Iterator[Event]:
        prefix = self.order.prefix
        # Before anything is published: a document that no device could take.
        self._checked(_merged({}, self.order))
        self.handlers: dict[str, Callable[[Received], Iterator[Event]]] = {
            f"{prefix}desired": self._on_desired,
            f"{prefix}reported": self._on_reported,
            f"{prefix}status": self._on_status,
        }
        if self._serves:
            self.server = self.offer.server()
            self.handlers[f"{prefix}{blocks.REQUEST}"] = self._on_request
        self.broker.subscribe([(topic, 1) for topic in self.handlers])
        for message in self._retained():
            # Of what was before our own document, only the device's presence is news.
            yield from (e for e in self._handle(message) if isinstance(e, DeviceStatus))
        self._check_slots_known()
        yield self._publish()
        yield from self._follow()

    def _checked(self, document: dict[str, Any]) -> bytes:
        prefix, device = self.order.prefix, self.order.device
        return check_document(document, device, prefix.partition(device)[0] or prefix)

    @property
    def _serves(self) -> bool:
        return self.order.target.source.startswith("mqtt:")

    # -- before -------------------------------------------------------------------------------

    def _retained(self) -> Iterator[Received]:
        """What the broker keeps of this device, until it has nothing more."""
        end = self.now() + QUIET_S
        extended = False
        while True:
            message = self.broker.next(end - self.now())
            if message is not None:
                yield message
            elif not extended and self._unknown_slots():
                end, extended = self.now() + QUIET_MORE_S, True
            else:
                return
            if self.desired:
                return

    def _unknown_slots(self) -> set[str]:
        if self.desired or self.report is None or self.order.replace:
            return set()
        return set(self.report.slots) - {self.order.slot}

    def _check_slots_known(self) -> None:
        unknown = self._unknown_slots()
        if unknown:
            raise UsageError(
                f"device {self.order.device} serves {', '.join(sorted(unknown))}, but the broker "
                f"keeps no document on {self.order.prefix}desired; a new one would stop them",
                hint="if that is meant, say --replace",
            )

    def _publish(self) -> Published:
        self.base = b"" if self.order.replace else self.desired
        self.own = self._checked(_merged(_parsed(self.base, self.order.prefix), self.order))
        self.deployments.add(self.order.deployment)
        self.published_at = self.now()
        self.broker.publish(f"{self.order.prefix}desired", self.own, retain=True, wait=True)
        return Published(self.order.deployment)

    # -- after --------------------------------------------------------------------------------

    def _follow(self) -> Iterator[Event]:
        end = self.now() + self.order.timeout_s
        if not self.order.wait and not self._serves:
            yield Verdict("published")
            return
        while (left_s := end - self.now()) > 0:
            message = self.broker.next(min(left_s, 1.0))
            if message is None and not self.seen:
                self.seen = True  # said once
                yield DeviceStatus(None)
            for event in self._handle(message) if message is not None else ():
                yield event
                if isinstance(event, Verdict):
                    return
        yield Verdict("timed_out", self._why_late(), self._slot_report())

    def _handle(self, message: Received) -> Iterator[Event]:
        handler = self.handlers.get(message.topic)
        self.seen = self.seen or message.topic != f"{self.order.prefix}desired"
        return handler(message) if handler is not None else iter(())

    def _why_late(self) -> Failure:
        late = f"no verdict within {self.order.timeout_s:g} s"
        if self.last is not None:
            last = f"; the device is {self.last.state}"
            detail = f": {self.last.error.message}" if self.last.error is not None else ""
            return Failure(code="timed_out", message=late + last + detail)
        return Failure(
            code="timed_out",
            message=f"{late}; device {self.order.device} has not answered this deployment",
            hint="is its agent running, connected to this broker, and is --prefix right?",
        )

    def _on_status(self, message: Received) -> Iterator[Event]:
        yield DeviceStatus(message.payload == b"online")

    def _on_desired(self, message: Received) -> Iterator[Event]:
        self.desired = message.payload
        if not self.own or message.payload == self.own:
            return
        wanted = _slot_in(message.payload, self.order.slot)
        if wanted == _slot_in(self.own, self.order.slot):
            self.deployments.add(str(_raw(message.payload).get("deployment")))
            return
        # Whoever wrote this read the document before ours was there.
        unaware = wanted in (None, _slot_in(self.base, self.order.slot))
        if unaware and self._may_merge_again():
            self.merges += 1
            yield self._publish()
            return
        yield Verdict(
            "overtaken",
            Failure(
                code="overtaken",
                message=f"another deployment has taken slot {self.order.slot}",
                hint="look at `edgeward status`, then deploy again if yours is the one",
            ),
            self._slot_report(),
        )

    def _may_merge_again(self) -> bool:
        return self.merges < MAX_MERGES and self.now() - self.published_at < RACE_S

    def _on_reported(self, message: Received) -> Iterator[Event]:
        try:
            decoded = codec.decode(
                message.payload, Report, name="reported", max_bytes=MAX_REPORT_BYTES
            )
        except DocumentError:
            return
        before, self.report = self.report, decoded.value
        if self.report.deployment not in self.deployments:
            yield from self._refused(before, message)
            return
        slot = self._slot_report()
        if slot is None or slot.wanted != self.offer.id:
            return
        moved = Moved(slot.state, slot.error)
        if moved != self.last:
            self.last = moved
            yield moved
        yield from self._progress_of(slot)
        yield from self._verdict_of(slot)

    def _refused(self, before: Report | None, message: Received) -> Iterator[Event]:
        refused = self.report.refused if self.report is not None else None
        # An old one was about somebody else's document.
        if refused is None or message.retained or not self.own:
            return
        if before is None or before.refused != refused:
            yield Verdict("refused", refused, self._slot_report())

    def _progress_of(self, slot: SlotReport) -> Iterator[Event]:
        if slot.state != "fetching" and self.done_bytes < self.offer.total_bytes:
            self.done_bytes = self.offer.total_bytes
            yield Transferred(self.done_bytes, self.offer.total_bytes)
        elif slot.progress is not None and slot.progress.done_bytes > self.done_bytes:
            self.done_bytes = min(slot.progress.done_bytes, self.offer.total_bytes)
            yield Transferred(self.done_bytes, self.offer.total_bytes)

    def _verdict_of(self, slot: SlotReport) -> Iterator[Event]:
        if slot.state in ("active", "failed", "rolled_back"):
            yield Verdict(slot.state, slot.error, slot)
        elif not self.order.wait and slot.state != "fetching":
            yield Verdict("published", None, slot)

    def _slot_report(self) -> SlotReport | None:
        return self.report.slots.get(self.order.slot) if self.report is not None else None

    # -- blocks -------------------------------------------------------------------------------

    def _on_request(self, message: Received) -> Iterator[Event]:
        try:
            request = blocks.decode_request(message.payload)
        except DocumentError:
            return
        if self.broker.unconfirmed > 2 * blocks.MAX_WINDOW:
            return  # the broker cannot keep up; the device asks again
        answer = self.server.answer(request)
        if answer is None:
            return
        if isinstance(answer, BlockRefused):
            self._refuse(answer)
            return
        try:
            for block in answer:
                self.broker.publish(f"{self.order.prefix}{blocks.DATA}", blocks.encode_block(block))
                self._count(request.file, block)
        except (AgentError, OSError) as error:
            self._refuse(BlockRefused(1, request.digest, "unreadable", str(error)[:1024]))
        yield Transferred(self.done_bytes, self.offer.total_bytes)

    def _refuse(self, refused: BlockRefused) -> None:
        self.broker.publish(f"{self.order.prefix}{blocks.REFUSED}", blocks.encode_refusal(refused))

    def _count(self, name: str, block: blocks.Block) -> None:
        if (name, block.number) not in self.given:
            self.given.add((name, block.number))
            self.done_bytes = min(self.offer.total_bytes, self.done_bytes + len(block.data))


def check_document(document: dict[str, Any], device: str, reserved: str) -> bytes:
    """Encode a desired document, refusing what a device would refuse.

    Args:
        device: The device's id.
        reserved: What the topics of all agents begin with.

    Raises:
        DocumentError: Says where and what would be right.
    """
    data = msgspec.json.encode(document)
    decoded = codec.decode(data, Deployment, name="desired", max_bytes=MAX_DEPLOYMENT_BYTES)
    check_topics(decoded.value, device=device, reserved=reserved)
    return data


def _merged(base: dict[str, Any], order: Order) -> dict[str, Any]:
    # Built from the raw document: fields that this version does not know must survive.
    slots = {**base.get("slots", {}), order.slot: msgspec.to_builtins(order.target)}
    return {**base, "schema": 1, "deployment": order.deployment, "slots": slots}


def _parsed(desired: bytes, prefix: str) -> dict[str, Any]:
    """The document that is there, if it is one."""
    if not desired:
        return {}
    try:
        codec.decode(desired, Deployment, name=f"{prefix}desired", max_bytes=MAX_DEPLOYMENT_BYTES)
    except DocumentError as error:
        raise UsageError(
            f"the document that the broker keeps is not valid: {error.message}",
            hint="say --replace to put a new one in its place; slots that it names are stopped",
        ) from None
    return _raw(desired)


def _raw(desired: bytes) -> dict[str, Any]:
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(desired, type=dict[str, Any])
    return {}


def _slot_in(desired: bytes, slot: str) -> object:
    slots = _raw(desired).get("slots")
    return slots.get(slot) if isinstance(slots, dict) else None
