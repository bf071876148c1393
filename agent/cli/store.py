"""`edgeward store check`: every byte of the store read again, with the agent running or not."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from agent.cli import exits, options
from agent.cli.commands import HELP_SETTINGS
from agent.cli.configuration import load_settings
from agent.cli.operate import raise_error
from agent.control.state import DeviceState
from agent.documents.settings import Settings
from agent.documents.text import printable
from agent.errors import LinkUnreachable, UsageError
from agent.links.local import ask, find_socket
from agent.store.check import Checker, Found, mend, needs_of
from agent.store.files import Files
from agent.store.lock import lock_state_dir
from agent.store.packs import PackStore
from agent.store.state import StateFile

ASK_EVERY_S = 0.25
SHOW_EVERY_S = 0.1
NEXT_FETCH = (
    "fetched again when the agent starts, if it serves, otherwise when it is deployed again"
)
CHECK_EPILOG = """\b
Examples:
  edgeward store check                              on the device, running or not
  sudo -u edgeward edgeward store check --repair
  edgeward store check --json | jq '.bad_packs[].pack'

\b
What it tells, and what --repair does about it:
  altered, missing or unreadable file of a pack
      dropped, so that it is fetched again. The pack's folder stays: a model
      that serves goes on, and it is said where that was its only copy.
      A pack that no slot needs is removed as a whole.
  altered file that no pack has
      dropped.
  files on their way (part), left over (temporary), not the store's (stray)
      told only. The agent goes on with the first, and removes the second when
      it starts; the third are somebody else's.

\b
Before you repair: a source that cannot be reached any more (edgeward deploy
from a laptop, a stick) brings nothing back. `edgeward load` does.
The agent itself reads every pack again before it serves it: at each start and
before each switch. This command is for what it does not serve just now, and
for a medium that is in doubt.

""" + exits.epilog(exits.DONE, exits.FAILED, exits.USAGE, exits.LINK)


@click.group(context_settings=HELP_SETTINGS, epilog=exits.epilog(exits.DONE, exits.USAGE))
def store() -> None:
    """Look after the packs on this device."""


@store.command(epilog=CHECK_EPILOG, context_settings=HELP_SETTINGS)
@click.option("--repair", is_flag=True, help="Drop what is damaged, so that it is fetched again.")
@options.config
@options.as_json
def check(repair: bool, config: Path | None, as_json: bool) -> int:
    """Read every stored file again, and say what is damaged, left over, and how much room is left.

    A running agent does it itself and serves on; a stopped one is kept from starting meanwhile.
    The exit code is 0 where all is whole, or was repaired, and 1 where damage is left.
    """
    settings = load_settings(config)
    shown = _Progress(quiet=as_json or not sys.stderr.isatty())
    try:
        found = _by_the_agent(settings, repair, shown)
    except LinkUnreachable:
        found = _here(settings, repair, shown)
    finally:
        shown.end()
    if as_json:
        click.echo(json.dumps({**msgspec.to_builtins(found), "whole": found.whole}))
    else:
        for line in _lines(found, repair):
            click.echo(printable(line))
    return exits.DONE if found.whole else exits.FAILED


def _by_the_agent(settings: Settings, repair: bool, shown: _Progress) -> Found:
    socket = find_socket(settings)
    while True:
        told = ask(socket, {"command": "store_check", "repair": repair})
        raise_error(told)
        if told.get("state") != "checking":
            return msgspec.convert(told.get("found"), Found)
        progress: dict[str, Any] = told.get("progress") or {}
        shown(progress.get("done_bytes", 0), progress.get("total_bytes", 0))
        time.sleep(ASK_EVERY_S)


def _here(settings: Settings, repair: bool, shown: _Progress) -> Found:
    root, files = Path(settings.state_dir).absolute(), Files()
    if not root.is_dir():
        raise UsageError(
            f"there is no folder {root}", hint="has the agent run here? name its --config"
        )
    with lock_state_dir(root, files):
        packs = PackStore(files, root, settings.limits.store_mb << 20)
        needs = needs_of(_state(files, root))
        found = Checker(files, root, packs, shown).look(needs)
        return mend(packs, found, needs, NEXT_FETCH) if repair else found


def _state(files: Files, root: Path) -> DeviceState:
    """What was saved last; `lost` where nobody can tell, so that no pack is taken for unneeded."""
    loaded = StateFile(files, root / "state").load()
    if loaded.document is None:
        return DeviceState(lost=True)
    try:
        return msgspec.json.decode(loaded.document, type=DeviceState)
    except (msgspec.DecodeError, RecursionError):
        return DeviceState(lost=True)


def _lines(found: Found, repair: bool) -> list[str]:
    lines = [
        f"{found.packs} packs, {found.blobs} files, {_size(found.read_bytes)} read",
        f"{_size(found.used_bytes)} of {_size(found.quota_bytes)} are used "
        f"(limits.store_mb), {_size(found.unused_bytes)} of them by no pack; "
        f"{_size(found.free_bytes)} of the disk are free",
    ]
    for pack in found.bad_packs:
        lines.append(f"DAMAGED pack {pack.pack}" + (f": {pack.why}" if pack.why else ""))
        lines += [f"  {file.reason}: {file.name} ({file.digest})" for file in pack.files]
        lines += [f"  it {use}" for use in pack.needed]
        lines += [f"  {pack.done}"] if pack.done else []
    for blob in found.bad_blobs:
        lines.append(f"DAMAGED file {blob.digest}: {blob.reason}")
        lines += [f"  {blob.done}"] if blob.done else []
    lines += [f"on its way: {digest}, {_size(size)}" for digest, size in found.parts.items()]
    lines += [f"temporary: {name}" for name in found.temporary]
    lines += [f"stray: {name}" for name in found.strays]
    lines += [f"… and {found.more} more"] if found.more else []
    damaged = bool(found.bad_packs or found.bad_blobs)
    if not damaged:
        lines.append("whole")
    elif not found.whole:
        lines.append("damage is left" if repair else "`--repair` drops what is damaged")
    return lines


def _size(count: int) -> str:
    return f"{count} B" if count < 10_000 else f"{count / 1_000_000:.2f} MB"


class _Progress:
    """One line on a terminal, written over and over."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._shown_at = 0.0

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        now = time.monotonic()
        if self._quiet or now - self._shown_at < SHOW_EVERY_S:
            return
        self._shown_at = now
        share = f"{done_bytes / total_bytes:.0%} of {_size(total_bytes)}" if total_bytes else "…"
        click.echo(f"\r{share}\033[K", nl=False, err=True)

    def end(self) -> None:
        if not self._quiet:
            click.echo("\r\033[K", nl=False, err=True)
