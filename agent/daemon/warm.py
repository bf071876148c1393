"""Templates that were started before the agent was, for the supervisor to take over; and the hint
by which the next start will do the same."""

from __future__ import annotations

from collections.abc import Container, Iterable
from contextlib import suppress
from pathlib import Path

from agent.control.state import DeviceState, choice_for
from agent.daemon import early
from agent.errors import IsolationUnavailable, StoreError
from agent.links.cgroups import WorkerGroups
from agent.links.spawn import Spawned
from agent.links.template import TemplateProcess, start_template
from agent.store.files import Files


class WarmTemplates:
    """Hands out templates, those first that are there already."""

    def __init__(self, started: Iterable[Spawned]) -> None:
        self._started = {spawned.runtime: TemplateProcess(spawned) for spawned in started}

    def start(self, runtime: str) -> TemplateProcess:
        """Hand over a process that is there, or start one.

        Raises:
            OSError: The machine has no room for one more at this moment.
        """
        return self._started.pop(runtime, None) or start_template(runtime)

    def end_all_but(self, needed: Container[str]) -> None:
        """End what nobody will ask for: the hint was not right."""
        for runtime in [name for name in self._started if name not in needed]:
            self._started.pop(runtime).kill()


class Hint:
    """The file that says which runtimes serve, kept as the state has it."""

    def __init__(self, files: Files, state_dir: Path) -> None:
        self._files = files
        self._path = state_dir / early.HINT_NAME
        self._written: bytes | None = None

    def follow(self, state: DeviceState) -> None:
        """Write it where the state says something new; a disk that takes nothing is no trouble."""
        names = "".join(f"{name}\n" for name in sorted(serving_runtimes(state))).encode()
        if names == self._written:
            return
        with suppress(StoreError):
            # After most starts it says so already, and a flush can take long.
            if self._read() != names:
                self._files.replace(self._path, names)
        self._written = names

    def _read(self) -> bytes | None:
        with suppress(StoreError):
            return self._files.read(self._path, early.MAX_HINT_BYTES)
        return None  # damaged: something else is written over it


def serving_runtimes(state: DeviceState) -> set[str]:
    """The runtimes of what serves."""
    choices = [choice_for(state, slot.serving) for slot in state.slots.values() if slot.serving]
    return {choice.way.runtime for choice in choices if choice is not None}


def find_groups() -> WorkerGroups | None:
    """Control groups for workers; None where the agent was given none, which reports then say."""
    try:
        return WorkerGroups.find()
    except IsolationUnavailable:
        return None
