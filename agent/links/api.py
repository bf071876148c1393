"""What a link must do: the one connection over which a device is managed.

A kind of link is one file here and one line in `agent.links.registry`. Whatever is at the other
end (topics, a twin, a folder), the rest of the agent sees documents only: a deployment comes in,
reports, telemetry and events go out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from agent.documents.settings import LinkSettings, Settings
from agent.errors import LinkError

if TYPE_CHECKING:  # every command reads settings, and few need an event loop
    import asyncio
    from pathlib import Path

    from agent.clouds.dialect import Command

Phase = Literal["connecting", "connected", "waiting", "refused", "stopped"]
Stream = Literal["events", "telemetry", "dead-letter"]
# Called once, later: `(True, "")` when the other end has the document, `(False, reason)` when it
# will never have it.
Done = Callable[[bool, str], None]


class Standing(msgspec.Struct, frozen=True):
    """Where a link stands.

    Attributes:
        phase: `connected`; `connecting`; `waiting` or `refused` before another attempt; `stopped`.
        last_error: Why it is not connected; None while all is well.
    """

    phase: Phase
    last_error: str | None = None


class Owner(msgspec.Struct, frozen=True):
    """Whom a link tells what happens; all calls are in the event loop, and none may raise.

    Attributes:
        desired: Takes a deployment as it came, whole or not; empty bytes where it was taken away.
            Returns what is done once it is safe to say that it was taken, None where that is now.
        command: Takes a command; `Link.answer` may follow.
        block: Takes topic and payload of the block protocol, from links that have `blocks`.
        state: Gets each change of the standing.
        thrown_away: Told what came, was too large to be looked at, and is gone.
        trouble: Told why no deployment can come although the link stands; None: it can again.
        metered: Told that the device's network is metered, or is not, where the link knows.
    """

    desired: Callable[[bytes], asyncio.Future[None] | None]
    command: Callable[[Command], None]
    block: Callable[[str, bytes], None]
    state: Callable[[Standing], None]
    thrown_away: Callable[[LinkError], None]
    trouble: Callable[[LinkError | None], None]
    metered: Callable[[bool], None] = lambda on: None


class Blocks(Protocol):
    """The way of packs in numbered blocks (`agent.wire.blocks`), where a link has one."""

    def publish(self, topic: str, payload: bytes) -> None:
        """Send at QoS 1; may be lost while the link is away."""

    def subscribe(self, filters: Iterable[tuple[str, int]]) -> None: ...

    def unsubscribe(self, filters: Iterable[str]) -> None: ...


class Link(Protocol):
    """One link. `tests/contracts/test_links.py` holds every kind to this.

    - Once connected it tells `Owner.desired` what is desired now, and later each change. Of
      several changes only the newest must come. What the owner could not save comes again.
    - It makes its connection again for ever, whatever ended it, and says in its standing why it
      has none. Nothing that the other end does makes `run` end or raise.
    - What it has taken it brings to the other end in the order of each stream, also over a loss of
      the connection, and not after `done`. What it holds is bounded: it raises `QueueFull`.
    - Who looks from outside can tell that the agent is there, and that it left.

    All methods are for the event loop's thread and return at once.
    """

    @property
    def state(self) -> Standing:
        """Where it stands."""

    @property
    def blocks(self) -> Blocks | None:
        """How packs come over this link; None where they cannot."""

    def report(self, document: bytes, done: Done) -> None:
        """Make this the report that the other end shows; a newer one may take its place unsent,
        and both are then done together.

        Raises:
            QueueFull: There is no room at this moment.
            LinkError: The other end will never take it.
        """

    def send(self, stream: Stream, document: bytes, done: Done, *, slot: str = "") -> None:
        """Send a document of a stream: one line of JSON.

        Args:
            slot: Whose dead letter it is.

        Raises:
            QueueFull: There is no room at this moment.
            LinkError: The other end will never take it.
        """

    def answer(self, command: Command, document: bytes) -> None:
        """Answer a command, if whoever gave it wants that and may have it there."""

    async def run(self) -> None:
        """Keep the link up until `stop`."""

    async def stop(self) -> None:
        """Bring out what can be brought out at once, say that the agent leaves, and end `run`.

        What is not with the other end by then is done with `(False, reason)`.
        """


class Disk(Protocol):
    """What a link may do to files of its own; `agent.store.files.Files` does it.

    All of it raises `StoreError`, and is durable on return but for `unlink` and `rename`.
    """

    def replace(self, path: Path, data: bytes, mode: int = 0o600) -> None: ...

    def append(self, path: Path, data: bytes) -> None: ...

    def rename(self, path: Path, target: Path) -> None: ...

    def unlink(self, path: Path) -> None: ...

    def make_folder(self, path: Path, mode: int = 0o755) -> None: ...

    def names(self, folder: Path) -> list[str]: ...

    def read_range(self, path: Path, offset: int, size: int) -> bytes | None: ...


class Problem(msgspec.Struct, frozen=True):
    """Something that is wrong with a setting: where, what, and what would be right.

    A `fatal` one keeps the agent from doing its work.
    """

    where: str
    wrong: str
    right: str
    fatal: bool = True


class Kind(msgspec.Struct, frozen=True):
    """A kind of link, as the registry finds it.

    Attributes:
        settings: What stands in `[link]` for it.
        address: What is at the other end, for people.
        problems: What is wrong with settings that are well formed; looks at this machine.
        make: Makes the link; `run` connects it.
    """

    settings: type[LinkSettings]
    address: Callable[[Settings], str]
    problems: Callable[[Settings], Iterator[Problem]]
    make: Callable[[Settings, Owner, Disk], Link]
