"""`edgeward load`: a pack from a stick or a folder into the store of the agent on this device."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from agent.cli import exits, options
from agent.cli.commands import HELP_SETTINGS
from agent.cli.configuration import load_settings
from agent.cli.operate import raise_error
from agent.documents.text import printable
from agent.links.local import ask, find_socket

ASK_EVERY_S = 0.25
EPILOG = """\b
Example:
  edgeward load /media/usb/vibration-1.4.0
  edgeward deploy …                          of the same pack then needs no network

""" + exits.epilog(exits.DONE, exits.FAILED, exits.USAGE, exits.LINK, exits.BAD_PACK)


@click.command(epilog=EPILOG, context_settings=HELP_SETTINGS)
@click.argument("folder", type=click.Path(path_type=Path))
@options.config
@options.as_json
def load(folder: Path, config: Path | None, as_json: bool) -> int:
    """Put the pack in FOLDER into the store of the agent on this device.

    The agent reads the folder as its own user, follows no symbolic link in it, and checks every
    file against the manifest. What is loaded stays until room is needed and nothing older can go.
    """
    socket = find_socket(load_settings(config))
    # Not resolved: the agent finds out itself what a link leads to, and the message names this.
    path = os.path.abspath(folder)  # noqa: PTH100
    shows = sys.stderr.isatty() and not as_json
    while True:
        told = ask(socket, {"command": "load", "path": path})
        if shows:
            click.echo(f"\r{_progress(told)}\033[K", nl=False, err=True)
        if told.get("state") != "loading":
            break
        time.sleep(ASK_EVERY_S)
    if shows:
        click.echo("\r\033[K", nl=False, err=True)
    raise_error(told)
    click.echo(
        json.dumps(told)
        if as_json
        else printable(f"pack {told.get('pack')} is in the store: {_size(told)}")
    )
    return exits.DONE


def _progress(told: dict[str, Any]) -> str:
    progress = told.get("progress") or {}
    done, total = progress.get("done_bytes", 0), progress.get("total_bytes", 0)
    return f"{done / total:.0%} of {total / 1e6:.1f} MB" if total else "…"


def _size(told: dict[str, Any]) -> str:
    return f"{(told.get('progress') or {}).get('total_bytes', 0) / 1e6:.1f} MB"
