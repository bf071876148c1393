"""The report: what the device says of itself. What is reported is what happened."""

from __future__ import annotations

from typing import Literal

import msgspec

SlotPhase = Literal[
    "fetching", "verifying", "qualifying", "probation", "active", "failed", "rolled_back"
]
IsolationLevel = Literal["none", "basic", "strong", "full"]
# In a range that neither distributions nor systemd give numbers from (its UIDS-GIDS.md).
WORKER_UID = 60_999


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why something did not happen.

    Attributes:
        code: One of docs/errors.md.
        message: A sentence: what failed, on what, and why.
        hint: What to do about it.
        retryable: The same may succeed later; the agent tries again by itself.
    """

    code: str
    message: str
    hint: str = ""
    retryable: bool = False


class Placement(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a model's operators run: what the session itself says, never what a build offers.

    Attributes:
        wanted: What they were to run on.
        got: What they run on.
        operators: Share of them on `got`, from 0 to 1; absent where the library does not tell.
        time: Share of a run's time on it; absent where some operators run elsewhere, for then no
            library tells it.
        why: Why less was got than wanted.
    """

    wanted: str = ""
    got: str = ""
    operators: float | None = None
    time: float | None = None
    why: str = ""


class Isolation(msgspec.Struct, frozen=True, omit_defaults=True):
    """What keeps a model to itself, as it was seen to hold; docs/isolation.md says what it stops.

    Attributes:
        level: What the layers make together.
        policy: The set of exceptions; `strict` has none, the others are named after accelerators.
        layers: What holds: `network`, `namespaces`, `root`, `uid`, `landlock`, `syscalls`,
            `memory`; and how.
        missing: Which layers this machine does not give, and why.
    """

    level: IsolationLevel = "none"
    policy: str = "strict"
    layers: dict[str, str] = {}
    missing: dict[str, str] = {}


class Progress(msgspec.Struct, frozen=True):
    """How much of a pack is here.

    Attributes:
        done_bytes: Received, or here before.
        total_bytes: Of the whole pack, each different file once.
    """

    done_bytes: int
    total_bytes: int


class SlotTrust(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who vouches for a pack, as it was judged before it first served in the slot.

    Attributes:
        state: `signed`: by somebody whom the device's settings name. `unsigned`: by nobody, and the
            settings allow that; the pack is checked against its digests only.
        key: The id of the key that signed, 64 hex digits.
        subject: Whose certificate that key is in, where a certificate signed.
    """

    state: Literal["signed", "unsigned"]
    key: str = ""
    subject: str = ""


class SlotReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """One slot. `state`, `wanted` and `error` speak of the running or last rollout, the rest of the
    model that serves now.

    Attributes:
        state: Where the rollout stands, or how it ended; docs/operations.md says what to do.
        wanted: The pack that the rollout is, or was, to bring.
        pack: The pack that serves; absent where none does.
        name: From its manifest.
        version: From its manifest.
        trust: Who vouches for the pack that serves.
        variant: The variant that really runs; this and the next five are absent while no worker is
            there.
        runtime: The inference library that really runs it.
        runtime_version: Its version.
        provider: What that library computes on, as it says itself.
        isolation: What holds the worker.
        owner: What holds the process that runs the model on a device which slots share; absent
            where the worker runs it itself. `isolation.require` speaks of workers.
        placement: Where its operators were to run and do run; `why` also tells why the pack is not
            run in the way that was chosen.
        threads: How many a run may use.
        p50_ms: Median time of one run, measured on this device when the pack was qualified.
        p95_ms: Of 100 such runs, 95 took no longer.
        previous: The pack that `edgeward rollback` brings back; absent where there is none.
        progress: While the pack is being fetched.
        error: Why the rollout failed or waits, or why no worker is there.
    """

    state: SlotPhase
    wanted: str = ""
    pack: str = ""
    name: str = ""
    version: str = ""
    trust: SlotTrust | None = None
    variant: str = ""
    runtime: str = ""
    runtime_version: str = ""
    provider: str = ""
    isolation: Isolation | None = None
    owner: Isolation | None = None
    placement: Placement | None = None
    threads: int | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    previous: str = ""
    progress: Progress | None = None
    error: Failure | None = None


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """The whole reported document.

    Attributes:
        schema: The version of this format.
        agent: The agent's version.
        device: The device's id.
        deployment: The name of the last accepted deployment.
        trust: `signed`: only packs that somebody has signed whom the settings name are taken.
            `unsigned`: others are taken as well, checked against their digests only.
        profile: The device's profile, with `+` before each add-on's; absent before the first look.
        slots: By slot.
        refused: Why the last desired document was refused whole, so that nothing of it was done.
        unknown_fields: Fields of the accepted document that this version does not know, ignored.
        trouble: What keeps the agent as a whole from acting, such as a full disk. What serves
            goes on serving.
    """

    schema: Literal[1]
    agent: str
    device: str
    deployment: str = ""
    trust: str = "unsigned"
    profile: str = ""
    slots: dict[str, SlotReport] = {}
    refused: Failure | None = None
    unknown_fields: int = 0
    trouble: Failure | None = None
