"""The daemon asks another process who vouches for a pack; no answer is no yes."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent import errors
from agent.daemon.vouching import Vouched, Vouching
from agent.documents.report import SlotTrust
from agent.documents.settings import KeyFile, Trust
from agent.trust.in_toto import write_statement
from agent.trust.keys import key_id
from tests.trust.signers import (
    FILES,
    KEY,
    NOW,
    OTHER_KEY,
    digest,
    digests_of,
    manifest_of,
    pem_of,
    sign_payload,
)

MANIFEST = manifest_of(FILES)
PACK = digest(MANIFEST)
SIGNED = sign_payload(write_statement(digests_of(FILES), name="pump"))


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    (tmp_path / "release.pub").write_bytes(pem_of(KEY))
    return Trust(keys=(str(tmp_path / "release.pub"),), unsigned="refuse")


def judge(vouching: Vouching, signature: bytes | None = SIGNED) -> Vouched:
    return asyncio.run(vouching.judge(PACK, MANIFEST, signature))


def saying(program: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-c", program)


def test_a_good_signature_gives_the_signer_and_what_is_signed(trust: Trust) -> None:
    vouched = judge(Vouching(trust, wall=lambda: NOW))
    assert vouched.trust == SlotTrust("signed", key_id(KEY.public_key()))
    assert vouched.files == digests_of(FILES)


def test_the_same_pack_is_looked_at_once_until_the_keys_change(trust: Trust) -> None:
    async def story() -> None:
        vouching = Vouching(trust, wall=lambda: NOW)
        first = await vouching.judge(PACK, MANIFEST, SIGNED)
        # Whoever asks another process now gets no answer.
        vouching._command = saying("raise SystemExit(3)")
        assert await vouching.judge(PACK, MANIFEST, SIGNED) == first
        Path(str(trust.keys[0])).write_bytes(pem_of(OTHER_KEY))
        with pytest.raises(errors.VouchingFailed, match="status 3"):
            await vouching.judge(PACK, MANIFEST, SIGNED)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", "status -9"),
        ("import sys; sys.stdin.read(); import os; os.kill(os.getpid(), 11)", "status -11"),
        ("import time; time.sleep(600)", "no answer within"),
        ("print('{\"files\": 1}')", "cannot be read"),
        ("while True: print('x' * 100_000)", "said more than it may"),
        ("", "cannot be read"),
    ],
    ids=["killed", "crashes", "hangs", "nonsense", "floods", "silent"],
)
def test_a_process_that_fails_is_a_refusal_that_says_how(
    trust: Trust, program: str, words: str
) -> None:
    vouching = Vouching(trust, command=saying(program), deadline_s=2.0)
    with pytest.raises(errors.VouchingFailed, match=words) as raised:
        judge(vouching)
    assert raised.value.retryable


def test_a_fetch_that_is_cancelled_leaves_no_process(trust: Trust, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    program = f"import os, time; open({str(told)!r}, 'w').write(str(os.getpid())); time.sleep(600)"

    async def story() -> int:
        task = asyncio.ensure_future(
            Vouching(trust, command=saying(program)).judge(PACK, MANIFEST, SIGNED)
        )
        while not (told.exists() and told.read_text()):
            await asyncio.wait((task,), timeout=0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return int(told.read_text())

    with pytest.raises(ProcessLookupError):
        os.kill(asyncio.run(story()), 0)


def test_a_clock_in_1970_is_not_believed_and_a_key_that_is_over_signs_nothing_new(
    trust: Trust, tmp_path: Path
) -> None:
    file = str(trust.keys[0])
    begun = Trust(keys=(KeyFile(file, not_before=dt.date(2026, 1, 1)),), unsigned="refuse")
    over = Trust(keys=(KeyFile(file, not_after=dt.date(2026, 1, 1)),), unsigned="refuse")
    in_1970 = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
    assert judge(Vouching(begun, wall=lambda: in_1970)).trust.state == "signed"
    with pytest.raises(errors.KeyExpired):
        judge(Vouching(over, wall=lambda: in_1970))


def test_where_no_key_is_named_no_signature_is_asked_for_or_looked_at() -> None:
    allowed = Vouching(Trust(unsigned="allow"), command=("/nonexistent",))
    assert not allowed.wants_signatures
    assert judge(allowed, b"whatever").trust == SlotTrust("unsigned")
    with pytest.raises(errors.Unsigned, match="knows no key"):
        judge(Vouching(Trust(unsigned="refuse"), command=("/nonexistent",)), b"whatever")


def test_the_daemon_itself_does_not_carry_cryptography() -> None:
    program = "import agent.daemon.app, sys; raise SystemExit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
