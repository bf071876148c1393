"""The vouching process: looks at one signature, away from the daemon, and ends.

Started as `python -I -m agent.daemon.vouch_child` by `agent.daemon.vouching`. It parses what
strangers wrote and carries `cryptography`; the daemon does neither.
"""

from __future__ import annotations

import resource
import signal
import sys

import msgspec

from agent.daemon.short_lived import end_with
from agent.daemon.vouch_messages import Answer, Question
from agent.documents.report import Failure
from agent.errors import AgentError, NotTrusted, UsageError, VouchingFailed
from agent.store.trust_files import read_trust
from agent.trust.verify import verify_bundle

# A signature takes milliseconds, and a list of 1024 files some megabytes.
CPU_S, MEMORY_BYTES = 30, 512 << 20


def main() -> None:
    """Answer the one question that stands on the input."""
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    _confine(question.parent_pid)
    sys.stdout.buffer.write(msgspec.json.encode(_answer(question)))


def _answer(question: Question) -> Answer:
    try:
        trust = read_trust(question.trust)
    except UsageError as error:
        return _failed(VouchingFailed(f"[trust] cannot be used: {error.message}", hint=error.hint))
    try:
        signed = verify_bundle(question.signature, question.manifest, trust, question.now)
    except AgentError as error:
        return _failed(error)
    return Answer(signed.key_id, signed.subject, signed.files)


def _failed(error: AgentError) -> Answer:
    reason = error.reason if isinstance(error, NotTrusted) else ""
    failure = Failure(error.code, error.message, error.hint, error.retryable)
    return Answer(failure=failure, reason=reason)


def _confine(parent_pid: int) -> None:
    """Bound what a parser could be made to take, write or run, and end with the daemon."""
    end_with(parent_pid, signal.SIGKILL)
    for limit, most in (
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (bound, bound))


if __name__ == "__main__":
    main()
