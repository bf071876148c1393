"""Starts the runtimes that served last, first of all: before the agent itself is imported.

Importing a runtime takes longer than importing the agent; done at one time, on two processors, a
restarted device predicts that much earlier. So this module imports next to nothing, and what it
goes by is a hint: a file in the state directory, written by `agent.daemon.warm`, which is looked
for where the configuration plainly says. A hint that is missing or wrong costs time, nothing else:
what is not started here is started later, and what no slot needs is ended again.
"""

# pathlib takes longer to import than everything here.
# ruff: noqa: PTH118, PTH113, PTH123

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.links.spawn import Spawned

HINT_NAME = "runtimes"
MAX_HINT_BYTES = 256
MAX_RUNTIMES = 4
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")
_CONFIG, _STATE_DIR = "/etc/edgeward/agent.toml", "/var/lib/edgeward"
_MAX_CONFIG_BYTES = 1024 * 1024
# What `edgeward run` does other than run.
_NO_START = ("--check", "--help", "-h")

_started: list[Spawned] = []


def start(arguments: list[str]) -> None:
    """Start what the hint names.

    Args:
        arguments: Those of `edgeward run`.
    """
    if any(argument in _NO_START for argument in arguments):
        return
    names = _hinted(_state_dir(_config_of(arguments)))
    if not names:
        return
    from agent.links.spawn import spawn_template

    try:
        _started.extend(spawn_template(name) for name in names)
    except OSError:
        return  # tried again, and told, where there is somebody to tell


def take() -> list[Spawned]:
    """Return what `start` has started; the second call returns nothing."""
    taken = _started[:]
    _started.clear()
    return taken


def _config_of(arguments: list[str]) -> str:
    for place, argument in enumerate(arguments):
        if argument == "--config" and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith("--config="):
            return argument[len("--config=") :]
    return _CONFIG


def _state_dir(config: str) -> str:
    """Return the state directory, as far as it is told on a line of its own: `state_dir = "…"`."""
    told = os.environ.get("EDGEWARD_STATE_DIR")
    if told:
        return told
    for line in _read(config, _MAX_CONFIG_BYTES).splitlines():
        key, equals, value = line.partition("=")
        if key.lstrip().startswith("["):
            break
        if equals and key.strip() == "state_dir":
            return value.partition("#")[0].strip().strip("\"'")
    return _STATE_DIR


def _hinted(state_dir: str) -> list[str]:
    names = _read(os.path.join(state_dir, HINT_NAME), MAX_HINT_BYTES).split()
    return [name for name in names if len(name) <= 64 and _NAME.issuperset(name)][:MAX_RUNTIMES]


def _read(path: str, max_bytes: int) -> str:
    try:
        # Not a device or a pipe, which might never end.
        if not os.path.isfile(path):
            return ""
        with open(path, "rb") as file:
            return file.read(max_bytes).decode()
    except (OSError, ValueError):
        return ""
