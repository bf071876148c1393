"""The life of a message inside the daemon: one lane per slot, without sockets and without a clock.

A message waits, is in flight (the worker has it), then its answer is handed over to the bus; only
then is it acknowledged. What a window still needs is held. Nothing here touches a payload.

    arrived ─► waiting ─► in flight ─► handing over ─► acknowledged
                  ▲           │   └────► held ───────────┘ (a window released it)
                  └── died ◄──┘ retried once, alone; then set aside

Bounds: `max_in_flight` messages are with the worker or being handed over. At QoS 1 the broker's
receive maximum bounds what waits; at QoS 0 as many may wait, and the slot says which one gives way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import NamedTuple, Protocol

import msgspec

from agent.control.heat import Easing, Pace
from agent.daemon.held import HeldBudget
from agent.daemon.meters import SlotMeters
from agent.documents.deployment import Slot
from agent.errors import AgentError, BadOutput, WorkerError
from agent.wire import frames, topics
from agent.wire.mqtt.options import MAX_PACKET_BYTES

# Messages of open windows kept for a worker that has to start again, with what each takes here
# beside its bytes: a window may hold very many very small ones.
MAX_HELD_BYTES = 32 * 1024 * 1024
HELD_OVERHEAD_BYTES = 448
# Payloads that are with the worker at a time, however few messages they are: while it is slow, each
# is here twice, as the bus delivered it and as the socket has not taken it yet.
MAX_IN_FLIGHT_BYTES = 4 * 1024 * 1024
# Payloads that wait: a broker counts messages and not bytes, and some count beyond what they were
# told.
MAX_WAITING_BYTES = 16 * 1024 * 1024


class Inbound(Protocol):
    """What the lane reads of a message that a bus delivered."""

    @property
    def topic(self) -> str: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def qos(self) -> int: ...
    @property
    def dup(self) -> bool: ...
    @property
    def response_topic(self) -> str | None: ...
    @property
    def correlation_data(self) -> bytes | None: ...


class _Kept(NamedTuple):
    """What a replay needs of a message that is acknowledged; its properties may have been large."""

    topic: str
    payload: bytes
    qos: int
    dup: bool
    response_topic: str | None
    correlation_data: bytes | None


class Handed(Enum):
    """What became of a prediction that was given to the bus."""

    SENT = "sent"
    # The broker will not take it, now or later.
    REFUSED = "refused"
    # The connection ended first, or the agent stops: the sensor's message comes again.
    LOST = "lost"


Done = Callable[[Handed, str], None]


class Pending(msgspec.Struct):
    """One message on its way through a lane."""

    sequence: int
    message: Inbound
    topic: bytes
    # Where its prediction goes; empty where that is no topic the agent may publish to.
    output: str
    received_at: float
    # Attempts that ended with a dead worker or a bad output.
    tries: int = 0
    acknowledged: bool = False


class DeadLetter(msgspec.Struct, frozen=True):
    """A message that was set aside, and why."""

    slot: str
    topic: str
    payload: bytes
    code: str
    reason: str
    # The worker's own error document, where it sent one.
    detail: bytes = b""
    # How long the payload is, where it was thrown away unread.
    size_bytes: int | None = None


def _nothing(*_: object) -> None:
    """An effect that nobody is wired to yet."""


class Effects(msgspec.Struct):
    """Everything a lane causes; the bus and the slot's server wire it."""

    dead_letter: Callable[[DeadLetter], None]
    # topic, payload, message answered, retain, and what to call when it is handed over.
    publish: Callable[[str, bytes, Pending, bool, Done], None] = _nothing
    acknowledge: Callable[[Inbound], None] = _nothing
    # The bus may deliver this message again: nobody is working on it any more.
    forget: Callable[[Inbound], None] = _nothing
    # Whether the bus can take no further predictions at the moment.
    congested: Callable[[], bool] = lambda: False
    # What is published and acknowledged between these two goes out in one write.
    hold: Callable[[], None] = _nothing
    release: Callable[[], None] = _nothing
    # Bytes for the worker; called once per batch.
    send: Callable[[bytes], None] = _nothing
    # The worker gave an answer that its manifest does not allow: replace it.
    replace_worker: Callable[[AgentError], None] = _nothing
    # Have the bus deliver again what was forgotten.
    ask_again: Callable[[], None] = _nothing
    # There is room for a waiting message: call `flush` soon, once for many calls.
    flush_soon: Callable[[], None] = _nothing
    # Call `flush` after so many seconds; a later call replaces an earlier one.
    flush_after: Callable[[float], None] = _nothing


class Lane(msgspec.Struct):
    """One slot's messages. `now` is monotonic seconds throughout."""

    name: str
    device: str
    spec: Slot
    effects: Effects
    meters: SlotMeters
    # Topics below this prefix are those of agents.
    reserved: str
    budget: HeldBudget = msgspec.field(default_factory=HeldBudget)
    waiting: deque[Pending] = msgspec.field(default_factory=deque)
    in_flight: dict[int, Pending] = msgspec.field(default_factory=dict)
    handing_over: int = 0
    held: dict[int, Pending] = msgspec.field(default_factory=dict)
    # Those of them that are not acknowledged, oldest first.
    _owed: dict[int, Pending] = msgspec.field(default_factory=dict)
    # How many messages go one at a time, after a worker died with several.
    careful: int = 0
    open: bool = False
    last_progress: float = 0.0
    _out: list[bytes] = msgspec.field(default_factory=list)
    _next: int = 1
    _held_bytes: int = 0
    _in_flight_bytes: int = 0
    _waiting_bytes: int = 0
    # What comes at QoS 1 is left to the broker, until what is here has been dealt with.
    _deferring: bool = False
    # Messages of open windows that this worker was given again, and has not answered.
    _replayed: set[int] = msgspec.field(default_factory=set)
    # The message whose answer is why the worker is being replaced.
    _culprit: Pending | None = None
    _outputs: dict[str, str] = msgspec.field(default_factory=dict)
    # While the slot's policy says so: how fast messages may go, and of how many one is run.
    _pace: Pace | None = None
    _one_in: int = 1
    # How many messages of a topic are still skipped.
    _to_skip: dict[str, int] = msgspec.field(default_factory=dict)

    # -- messages in ------------------------------------------------------------------------

    def arrived(self, message: Inbound, now: float) -> None:
        """Take one message from the bus; `flush` sends what may go."""
        topic = message.topic
        # Worked out now: when a new specification is served, the wildcards may be others.
        output = self._outputs.get(topic)
        if output is None:
            output = self._output_topic(topic)
            if output is None:
                # Asked for by an earlier specification, which the broker has not left yet.
                self.meters.unrouted += 1
                self.effects.acknowledge(message)
                return
        self.meters.received += 1
        if message.dup:
            self.meters.redelivered += 1
        elif self._one_in > 1 and self._skips(topic):
            self.meters.skipped += 1
            self.effects.acknowledge(message)
            return
        if self.waiting and message.qos == 0 and self._is_full():
            self.meters.dropped += 1
            if self.spec.input.drop == "drop_newest" or not self._drop_oldest():
                return
        if message.qos and self._defers():
            self.effects.forget(message)
            return
        self.waiting.append(Pending(self._next, message, topic.encode(), output, now))
        self._waiting_bytes += len(message.payload)
        self._next += 1

    def _defers(self) -> bool:
        """Whether a message at QoS 1 is left to the broker: too much waits, or others that came
        before it were left there too."""
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._deferring = True
        return self._deferring

    def ask_again_if_idle(self) -> None:
        """Have what was left to the broker delivered again, once there is room; call this every
        second or so."""
        if self._deferring and not (self.waiting or self.in_flight or self.handing_over):
            self._deferring = False
            self.effects.ask_again()

    def too_large(self, topic: str, size_bytes: int) -> None:
        """Set aside a message that the connection threw away unread."""
        self.meters.received += 1
        self.meters.dead_letters += 1
        self.effects.dead_letter(
            DeadLetter(
                self.name,
                topic,
                b"",
                "too_large",
                f"its packet is larger than the {MAX_PACKET_BYTES:,} bytes that the agent takes",
                size_bytes=size_bytes,
            )
        )

    def _skips(self, topic: str) -> bool:
        """Whether a message is skipped: of each topic one is run, then so many are not."""
        left = self._to_skip.get(topic, 0)
        topics.remember(self._to_skip, topic, left - 1 if left else self._one_in - 1)
        return left > 0

    def _is_full(self) -> bool:
        if self._pace is not None:
            # What would wait longer than a second is old news to whoever sends at QoS 0.
            return len(self.waiting) >= self._pace.room
        # As many may wait as may be in flight; one read can bring both.
        busy = len(self.in_flight) + self.handing_over
        many = len(self.waiting) + busy >= 2 * self.spec.input.max_in_flight
        return many or self._waiting_bytes > MAX_WAITING_BYTES

    def _drop_oldest(self) -> bool:
        for pending in self.waiting:
            if pending.message.qos == 0:
                self.waiting.remove(pending)
                self._waiting_bytes -= len(pending.message.payload)
                return True
        return False

    def flush(self, now: float) -> None:
        """Send waiting messages to the worker, as far as the bounds allow, in one write."""
        if not self.open or (self.waiting and self.effects.congested()):
            return
        limit = self.spec.input.max_in_flight
        while self.waiting and len(self.in_flight) + self.handing_over < limit:
            if self.in_flight and (self.careful or self._in_flight_bytes >= MAX_IN_FLIGHT_BYTES):
                break
            if self._pace is not None and not self._may_go(self._pace, now):
                break
            pending = self.waiting.popleft()
            self._waiting_bytes -= len(pending.message.payload)
            self._send(pending, now)
        self._write()

    def _may_go(self, pace: Pace, now: float) -> bool:
        wait_s = pace.wait_s(now)
        if wait_s > 0:
            self.effects.flush_after(wait_s)
            return False
        pace.went(now)
        return True

    def _send(self, pending: Pending, now: float) -> None:
        message = pending.message
        frame = frames.encode_message(
            pending.sequence, pending.topic, message.payload, message.correlation_data
        )
        if not self.in_flight:
            self.last_progress = now
        self.in_flight[pending.sequence] = pending
        self._in_flight_bytes += len(message.payload)
        self._out.append(frame)

    def _write(self) -> None:
        out = self._out
        if out:
            self.effects.send(out[0] if len(out) == 1 else b"".join(out))
            out.clear()

    # -- answers ----------------------------------------------------------------------------

    def answered(self, frame: frames.Frame, now: float) -> bool:
        """Take one RESULT from the worker; False where it answers no message that waits for one.

        Raises:
            WorkerError: The frame cannot be read, or answers nothing that was asked; the worker
                must be replaced.
        """
        result = frames.decode_result(frame)
        pending = self.in_flight.pop(frame.sequence, None)
        if pending is None and frame.sequence not in self._replayed:
            # Taken for progress, it would put the deadline of a real message off for ever.
            raise WorkerError(f"a worker answered message {frame.sequence}, which it was not given")
        self.last_progress = now
        if pending is None:
            # A replay: what this worker's windows do not need any more may go.
            self._replayed.discard(frame.sequence)
            for sequence in result.released:
                self._let_go(sequence)
            return False
        self._in_flight_bytes -= len(pending.message.payload)
        outcome = frame.flags & frames.OUTCOME_MASK
        if frame.flags & frames.BAD_OUTPUT:
            self._bad_output(pending, result.released, bytes(frame.payload))
            return True
        if self.careful:
            self.careful -= 1
        self.meters.answered(outcome, result, now - pending.received_at)
        if pending.sequence not in result.released:
            self._hold(pending)
        if outcome == frames.ABSORBED:
            self._release(result.released, pending)
        elif outcome == frames.REJECTED and not frame.flags & frames.HAS_ID:
            self._set_aside(pending, "bad_input", "the message was refused", bytes(frame.payload))
            self._release(result.released, pending)
        else:
            self._hand_over(pending, bytes(frame.payload), result)
        return True

    def _hand_over(self, pending: Pending, payload: bytes, result: frames.Result) -> None:
        reply = pending.message.response_topic or result.reply_topic
        reply = reply if reply and self._may_publish_to(reply) else ""
        topic = reply or pending.output
        if not topic:
            self._set_aside(pending, "publish_refused", "its output is no topic for predictions")
            self._release(result.released, pending)
            return
        self.handing_over += 1

        def handed_over(outcome: Handed, reason: str) -> None:
            self.handing_over -= 1
            if self.waiting:
                self.effects.flush_soon()
            if outcome is Handed.SENT:
                self.meters.sent += 1
                self._release(result.released, pending)
                return
            self.meters.unsent += 1
            if outcome is Handed.LOST:
                self.effects.forget(pending.message)
                return
            self._set_aside(pending, "publish_refused", reason)
            self._release(result.released, pending)

        # A reply is for one who asked: kept, it would be the next one's answer too.
        retain = self.spec.output.retain and not reply
        self.effects.publish(topic, payload, pending, retain, handed_over)

    def _may_publish_to(self, topic: str) -> bool:
        # Whoever can send a sensor message must not make the agent write an agent's documents.
        return topics.is_name(topic) and not topic.startswith((self.reserved, "$"))

    def _output_topic(self, topic: str) -> str | None:
        """Where answers to a topic's messages go; None where they are not for this slot."""
        wildcards = topics.match(self.spec.input.topic, topic)
        if wildcards is None:
            return None
        found = topics.fill(
            self.spec.output.topic, slot=self.name, device=self.device, wildcards=wildcards
        )
        if not self._may_publish_to(found):
            found = ""
        topics.remember(self._outputs, topic, found)
        return found

    def _release(self, released: Iterable[int], answered: Pending) -> None:
        for sequence in released:
            if sequence == answered.sequence:
                self._acknowledge(answered)
            else:
                self._let_go(sequence)

    def _acknowledge(self, pending: Pending) -> None:
        if not pending.acknowledged:
            pending.acknowledged = True
            self.effects.acknowledge(pending.message)

    # -- windows ----------------------------------------------------------------------------

    def _let_go(self, sequence: int) -> None:
        """No window needs this message any more."""
        pending = self.held.pop(sequence, None)
        if pending is not None:
            self._held_bytes -= _held_size(pending)
            if self._owed.pop(sequence, None) is not None:
                self.budget.used -= 1
            self._acknowledge(pending)

    def _hold(self, pending: Pending) -> None:
        """Keep a message that an open window needs, unacknowledged as far as the bounds allow."""
        self.held[pending.sequence] = pending
        self._held_bytes += _held_size(pending)
        if not pending.acknowledged:
            self._owed[pending.sequence] = pending
            self.budget.used += 1
        while self.budget.used > self.budget.limit and self.acknowledge_oldest_held():
            pass
        while self._held_bytes > MAX_HELD_BYTES:
            self.meters.state_lost += 1
            self._let_go(next(iter(self.held)))

    def acknowledge_oldest_held(self) -> bool:
        """Acknowledge a message that a window still needs; False where there is none.

        From then on only this process remembers it: a crash of the daemon costs it.
        """
        sequence = next(iter(self._owed), None)
        if sequence is None:
            return False
        oldest = self._owed.pop(sequence)
        self.budget.used -= 1
        self.meters.acknowledged_early += 1
        self._acknowledge(oldest)
        before = _held_size(oldest)
        message = oldest.message
        oldest.message = _Kept(
            message.topic, message.payload, message.qos, message.dup, None, message.correlation_data
        )
        self._held_bytes += _held_size(oldest) - before
        return True

    # -- the worker -------------------------------------------------------------------------

    def worker_ready(self, now: float) -> None:
        """A worker is there: rebuild its windows, then send what waits."""
        self._replayed = set(self.held)
        for pending in self.held.values():
            message = pending.message
            self._out.append(
                frames.encode_message(
                    pending.sequence,
                    pending.topic,
                    message.payload,
                    message.correlation_data,
                    replay=True,
                )
            )
        self.open = True
        self.last_progress = now
        self.flush(now)
        self._write()

    def worker_gone(self, why: AgentError) -> None:
        """The worker died (or is being replaced): everything it had goes back to the front.

        Which of several messages killed it is not known, so they are tried again one at a time; a
        message that was alone when its worker died a second time is set aside.
        """
        self.open = False
        culprit, self._culprit = self._culprit, None
        lost = list(self.in_flight.values())
        self.in_flight.clear()
        self._in_flight_bytes = 0
        suspects = lost if culprit is None else [culprit]
        for pending in suspects:
            pending.tries += 1
        for pending in reversed(lost):
            if pending.tries > 1 and suspects == [pending]:
                self.careful = max(0, self.careful - 1)
                self._set_aside(pending, why.code, why.message)
                self._acknowledge(pending)
                self._forget_window(pending.topic)
            else:
                self.meters.retried += 1
                self.waiting.appendleft(pending)
                self._waiting_bytes += len(pending.message.payload)
                self.careful = max(self.careful, len(suspects))

    def _bad_output(self, pending: Pending, released: Iterable[int], detail: bytes) -> None:
        self.meters.bad_outputs += 1
        if pending.tries:
            self.open = False
            self.careful = max(0, self.careful - 1)
            self._set_aside(pending, "bad_output", "the model's answer is not valid", detail)
            self._acknowledge(pending)
            # Readings that the window had moved on from would spoil the next answer too.
            self._release(released, pending)
        else:
            self.in_flight = {pending.sequence: pending, **self.in_flight}
            self._in_flight_bytes += len(pending.message.payload)
            self._culprit = pending
        self.effects.replace_worker(BadOutput("its answer was not what the manifest says"))

    def _forget_window(self, topic: bytes) -> None:
        """Let a source begin anew: its open window may be what no worker survives."""
        held = [sequence for sequence, pending in self.held.items() if pending.topic == topic]
        self.meters.state_lost += bool(held)
        for sequence in held:
            self._let_go(sequence)

    def close(self) -> None:
        """Send nothing more to this worker; what is in flight it may still answer."""
        self.open = False

    @property
    def largest_in_flight_bytes(self) -> int:
        """Of the largest payload that the worker has; not to be asked for each message."""
        return max((len(one.message.payload) for one in self.in_flight.values()), default=0)

    def overdue(self, now: float, deadline_s: float) -> bool:
        """Whether the worker has been silent on one message for longer than it may."""
        return bool(self.in_flight) and now - self.last_progress > deadline_s

    def _set_aside(self, pending: Pending, code: str, reason: str, detail: bytes = b"") -> None:
        self.meters.dead_letters += 1
        message = pending.message
        self.effects.dead_letter(
            DeadLetter(self.name, message.topic, message.payload, code, reason, detail)
        )

    # -- changes ----------------------------------------------------------------------------

    def ease(self, easing: Easing | None, now: float) -> None:
        """Do less with the messages from now on; None: serve as always."""
        rate = easing.rate_per_s if easing is not None else 0.0
        self._pace = Pace(rate) if rate else None
        self._one_in = easing.one_in if easing is not None else 1
        self._to_skip.clear()
        if self._pace is not None:
            while self._drops_stale(self._pace.room):
                self.meters.dropped += 1
        self.flush(now)

    def _drops_stale(self, room: int) -> bool:
        return len(self.waiting) > room and self._drop_oldest()

    def retarget(self, spec: Slot) -> None:
        """Serve another specification from the next message on."""
        self.spec = spec
        self._outputs.clear()

    def give_up(self, *, for_good: bool) -> None:
        """Work on nothing any more.

        Args:
            for_good: The slot is gone, and so is whoever wanted these answers: they are
                acknowledged, or they would fill the broker's window. Else the agent stops, and
                what is not answered stays with the broker for the next start.
        """
        self.budget.used -= len(self._owed)
        self._owed.clear()
        for pending in (*self.waiting, *self.in_flight.values(), *self.held.values()):
            if pending.acknowledged:
                continue
            if for_good:
                self.meters.dropped += 1
                self._acknowledge(pending)
            else:
                self.effects.forget(pending.message)
        self.waiting.clear()
        self._waiting_bytes = 0
        self.in_flight.clear()
        self._in_flight_bytes = 0
        self.held.clear()
        self._held_bytes = 0
        self.open = False


def _held_size(pending: Pending) -> int:
    message = pending.message
    return (
        HELD_OVERHEAD_BYTES
        + len(message.payload)
        + 2 * len(pending.topic)
        + len(message.response_topic or "")
        + len(message.correlation_data or b"")
    )
