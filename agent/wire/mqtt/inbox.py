"""The broker's QoS 1 messages from their arrival until we acknowledge them."""

from __future__ import annotations

import enum

from agent.wire.mqtt.packets import Message


class Arrival(enum.Enum):
    """What a message that arrived is."""

    NEW = "new"  # to be handed out
    REPEAT = "repeat"  # its first instance is still being worked on
    DONE = "done"  # its first instance was acknowledged while there was no connection


class Inbox:
    """Matches acknowledgements and repeats with the first instance of each message.

    A message that is still being worked on when the connection ends is *stale*: its acknowledgement
    cannot be sent. In a resumed session the broker repeats it under its packet identifier, marked
    DUP; the repeat stands for the first instance and is not handed out again. A PUBACK that was
    sent but lost cannot be matched so: the broker may have given the identifier to another message
    by then, and taking that one for a repeat would lose it.
    """

    def __init__(self) -> None:
        self.unacked: dict[int, Message] = {}  # of this connection, by packet identifier
        self.stale: dict[int, Message] = {}  # of earlier ones
        self._acked_away: set[int] = set()

    def match(self, message: Message) -> Arrival:
        """Say what a message is; needed only for one marked DUP, or while any is stale.

        A new one is the caller's to put into `unacked`; a repeat is put there from here.
        """
        packet_id = message.packet_id
        if message.dup:
            first = self.unacked.get(packet_id)
            if first is not None and _same(first, message):
                return Arrival.REPEAT
        first = self.stale.pop(packet_id, None)
        done = packet_id in self._acked_away
        self._acked_away.discard(packet_id)
        if first is None or not message.dup or not _same(first, message):
            return Arrival.NEW
        if done:
            return Arrival.DONE
        self.unacked[packet_id] = first
        return Arrival.REPEAT

    def ack(self, message: Message) -> bool:
        """Note an acknowledgement; True when PUBACK is to be sent now."""
        packet_id = message.packet_id
        if self.unacked.get(packet_id) is message:
            del self.unacked[packet_id]
            return True
        if self.stale.get(packet_id) is message:
            self._acked_away.add(packet_id)
        return False

    def forget(self, message: Message) -> None:
        """Nobody works on this message any more: a repeat of it is handed out again."""
        for known in (self.unacked, self.stale):
            if known.get(message.packet_id) is message:
                del known[message.packet_id]
                self._acked_away.discard(message.packet_id)

    def interrupt(self) -> None:
        """The connection is gone."""
        # What was acknowledged before this connection and not repeated on it will not come again.
        for packet_id in self._acked_away:
            self.stale.pop(packet_id, None)
        self._acked_away.clear()
        self.stale.update(self.unacked)
        self.unacked.clear()

    def restart(self) -> None:
        """The broker has no session of ours and will repeat nothing."""
        self.stale.clear()
        self._acked_away.clear()


def _same(first: Message, repeat: Message) -> bool:
    return (
        first.topic == repeat.topic
        and first.payload == repeat.payload
        and first.response_topic == repeat.response_topic
        and first.correlation_data == repeat.correlation_data
    )
