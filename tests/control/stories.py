"""Short words for the tests of control: slots, documents, and how far a rollout comes."""

from __future__ import annotations

from agent.control import events as e
from agent.control.lifecycle import step
from agent.control.rollouts import Step
from agent.control.state import DeviceState, Outcome, Phase, Rollout
from agent.documents.choice import Choice, Way
from agent.documents.deployment import Deployment, Input, Output, Slot, TelemetrySettings
from agent.documents.deployment import Rollout as Settings
from agent.documents.report import Failure

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
QUALIFIED = Choice(Way("main", "onnx"))
LASTING = Failure(code="self_test_failed", message="it answers 2, expected 4")
PASSING = Failure(code="fetch_failed", message="no answer", retryable=True)
ALTERED = Failure(code="store_corrupt", message="altered", retryable=True)
DYING = Failure(code="worker_exited", message="the worker of this pack keeps dying")

UP_TO: dict[Phase | None, tuple[type, ...]] = {
    Phase.FETCHING: (),
    Phase.VERIFYING: (e.Fetched,),
    Phase.QUALIFYING: (e.Fetched, e.Verified),
    Phase.SWITCHING: (e.Fetched, e.Verified, e.Qualified),
    Phase.PROBATION: (e.Fetched, e.Verified, e.Qualified, e.Switched),
    None: (e.Fetched, e.Verified, e.Qualified, e.Switched, e.ProbationPassed),
}


def slot(
    pack: str, topic: str = "sensors/+", *, source: str = "mqtt:", probation_s: float = 10.0
) -> Slot:
    return Slot(
        pack=pack,
        input=Input(topic),
        output=Output("out/{1}"),
        source=source,
        rollout=Settings(probation_s=probation_s),
    )


def arrives(
    name: str, slots: dict[str, Slot], *, interval_s: float = 60.0, digest: str = ""
) -> e.DesiredArrived:
    telemetry = TelemetrySettings(interval_s)
    document = Deployment(schema=1, deployment=name, slots=slots, telemetry=telemetry)
    return e.DesiredArrived(document, digest=digest or name)


def desired(name: str, **slots: Slot) -> e.DesiredArrived:
    return arrives(name, slots)


def rollout(state: DeviceState, name: str = "vib") -> Rollout:
    found = state.slots[name].rollout
    assert found is not None
    return found


def outcome(state: DeviceState, name: str = "vib") -> Outcome:
    found = state.slots[name].outcome
    assert found is not None
    return found


def serving(state: DeviceState, name: str = "vib") -> str | None:
    found = state.slots[name].serving
    return found.pack if found is not None else None


def previous(state: DeviceState, name: str = "vib") -> str | None:
    found = state.slots[name].previous
    return found.pack if found is not None else None


def run_to(state: DeviceState, phase: Phase | None, name: str = "vib") -> DeviceState:
    """Let each step of a rollout in FETCHING succeed until it is in a phase, or has ended."""
    for kind in UP_TO[phase]:
        number = rollout(state, name).id
        more = (QUALIFIED,) if kind is e.Qualified else ()
        state = step(state, kind(name, number, *more)).state
    return state


def deploy(state: DeviceState, name: str, phase: Phase | None = None, **slots: Slot) -> DeviceState:
    """Send a document and bring the slots that it sets out for to a phase."""
    state = step(state, arrives(name, slots)).state
    for each, entry in state.slots.items():
        if entry.rollout is not None and entry.rollout.phase is Phase.FETCHING:
            state = run_to(state, phase, each)
    return state


def serving_a() -> DeviceState:
    return deploy(DeviceState(), "one", vib=slot(A))


def serving_b_after_a() -> DeviceState:
    return deploy(serving_a(), "two", vib=slot(B))


def fails(state: DeviceState, failure: Failure, name: str = "vib") -> Step:
    return step(state, e.StepFailed(name, rollout(state, name).id, failure))


def again(state: DeviceState, name: str = "vib") -> DeviceState:
    return step(state, e.RetryDue(name, rollout(state, name).id)).state


def restored(state: DeviceState, name: str = "vib") -> Step:
    return step(state, e.Restored(name, rollout(state, name).id))


def dies(state: DeviceState, name: str = "vib") -> Step:
    """What serves keeps dying."""
    pack = serving(state, name)
    assert pack is not None
    return step(state, e.CrashLooped(name, pack, DYING))
