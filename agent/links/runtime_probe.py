"""Which runtimes work here, each asked in a process of its own that may die of the answer."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

import msgspec
from msgspec.structs import replace

from agent.documents.device import RuntimeFacts
from agent.documents.text import printable
from agent.errors import AgentError, RuntimeUnavailable
from agent.links.spawn import ENVIRONMENT
from agent.links.template import TemplateProcess, start_template
from agent.wire.worker import TemplateEvent

MAX_RUNTIMES = 64
# A Raspberry Pi reads an inference library from a memory card for this long, and no longer.
DEADLINE_S = 60.0
# Each holds a library in memory.
_AT_ONCE = 2
_MAX_NAME, _MAX_TEXT = 128, 1024
_NAMES_DEADLINE_S = 30.0


class _Asked(msgspec.Struct, frozen=True):
    name: str
    template: TemplateProcess
    until: float


def declared_runtimes() -> tuple[str, ...]:
    """The names of all runtimes that an installed package declares, read in a child.

    Raises:
        RuntimeUnavailable: The child gives none: the installation is damaged.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-m", "agent.worker.names"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=ENVIRONMENT,
            cwd="/",
            timeout=_NAMES_DEADLINE_S,
            check=True,
        )
        told = json.loads(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        raise RuntimeUnavailable(
            f"the list of runtimes cannot be read: {printable(str(error), 200)}",
            hint="install edgeward again",
        ) from None
    return tuple(str(name)[:_MAX_NAME] for name in told)[:MAX_RUNTIMES]


def probe_runtimes(
    names: Iterable[str] | None = None, *, deadline_s: float = DEADLINE_S
) -> tuple[RuntimeFacts, ...]:
    """Ask runtimes what they can do here. Blocks until each has answered, died, or run out of time.

    Args:
        names: Of the runtimes; None: all that are declared.
        deadline_s: For each.

    Returns:
        One value for each name, in their order; one that does not work has `usable` False, and says
        why and what to do.
    """
    wanted = tuple(dict.fromkeys(declared_runtimes() if names is None else names))[:MAX_RUNTIMES]
    found: dict[str, RuntimeFacts] = {}
    waiting = list(wanted)
    asked: list[_Asked] = []
    try:
        while waiting or asked:
            while waiting and len(asked) < _AT_ONCE:
                name = waiting.pop(0)
                try:
                    until = time.monotonic() + deadline_s
                    asked.append(_Asked(name, start_template(name), until))
                except OSError as error:
                    found[name] = _unusable(name, f"no process can be started: {error.strerror}")
            _wait(asked)
            for one, facts in list(_answers(asked, deadline_s)):
                one.template.kill()
                asked.remove(one)
                found[one.name] = facts
    finally:
        for one in asked:
            one.template.kill()
    return tuple(found[name] for name in wanted)


def _wait(asked: list[_Asked]) -> None:
    """Return once one of them may have something to say, or has run out of time."""
    if not asked:
        return
    poll = select.poll()
    for one in asked:
        poll.register(one.template.control, select.POLLIN)
    left_s = min(one.until for one in asked) - time.monotonic()
    poll.poll(max(0.0, left_s) * 1000)


def _answers(asked: list[_Asked], deadline_s: float) -> Iterator[tuple[_Asked, RuntimeFacts]]:
    for one in asked:
        facts = _answer(one)
        if facts is None and time.monotonic() >= one.until:
            why = f"importing it did not end within {deadline_s:g} s"
            hint = _last_line(one.template) or "import it by hand to see where it hangs"
            facts = _unusable(one.name, why, hint)
        if facts is not None:
            yield one, facts


def _answer(one: _Asked) -> RuntimeFacts | None:
    """What a runtime has said, or how it died; None: nothing yet."""
    try:
        events = one.template.read_events()
        if events is None:
            raise one.template.failure()
    except AgentError as error:
        return _unusable(one.name, error.message, error.hint)
    told = next((event for event in events if event.event in ("ready", "failed")), None)
    return None if told is None else _facts(one.name, told)


def _facts(name: str, event: TemplateEvent) -> RuntimeFacts:
    if event.event == "failed":
        return _unusable(name, event.message, event.hint)
    if event.facts is None:
        return RuntimeFacts(name, usable=True, version=event.version[:_MAX_NAME])
    return replace(event.facts, name=name)


def _unusable(name: str, why: str, hint: str = "") -> RuntimeFacts:
    return RuntimeFacts(
        printable(name, _MAX_NAME),
        why=printable(why, _MAX_TEXT),
        hint=printable(hint, _MAX_TEXT),
    )


def _last_line(template: TemplateProcess) -> str:
    return template.take_last_words().rpartition("\n")[2]
