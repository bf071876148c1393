"""What a deployment must not ask for, although each value in it fits its schema."""

from __future__ import annotations

from agent.documents.deployment import Deployment, Slot
from agent.errors import DocumentError
from agent.wire import topics


def check_topics(deployment: Deployment, *, device: str, reserved: str) -> None:
    """Refuse topics that are none, those of agents, and slots that feed themselves.

    Args:
        device: The device's id.
        reserved: What the topics of all agents begin with, ending in a slash.

    Raises:
        DocumentError: Names the slot and the topic.
    """
    outputs: dict[str, str] = {}
    for name, slot in deployment.slots.items():
        _check_slot(name, slot, reserved)
        outputs[name] = topics.outputs_of(
            slot.output.topic, slot.input.topic, slot=name, device=device
        )
    # One model's predictions may be another's input, as long as nothing comes round again.
    feeds = {
        name: [
            other
            for other, slot in deployment.slots.items()
            if topics.overlap(output, slot.input.topic)
        ]
        for name, output in outputs.items()
    }
    for name in feeds:
        if name in _reached(feeds, name):
            raise DocumentError(
                f"desired.slots.{name}.output.topic",
                "a topic that does not lead back to this slot's input",
                repr(deployment.slots[name].output.topic),
                hint="each prediction would be taken for a new message, without end",
            )


def _check_slot(name: str, slot: Slot, reserved: str) -> None:
    where = f"desired.slots.{name}"
    topics.check_filter(slot.input.topic, name=f"{where}.input.topic")
    topics.check_template(slot.output.topic, slot.input.topic, name=f"{where}.output.topic")
    if topics.overlap(slot.input.topic, f"{reserved}#"):
        raise DocumentError(
            f"{where}.input.topic", f"a filter beside {reserved}#", repr(slot.input.topic)
        )
    if slot.output.topic.startswith((reserved, "$")):
        raise DocumentError(
            f"{where}.output.topic", f"a topic beside {reserved}#", repr(slot.output.topic)
        )


def _reached(feeds: dict[str, list[str]], start: str) -> set[str]:
    seen: set[str] = set()
    ahead = list(feeds[start])
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            ahead += feeds[name]
    return seen
