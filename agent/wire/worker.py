"""The JSON objects that the daemon (or a workstation's command) and a worker exchange.

The order of a conversation: LOAD → READY or FAILED; then MESSAGE → RESULT, one each, in order,
until STOP or the end of the socket. A LOAD with `probe` set is answered by PROBED (or FAILED) in
place of READY; then MEASURE → MEASURED as often as wanted, and the process ends with the socket.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from agent.documents.deployment import Share
from agent.documents.device import RuntimeFacts
from agent.documents.report import WORKER_UID, Isolation, Placement
from agent.errors import WorkerError

T = TypeVar("T", bound=msgspec.Struct)

# The largest encoded prediction, and the largest frame of a worker: its sequences come on top.
MAX_PREDICTION_BYTES = 8 * 1024 * 1024
MAX_ANSWER_BYTES = 12 * 1024 * 1024
# The policy by which a process compiles what is to be served by another one.
COMPILES_AS = {"strict": "compile", "gpu": "compile-gpu"}


class Load(msgspec.Struct, frozen=True, omit_defaults=True):
    """Load one variant of an unpacked pack and get ready to serve it."""

    directory: str
    pack: str
    variant: str
    slot: str = ""
    # What shall compute, with its options; nothing: the runtime's CPU kernels.
    provider: str = ""
    options: dict[str, str] = {}
    threads: int = 1
    memory_mb: int = 512
    share: Share = Share()
    # Run the self-test, then let yourself be measured, in place of serving.
    probe: bool = False
    # The slot's `settings`: they override options of pipeline steps by name.
    settings: dict[str, str | int | float | bool] = {}
    # Obey `reply_to` in JSON payloads.
    reply_to: bool = False
    require_isolation: str = "basic"
    # How much more than computing the worker may do: a name of `agent.worker.policies`.
    policy: str = "strict"
    # The user and group that the worker becomes where it would be root.
    uid: int = WORKER_UID
    # Where there is what was compiled of the model, for this runtime on this device; nothing: there
    # is none. Under a policy of `COMPILES_AS` it is put there.
    cache: str = ""


class Ready(msgspec.Struct, frozen=True, omit_defaults=True):
    """What really runs. Sent once, after the first warm-up run."""

    runtime: str
    runtime_version: str
    placement: Placement
    variant: str
    threads: int = 1
    isolation: Isolation = Isolation()
    # What holds the process that runs the model in this one's place.
    owner: Isolation | None = None
    # False where the model keeps hidden state that cannot be rebuilt by replaying messages.
    replayable: bool = True
    # From the file to a loaded session.
    load_ms: float = 0.0
    # What became of what was compiled before: `used`, or `refused`, and then compiled anew.
    # Nothing: there was none, or the library does not tell.
    compiled: str = ""


class Failed(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why the model does not serve: the code and text of an `AgentError`."""

    code: str
    message: str
    hint: str = ""
    retryable: bool = False


class Probed(msgspec.Struct, frozen=True, omit_defaults=True):
    """The verdict on a candidate that loaded and ran. A failed self-test is a FAILED instead."""

    ready: Ready
    cases: int
    max_deviation: float
    # Of the model alone: the median of some runs, and the very first one.
    p50_ms: float
    first_ms: float
    peak_memory_bytes: int
    # Of the self-test's messages the one that takes longest, once warm, from payload to answer;
    # None: there is no self-test.
    message_ms: float | None = None


class Measure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Run the model so many blocks of calls, each block this long or one call, with a pause before
    each call where the duty of service is to be seen."""

    blocks: int
    block_ms: float = 1.0
    pause_ms: float = 0.0


class Measured(msgspec.Struct, frozen=True):
    """Time of one call in each block, and CPU time of one call over all threads."""

    ms: tuple[float, ...]
    cpu_ms: float
    peak_memory_bytes: int


class TemplateEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a template process tells: `ready` (its runtime is imported), `failed` (it is not, and it
    ends), `started` and `exited` (a worker forked from it)."""

    event: str
    worker: int = 0
    pid: int = 0
    # As os.waitstatus_to_exitcode gives it: negative is the number of a signal.
    status: int = 0
    runtime: str = ""
    version: str = ""
    # Of the runtime, with `ready`.
    facts: RuntimeFacts | None = None
    # Who holds the worker's device, with `started`; 0: it does itself, if it has one.
    owner: int = 0
    code: str = ""
    message: str = ""
    hint: str = ""


def read(payload: bytes | memoryview, kind: type[T]) -> T:
    """Decode one of the objects above.

    Raises:
        WorkerError: The other side speaks something else.
    """
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WorkerError(f"a worker sent a {kind.__name__} that cannot be read: {error}") from None
