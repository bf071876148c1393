"""This machine, for commands that plan or measure on it."""

from __future__ import annotations

from pathlib import Path

from agent.cli.configuration import load_settings
from agent.device.detect import detect
from agent.device.machine import from_here
from agent.device.tree import Tree
from agent.documents.device import Device
from agent.documents.settings import Settings
from agent.errors import AgentError
from agent.links.runtime_probe import probe_runtimes


def settings_here(config: Path | None) -> Settings:
    """The agent's settings; its defaults where they are broken and nobody named them.

    Raises:
        AgentError: The named configuration cannot be used.
    """
    try:
        return load_settings(config)
    except AgentError:
        if config is not None:
            raise
        # A broken configuration is no reason not to say what this machine is.
        return Settings()


def device_here(settings: Settings) -> Device:
    """All facts of this machine, with what its runtimes say of themselves."""
    return detect(Tree(), from_here(Path(settings.state_dir)), probe_runtimes())
