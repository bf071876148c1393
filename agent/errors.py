"""Every error that crosses a module, in one tree.

AgentError
├── DocumentError          a document (manifest, deployment, settings …) is not what it must be
├── PackError              a pack contradicts itself or its manifest
│   ├── DigestMismatch     bytes are not those that were promised
│   ├── PackInconsistent   the manifest and the signature do not speak of the same files
│   └── NotTrusted         nobody whom the settings name vouches for the pack
│       ├── Unsigned           it has no signature
│       ├── BundleMalformed    its signature file is not of the one form that is taken
│       ├── SignatureInvalid   the signature is not one of these bytes by this key
│       ├── KeyUnknown         signed, but by nobody whom the settings name
│       ├── KeyNotYetValid     signed before the time of the key or certificate begins
│       ├── KeyExpired         the time of the key or certificate is over
│       ├── CertificateRefused the signer's certificate is not one that may sign packs
│       └── VouchingFailed     whether anybody vouches for it could not be found out
├── StoreError
│   ├── NoSpace            the disk or the quota is full
│   └── StoreCorrupt       what was stored is missing or altered
├── FetchError             the pack cannot be obtained (from here, for now)
│   ├── SourceRefused      the source says no; asking again will not help
│   ├── SourceExpired      the address is no longer good; another one is needed
│   ├── SourceMissing      the source does not have it, or not yet
│   ├── FetchPostponed     the settings say: not now
│   └── ClockWrong         certificates cannot be judged by this device's clock
├── LinkError
│   ├── LinkRefused        the peer answered and refused us
│   ├── LinkUnreachable    no answer
│   └── QueueFull          as much as a link holds waits already
├── ModelError
│   ├── ModelRejected      the file or the runtime says this model cannot run here
│   ├── SelfTestFailed     it runs, but not with the answers it promised
│   ├── BadInput           one message does not fit the model
│   └── BadOutput          the model's answer is not what its manifest says
├── RuntimeUnavailable     an inference library is absent or does not import
├── AcceleratorFailed      what computes beside the CPU is absent, taken, or does not answer
├── WorkerError
│   ├── WorkerExited       the process is gone (signal or exit status says how)
│   ├── WorkerTimedOut     no answer within its deadline
│   └── MemoryLimit        it asked for more memory than it may have
├── IsolationUnavailable   this machine cannot confine a worker as far as the settings demand
└── UsageError             a person asked for something that cannot be

`ImpossibleEvent` stands outside, so that no handler for expected errors swallows a bug.
Each class has a stable `code` (public: reports and exit messages carry it) and says whether the
same attempt, repeated later, can succeed (`retryable`). `docs/errors.md` lists them; a test
compares the two.
"""

from __future__ import annotations

from typing import ClassVar


class AgentError(Exception):
    """An expected failure: what failed, on what, why, and what to do about it."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class DocumentError(AgentError):
    """A value in a document is not what the schema asks for."""

    code = "bad_document"

    def __init__(self, path: str, expected: str, got: str, *, hint: str = "") -> None:
        super().__init__(f"{path}: expected {expected}, got {got}", hint=hint)
        self.path = path
        self.expected = expected
        self.got = got


class PackError(AgentError):
    code = "bad_pack"


class DigestMismatch(PackError):
    code = "digest_mismatch"


class PackInconsistent(PackError):
    code = "pack_inconsistent"


class NotTrusted(PackError):
    """Nobody whom the settings name vouches for a pack.

    Args:
        reason: A stable word for the rule that was broken, where a code stands for several;
            `docs/trust.md` lists them.
    """

    code = "not_trusted"

    def __init__(self, message: str, *, hint: str = "", reason: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class Unsigned(NotTrusted):
    code = "unsigned"


class BundleMalformed(NotTrusted):
    code = "bundle_malformed"


class SignatureInvalid(NotTrusted):
    code = "signature_invalid"


class KeyUnknown(NotTrusted):
    code = "key_unknown"


class KeyNotYetValid(NotTrusted):
    code = "key_not_yet_valid"
    retryable = True


class KeyExpired(NotTrusted):
    code = "key_expired"


class CertificateRefused(NotTrusted):
    code = "certificate_refused"


class VouchingFailed(NotTrusted):
    code = "vouching_failed"
    retryable = True


class StoreError(AgentError):
    code = "store_failed"


class NoSpace(StoreError):
    code = "no_space"
    retryable = True


class StoreCorrupt(StoreError):
    code = "store_corrupt"
    retryable = True


class FetchError(AgentError):
    code = "fetch_failed"
    retryable = True
    # Set by whoever knows: something has come in this attempt.
    progressed = False


class SourceRefused(FetchError):
    code = "source_refused"
    retryable = False


class SourceExpired(FetchError):
    code = "source_expired"


class SourceMissing(FetchError):
    code = "source_missing"


class FetchPostponed(FetchError):
    code = "fetch_postponed"


class ClockWrong(FetchError):
    code = "tls_clock"


class LinkError(AgentError):
    code = "link_failed"
    retryable = True


class LinkRefused(LinkError):
    code = "link_refused"


class LinkUnreachable(LinkError):
    code = "link_unreachable"


class QueueFull(LinkError):
    code = "queue_full"


class ModelError(AgentError):
    code = "model_failed"


class ModelRejected(ModelError):
    code = "model_rejected"


class SelfTestFailed(ModelError):
    code = "self_test_failed"


class BadInput(ModelError):
    code = "bad_input"


class BadOutput(ModelError):
    code = "bad_output"


class RuntimeUnavailable(AgentError):
    code = "runtime_unavailable"


class AcceleratorFailed(AgentError):
    code = "accelerator_failed"


class WorkerError(AgentError):
    code = "worker_failed"


class WorkerExited(WorkerError):
    code = "worker_exited"


class WorkerTimedOut(WorkerError):
    code = "worker_timed_out"


class MemoryLimit(WorkerError):
    code = "memory_limit"


class IsolationUnavailable(AgentError):
    code = "isolation_unavailable"


class UsageError(AgentError):
    code = "usage"


class ImpossibleEvent(RuntimeError):
    """A state machine got an event that its table has no row for: a bug, never bad data."""


def retold(code: str, message: str, hint: str, *, otherwise: type[AgentError]) -> AgentError:
    """Make the error that another process has told of by its code.

    Args:
        code: Of one of the classes here.
        message: As it was told; nobody has looked at it.
        hint: The same.
        otherwise: The class where nobody here has that code.
    """
    found = (kind for kind in globals().values() if isinstance(kind, type))
    kinds = {kind.code: kind for kind in found if issubclass(kind, AgentError)}
    kind = kinds.get(code, otherwise)
    # Only the base class takes a ready sentence; some kinds build theirs from parts.
    error = kind.__new__(kind)
    AgentError.__init__(error, message, hint=hint)
    return error
