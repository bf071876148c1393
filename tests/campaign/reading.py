"""What a model file says of itself, read as `edgeward pack` reads it, by a fork in place of a new
interpreter: the same program within the same limits, in a tenth of the time."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

import msgspec

from agent.author import pack_child
from agent.author.pack_child import Described

DEADLINE_S = 15.0
_READ_BYTES = 65536
_MAX_BYTES = 16 * 1024 * 1024


class Told(NamedTuple):
    """What the child said; nothing where it did not end as it should.

    `status` is as os.waitstatus_to_exitcode gives it, None where the child ran past its deadline.
    """

    described: Described | None
    status: int | None
    words: str
    took_s: float


def read_model(path: Path) -> Told:
    """Describe a model file in a child."""
    started = time.monotonic()
    out, err = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _become_child(path, out[1], err[1])
    for end in (out[1], err[1]):
        os.close(end)
    said, words, in_time = _collect(out[0], err[0], started + DEADLINE_S)
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status) if in_time else None
    took_s = time.monotonic() - started
    try:
        described = msgspec.json.decode(said, type=Described) if code == 0 else None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Told(None, code, f"its answer cannot be read: {error}", took_s)
    return Told(described, code, words.decode("utf-8", "replace"), took_s)


def _become_child(path: Path, out: int, err: int) -> NoReturn:
    status = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.argv = ["pack_child", str(path)]
        pack_child.main()
        sys.stdout.flush()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(status)


def _collect(out: int, err: int, deadline: float) -> tuple[bytes, bytes, bool]:
    """Read both pipes to their ends; False: the time is over."""
    said = {out: bytearray(), err: bytearray()}
    poll = select.poll()
    open_ends = {out, err}
    for end in open_ends:
        poll.register(end, select.POLLIN)
    in_time = True
    while open_ends and in_time:
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        in_time = bool(ready)
        for end, _ in ready:
            chunk = os.read(end, _READ_BYTES)
            said[end] += chunk
            if not chunk or len(said[end]) > _MAX_BYTES:
                poll.unregister(end)
                open_ends.discard(end)
    for end in (out, err):
        os.close(end)
    return bytes(said[out]), bytes(said[err]), in_time
