"""Who vouches for a pack, as the daemon asks it: one short-lived process for each new signature.

The daemon itself neither parses a signature nor carries `cryptography`. What serves is never asked
about: keys that change, or a clock that does, stop no model.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec

from agent import errors
from agent.control.trusting import Signer, decide, judged_at, trusts_anybody, unsigned
from agent.daemon.fetch_source import in_thread, to_the_end
from agent.daemon.vouch_messages import Answer, Question
from agent.documents.report import SlotTrust
from agent.documents.settings import Trust
from agent.store.trust_files import fingerprint

CHILD = (sys.executable, "-I", "-m", "agent.daemon.vouch_child")
DEADLINE_S = 60.0
MAX_ANSWER_BYTES = 4 << 20
# Packs and signatures that are asked about again: after the fetch, after a restart of a rollout.
MAX_REMEMBERED = 16

_ERRORS: Mapping[str, type[errors.PackError]] = {
    kind.code: kind
    for kind in (
        errors.PackInconsistent,
        errors.BundleMalformed,
        errors.SignatureInvalid,
        errors.KeyUnknown,
        errors.KeyNotYetValid,
        errors.KeyExpired,
        errors.CertificateRefused,
        errors.VouchingFailed,
    )
}

# Pack, manifest, signature and the keys' fingerprint, and the day.
_Known = tuple[str, str, str, dt.date]


class Vouched(msgspec.Struct, frozen=True):
    """A pack that is taken.

    Attributes:
        trust: What the report says of it.
        files: Name of each signed file → its digest; None where the pack is taken unsigned.
    """

    trust: SlotTrust
    files: dict[str, str] | None = None


class Vouching:
    """Judges packs by the settings. One per daemon."""

    def __init__(
        self,
        trust: Trust,
        *,
        wall: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.timezone.utc),
        command: Sequence[str] = CHILD,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """
        Args:
            trust: Whose signatures count, and what becomes of packs without one.
            wall: The wall clock.
            command: Starts the vouching process.
            deadline_s: How long it may take.
        """
        self._trust = trust
        self._wall = wall
        self._command = tuple(command)
        self._deadline_s = deadline_s
        self._known: dict[_Known, Answer] = {}

    @property
    def wants_signatures(self) -> bool:
        """Whether a source must be asked for a pack's signature at all."""
        return trusts_anybody(self._trust)

    async def judge(
        self, pack: str, manifest: bytes, signature: bytes | None, why_none: str = ""
    ) -> Vouched:
        """Take a pack, or refuse it.

        Args:
            pack: Its id.
            manifest: Its manifest, which has that digest.
            signature: Content of `model.sig`; None where there is none.
            why_none: What the source said, where it said why.

        Raises:
            NotTrusted, PackError: It is refused.
        """
        if signature is None or not self.wants_signatures:
            missing = unsigned(pack, self._trust, why_none)
            return Vouched(decide(self._trust, missing))
        answer = await self._answer(pack, manifest, signature)
        if answer.failure is not None:
            return Vouched(decide(self._trust, _error(answer)))
        return Vouched(decide(self._trust, Signer(answer.key, answer.subject)), answer.files)

    async def _answer(self, pack: str, manifest: bytes, signature: bytes) -> Answer:
        now = judged_at(self._wall())
        keys = await in_thread(fingerprint, self._trust)
        known = (pack, hashlib.sha256(signature).hexdigest(), keys, now.date())
        answer = self._known.get(known)
        if answer is None:
            question = Question(signature, manifest, self._trust, now, os.getpid())
            answer = await self._ask(msgspec.json.encode(question))
            if answer.failure is None:
                self._remember(known, answer)
        return answer

    def _remember(self, known: _Known, answer: Answer) -> None:
        self._known[known] = answer
        while len(self._known) > MAX_REMEMBERED:
            del self._known[next(iter(self._known))]

    async def _ask(self, question: bytes) -> Answer:
        """Raises `VouchingFailed` where there is no answer: no answer is no yes."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"},
            cwd="/",
        )
        # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that comes with news.
        talking = asyncio.ensure_future(_talk(process, question))
        try:
            done, _ = await asyncio.wait((talking,), timeout=self._deadline_s)
            if not done:
                raise _no_answer(f"gave no answer within {self._deadline_s:g} s")
            said = talking.result()
        finally:
            await to_the_end(asyncio.ensure_future(_end(process, talking)))
        if process.returncode != 0:
            raise _no_answer(f"ended with status {process.returncode}")
        try:
            return msgspec.json.decode(said, type=Answer)
        except msgspec.MsgspecError as error:
            raise _no_answer(f"gave an answer that cannot be read: {error}") from None


async def _talk(process: asyncio.subprocess.Process, question: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(ConnectionError):  # it died; its status says more
        process.stdin.write(question)
        await process.stdin.drain()
        process.stdin.close()
    said = b""
    while piece := await process.stdout.read(1 << 16):
        said += piece
        if len(said) > MAX_ANSWER_BYTES:
            raise _no_answer("said more than it may")
    await process.wait()
    return said


async def _end(process: asyncio.subprocess.Process, talking: asyncio.Future[bytes]) -> None:
    assert process.stdout is not None
    talking.cancel()
    await asyncio.wait((talking,))
    with suppress(ProcessLookupError):
        process.kill()
    while await process.stdout.read(1 << 16):
        pass  # what stands in the pipe: until it is read, `wait` does not return
    await process.wait()


def _no_answer(what: str) -> errors.VouchingFailed:
    return errors.VouchingFailed(
        f"the process that looks at signatures {what}",
        hint="what serves goes on serving; `edgeward verify` on a workstation judges the same pack",
    )


def _error(answer: Answer) -> errors.PackError:
    failure = answer.failure
    assert failure is not None
    kind = _ERRORS.get(failure.code, errors.PackError)
    error = kind(failure.message, hint=failure.hint)
    if isinstance(error, errors.NotTrusted):
        error.reason = answer.reason
    return error
