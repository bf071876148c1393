"""What a change of state leaves as evidence."""

from __future__ import annotations

from hypothesis import given, settings

from agent.control import events as e
from agent.control.evidence import Entry
from agent.control.lifecycle import step
from agent.control.state import DeviceState, Phase
from agent.control.witnessing import evidence_of
from agent.documents.report import Failure, SlotTrust
from tests.control.stories import (
    ALTERED,
    LASTING,
    QUALIFIED,
    A,
    B,
    desired,
    outcome,
    rollout,
    run_to,
    slot,
)
from tests.control.test_histories import History, World, histories

SIGNED = SlotTrust("signed", key="ab" * 32)


def after(state: DeviceState, event: e.Event) -> tuple[DeviceState, list[Entry]]:
    new = step(state, event).state
    return new, evidence_of(state, new, event)


def serving(pack: str, state: DeviceState | None = None) -> DeviceState:
    state = step(state or DeviceState(), desired(f"with {pack[-1]}", vib=slot(pack))).state
    return run_to(state, None)


def kinds(found: list[Entry]) -> list[str]:
    return [entry.kind for entry in found]


def test_a_deployment_its_trust_its_activation_and_its_probation_are_told_in_order() -> None:
    told: list[Entry] = []
    state = DeviceState()
    events = (
        lambda number: desired("one", vib=slot(A)),
        lambda number: e.Fetched("vib", number),
        lambda number: e.Verified("vib", number, SIGNED),
        lambda number: e.Qualified("vib", number, QUALIFIED),
        lambda number: e.Switched("vib", number),
        lambda number: e.ProbationPassed("vib", number),
    )
    for event in events:
        number = rollout(state).id if state.slots else 0
        state, found = after(state, event(number))
        told.extend(found)
    assert kinds(told) == ["deployment", "trust", "activated", "proven"]
    assert told[0].document == "one"
    assert told[1] == Entry("trust", "vib", A, state="signed", key=SIGNED.key)
    assert told[2] == Entry("activated", "vib", A, deployment="one")


def test_the_pack_before_is_named_where_there_was_one() -> None:
    state = run_to(step(serving(A), desired("two", vib=slot(B))).state, Phase.SWITCHING)
    state, told = after(state, e.Switched("vib", rollout(state).id))
    assert told == [Entry("activated", "vib", B, A, "two")]


def test_a_refused_document_is_told_with_its_reason() -> None:
    failure = Failure("bad_document", "slots.vib.pack: expected a digest")
    _, told = after(DeviceState(), e.DesiredRefused(failure, "sha256:cc"))
    assert told == [
        Entry("refused", document="sha256:cc", code="bad_document", why=failure.message)
    ]


def test_a_refused_pack_is_told_and_what_serves_is_not_named_as_failed() -> None:
    state = run_to(step(serving(A), desired("two", vib=slot(B))).state, Phase.VERIFYING)
    unsigned = Failure("unsigned", "nobody signed it")
    _, told = after(state, e.StepFailed("vib", rollout(state).id, unsigned))
    assert [(x.kind, x.pack, x.code) for x in told] == [("refused", B, "unsigned")]


def test_a_persons_word_is_an_override_and_what_follows_is_a_return() -> None:
    state = serving(B, serving(A))
    state, told = after(state, e.RollbackRequested("vib"))
    assert told == [Entry("override", "vib", A, B, code="rolled_back", why="a person asked")]
    state, told = after(state, e.Restored("vib", rollout(state).id))
    assert [(x.kind, x.pack, x.before) for x in told] == [("returned", A, B)]
    assert outcome(state).state == "rolled_back"


def test_a_pack_that_keeps_dying_is_told_as_failed_and_then_as_left() -> None:
    state = serving(B, serving(A))
    state, told = after(state, e.CrashLooped("vib", B, LASTING))
    assert [(x.kind, x.pack, x.code) for x in told] == [("failed", B, LASTING.code)]
    _, told = after(state, e.Restored("vib", rollout(state).id))
    assert [(x.kind, x.pack, x.before) for x in told] == [("returned", A, B)]


def test_a_damaged_pack_is_told() -> None:
    _, told = after(serving(A), e.Unservable("vib", ALTERED))
    assert [(x.kind, x.pack, x.code) for x in told] == [("damaged", A, "store_corrupt")]


def test_a_slot_that_is_taken_out_is_told() -> None:
    _, told = after(serving(A), desired("none"))
    assert kinds(told) == ["deployment", "removed"]
    assert (told[1].slot, told[1].before) == ("vib", A)


def test_steps_that_decide_nothing_leave_no_line() -> None:
    state = step(DeviceState(), desired("one", vib=slot(A))).state
    _, told = after(state, e.Fetched("vib", rollout(state).id))
    assert told == []


class Witnessed(World):
    """A world in which every change of what serves must leave its one line."""

    def feed(self, event: e.Event) -> None:
        before = self.state
        super().feed(event)
        if self.state is before:
            return
        told = evidence_of(before, self.state, event)
        for name in {*before.slots, *self.state.slots}:
            old, new = before.slots.get(name), self.state.slots.get(name)
            lines = [entry for entry in told if entry.slot == name]
            taken = [entry for entry in lines if entry.kind in ("activated", "returned")]
            if new is None:
                assert kinds(lines) == ["removed"]
            elif new.serving is not None and (old is None or old.serving != new.serving):
                assert [entry.pack for entry in taken] == [new.serving.pack]
            else:
                assert taken == []


@settings(max_examples=100, deadline=None)
@given(histories)
def test_whatever_happens_each_change_of_what_serves_has_its_line(history: History) -> None:
    world = Witnessed()
    world.document({"vib": "A"}, "new name", newer_telemetry=False)
    for what, *rest in history:
        if what == "document":
            world.document(*rest)
        else:
            world.happens(what, *rest)
