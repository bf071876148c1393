"""Starts the runtimes of a device before the rest of the agent is imported.

Importing a runtime takes longer than importing the agent; done at one time, on two processors, a
restarted device predicts that much earlier. This module imports little for that reason.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from agent.errors import IsolationUnavailable, StoreError
from agent.links.cgroups import WorkerGroups
from agent.links.template import TemplateProcess, start_template
from agent.store.files import Files
from agent.store.state import StateFile


class _Serving(msgspec.Struct):
    pack: str


class _Slot(msgspec.Struct):
    serving: _Serving | None = None


class _Way(msgspec.Struct):
    runtime: str


class _Choice(msgspec.Struct):
    way: _Way


class _Known(msgspec.Struct):
    """As much of `agent.control.state.DeviceState` as says which runtimes are needed."""

    slots: dict[str, _Slot] = {}
    qualified: dict[str, _Choice] = {}


def find_groups() -> WorkerGroups | None:
    """Control groups for workers; None where the agent was given none, which reports then say."""
    try:
        return WorkerGroups.find()
    except IsolationUnavailable:
        return None


class WarmTemplates:
    """Template processes that were started early, for the supervisor to take over."""

    def __init__(self, state_dir: Path) -> None:
        # Before the first child: the agent's processes move to a group of their own.
        self.groups = find_groups()
        self._started: dict[str, TemplateProcess] = {}
        for runtime in _runtimes(state_dir):
            try:
                self._started[runtime] = start_template(runtime)
            except OSError:
                return  # the supervisor tries again, and says why not

    def start(self, runtime: str) -> TemplateProcess:
        """Hand over a process that is there, or start one.

        Raises:
            OSError: The machine has no room for one more at this moment.
        """
        return self._started.pop(runtime, None) or start_template(runtime)


def _runtimes(state_dir: Path) -> set[str]:
    """The runtimes of the packs that served last; none where that cannot be read."""
    try:
        document = StateFile(Files(), state_dir / "state").load().document
        known = msgspec.json.decode(document or b"{}", type=_Known)
    except (StoreError, msgspec.DecodeError, UnicodeDecodeError):
        return set()
    serving = {slot.serving.pack for slot in known.slots.values() if slot.serving is not None}
    return {
        choice.way.runtime
        for key, choice in known.qualified.items()
        if key.partition("|")[0] in serving
    }
