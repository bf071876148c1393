"""An accelerator that a choice left out is tried again, with patience, while another way serves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from msgspec.structs import replace

from agent.control import events as e
from agent.control.state import DeviceState, Phase, Rollout, SlotState
from agent.daemon.returning import Returning
from agent.documents.choice import Choice, Tried, Way
from agent.documents.deployment import Slot
from agent.errors import AcceleratorFailed
from tests.control.stories import A, slot

FIRST_S = 0.02
WITHIN_S = 10.0
TPU, CPU = Way("int8", "edgetpu", "edgetpu"), Way("int8", "tflite")
LEFT_OUT = Choice(CPU, (Tried(CPU), Tried(TPU, "it is away", "accelerator_failed")))


def serving(choice: Choice, entry: SlotState | None = None) -> DeviceState:
    entry = entry or SlotState(serving=slot(A), proven=True)
    return DeviceState(slots={"a": entry}, qualified={A: choice})


@dataclass
class Story:
    """A device in a state, an accelerator that works from the n-th attempt on, and what is told."""

    state: DeviceState
    works_from: int = 1
    fails: bool = False
    tried_at: list[float] = field(default_factory=list)
    told: list[e.Outdated] = field(default_factory=list)

    async def works(self, name: str, target: Slot, choice: Choice) -> bool:
        assert (name, target.pack) == ("a", A)
        self.tried_at.append(asyncio.get_running_loop().time())
        if self.fails:
            raise AcceleratorFailed("nothing can be found out")
        return len(self.tried_at) >= self.works_from

    def play(self, what: Callable[[Returning], Awaitable[None]]) -> None:
        async def story() -> None:
            returning = Returning(lambda: self.state, self.works, self.told.append, FIRST_S)
            returning.look()
            try:
                await asyncio.wait_for(what(returning), WITHIN_S)
            finally:
                returning.close()

        asyncio.run(story())

    async def attempts(self, count: int) -> None:
        """Return once it has been tried so often."""
        while len(self.tried_at) < count:
            await asyncio.sleep(FIRST_S / 10)


def test_it_is_tried_at_growing_intervals_until_it_works_and_then_the_choice_is_made_anew() -> None:
    story = Story(serving(LEFT_OUT), works_from=4)
    story.play(lambda returning: story.attempts(4))
    pauses = [later - before for before, later in pairwise(story.tried_at)]
    for place, pause in enumerate(pauses, 1):
        assert pause >= 0.99 * FIRST_S * 2**place
    assert story.told == [e.Outdated("a", A)]


def test_a_choice_made_anew_in_vain_does_not_begin_the_intervals_anew() -> None:
    story = Story(serving(LEFT_OUT))

    async def choose_in_vain(returning: Returning) -> None:
        for number in (1, 2, 3):
            await story.attempts(number)
            story.state = serving(replace(LEFT_OUT, because=f"attempt {number}"))
            returning.look()

    story.play(choose_in_vain)
    assert story.tried_at[2] - story.tried_at[1] >= 0.99 * 4 * FIRST_S
    assert len(story.told) >= 2


@pytest.mark.parametrize(
    "choice",
    [
        Choice(TPU, (Tried(TPU), Tried(CPU))),
        Choice(CPU, (Tried(CPU),)),
        Choice(CPU, (Tried(CPU), Tried(TPU))),
        Choice(CPU, (Tried(CPU), Tried(TPU, "it answers 2", "self_test_failed"))),
        Choice(CPU, (Tried(CPU), Tried(TPU, "p95 is 5 ms"))),
    ],
    ids=["it serves", "none", "slower", "wrong answers", "too slow"],
)
def test_nothing_is_tried_where_nothing_is_to_come_back(choice: Choice) -> None:
    story = Story(serving(choice))
    assert not choice.waits

    async def nothing(returning: Returning) -> None:
        assert not returning._waiting

    story.play(nothing)


@pytest.mark.parametrize(
    "entry",
    [
        SlotState(serving=slot(A), rollout=Rollout(1, slot(A), Phase.QUALIFYING)),
        SlotState(),
    ],
    ids=["under way", "nothing serves"],
)
def test_nothing_is_tried_while_something_else_is_under_way(entry: SlotState) -> None:
    story = Story(serving(LEFT_OUT, entry))

    async def then_settled(returning: Returning) -> None:
        await asyncio.sleep(2 * FIRST_S)
        assert not story.tried_at
        story.state = serving(LEFT_OUT)
        returning.look()
        await story.attempts(1)

    story.play(then_settled)


def test_a_slot_that_is_gone_or_runs_on_it_is_waited_for_no_more() -> None:
    story = Story(serving(LEFT_OUT), works_from=100)

    async def back(returning: Returning) -> None:
        await story.attempts(1)
        story.state = serving(Choice(TPU, (Tried(TPU), Tried(CPU))))
        returning.look()
        assert not returning._waiting

    story.play(back)


def test_what_cannot_be_found_out_is_tried_again() -> None:
    story = Story(serving(LEFT_OUT), fails=True)
    story.play(lambda returning: story.attempts(3))
    assert not story.told


def test_one_that_was_not_there_at_all_is_waited_for() -> None:
    choice = Choice(CPU, (Tried(CPU),), absent=("int8_edgetpu",))
    assert choice.waits
    story = Story(serving(choice))
    story.play(lambda returning: story.attempts(1))
    assert story.told == [e.Outdated("a", A)]
