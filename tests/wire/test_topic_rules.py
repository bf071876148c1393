"""Deployments that would feed themselves, or write the documents of agents, are refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.documents.deployment import Deployment, Input, Output, Slot
from agent.errors import DocumentError
from agent.wire import topics
from agent.wire.topic_rules import check_topics


def deployment(**slots: tuple[str, str]) -> Deployment:
    return Deployment(
        schema=1,
        deployment="one",
        slots={
            name: Slot(pack="sha256:" + "a" * 64, input=Input(source), output=Output(target))
            for name, (source, target) in slots.items()
        },
    )


def check(wanted: Deployment) -> None:
    check_topics(wanted, device="d", reserved="edgeward/")


def test_ordinary_slots_and_chains_of_models_are_fine() -> None:
    check(deployment(a=("sensors/+/accel", "predictions/{slot}/{1}")))
    check(deployment(a=("sensors/+", "features/{1}"), b=("features/+", "alarms/{1}")))


@pytest.mark.parametrize(
    "slots",
    [
        {"a": ("in/#", "in/answers")},
        {"a": ("x/+", "x/{1}")},
        {"a": ("a/+", "b/{1}"), "b": ("b/#", "a/{slot}")},
        {"a": ("in/#", "{1}")},
    ],
)
def test_a_slot_that_would_answer_itself_is_refused(slots: dict[str, tuple[str, str]]) -> None:
    with pytest.raises(DocumentError, match="does not lead back"):
        check(deployment(**slots))


@pytest.mark.parametrize("source", ["#", "edgeward/+/telemetry", "+/other/desired"])
def test_a_slot_does_not_listen_to_agents(source: str) -> None:
    with pytest.raises(DocumentError, match=r"desired.slots.a.input.topic: expected a filter"):
        check(deployment(a=(source, "out")))


@pytest.mark.parametrize("target", ["edgeward/other/desired", "$SYS/x"])
def test_a_slot_does_not_write_what_agents_read(target: str) -> None:
    with pytest.raises(DocumentError, match=r"desired.slots.a.output.topic: expected a topic"):
        check(deployment(a=("in/+", target)))


LEVELS = st.lists(st.sampled_from(["a", "b", "", "+"]), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(LEVELS, LEVELS, st.booleans(), st.lists(st.sampled_from(["a", "b", ""]), min_size=1))
def test_filters_that_match_one_topic_overlap(
    one: list[str], other: list[str], deep: bool, levels: list[str]
) -> None:
    first, second = "/".join(one) + ("/#" if deep else ""), "/".join(other)
    topic = "/".join(levels)
    if topics.match(first, topic) is not None and topics.match(second, topic) is not None:
        assert topics.overlap(first, second)
        assert topics.overlap(second, first)
