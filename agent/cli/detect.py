"""`edgeward detect`: what this device is, what it can compute on, and why."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec.structs import replace
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent.cli import exits, options
from agent.cli.commands import HELP_SETTINGS
from agent.cli.here import settings_here
from agent.control.profiles import Recognised
from agent.device import identifiers, profiles
from agent.device.detect import detect as look
from agent.device.machine import from_here
from agent.device.recording import Opened, open_root, write
from agent.device.tree import Folder, Tree
from agent.documents.device import Device
from agent.errors import UsageError
from agent.links.runtime_probe import probe_runtimes

EPILOG = """\b
Examples:
  edgeward detect
  edgeward detect --json > detect.json                 for `edgeward plan --device`
  edgeward detect --record board.tar                   the files that were read, without identifiers
  edgeward detect --root board.tar                     look at a recording on another machine

""" + exits.epilog(exits.DONE, exits.FAILED, exits.USAGE)

_GIB = 1024**3
_MIB = 1024**2
_UNITS = {"Cel": "°C", "W": "W", "Hz": "MHz", "1": ""}
_MOST_REFUSED = 10


class _Found(msgspec.Struct, frozen=True):
    """A device, what it was recognised as, and the profiles that were asked."""

    device: Device
    recognised: Recognised
    profiles: profiles.Profiles


@click.command(epilog=EPILOG, context_settings=HELP_SETTINGS)
@options.as_json
@click.option(
    "--record",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the files that were read into FILE, a tar, without serial numbers, addresses, ids "
    "and host names.",
    metavar="FILE",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True),
    help="Look at this folder, or at a recording's tar, in place of this machine.",
    metavar="PATH",
)
@options.config
def detect(as_json: bool, record: Path | None, root: Path | None, config: Path | None) -> int:
    """Say what this device is: board, processors, memory, accelerators, runtimes, and why."""
    opened = _here(config) if root is None else open_root(root)
    tree = Tree(opened.source)
    device = look(tree, opened.machine, opened.runtimes)
    known = profiles.load()
    found = _Found(device, known.recognise(device), known)
    if record is not None:
        # Identifiers are looked for with a reader of their own: what it reads is not recorded.
        own = identifiers.of_machine(Tree(opened.source))
        _save(record, write(tree, opened.machine, opened.runtimes, own))
    if as_json:
        click.echo(json.dumps(_as_json(found)))
        return exits.DONE
    terminal = Console(highlight=False)
    # A pipe has no width of its own; what reads it wants whole words.
    _Page(terminal if terminal.is_terminal else Console(highlight=False, width=200)).show(found)
    if record is not None:
        click.echo(f"recorded {record}: look at what is in it before you give it away")
    return exits.DONE


def _here(config: Path | None) -> Opened:
    state_dir = Path(settings_here(config).state_dir)
    return Opened(Folder(), from_here(state_dir), probe_runtimes())


def _save(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"the recording cannot be written to {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _as_json(found: _Found) -> dict[str, Any]:
    recognised = found.recognised
    return {
        "device": msgspec.to_builtins(found.device),
        "profile": {
            "name": recognised.name,
            "matched": [
                {
                    "name": profile.name,
                    "title": profile.title,
                    "kind": profile.kind,
                    "why": recognised.why.get(profile.name, ""),
                }
                for profile in recognised.matched
            ],
            "considered": [
                {"name": other.name, "why_not": other.why_not} for other in recognised.considered
            ],
            "faults": [
                msgspec.to_builtins(replace(fault, when=type(fault.when)()))
                for fault in recognised.faults
            ],
            "troubles": list(found.profiles.troubles),
        },
    }


class _Page:
    """The page for people."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, found: _Found) -> None:
        device = found.device
        self._table("", _summary(device), ("", ""))
        self._profile(found)
        self._table("accelerators", _accelerators(device), ("kind", "name", "driver", "", ""))
        self._table("runtimes", _runtimes(device), ("name", "version", "computes on", "", ""))
        self._table("sensors", _sensors(device), ("what", "name", "value"))
        self._refused(device)

    def _profile(self, found: _Found) -> None:
        recognised = found.recognised
        rows = [
            (profile.name, profile.title, f"because {recognised.why.get(profile.name, '')}")
            for profile in recognised.matched
        ]
        if not rows:
            rows = [("none", "", "write one: docs/profiles.md says how")]
        self._table("profile", rows, ("", "", ""))
        for fault in recognised.faults:
            link = f" ({fault.link})" if fault.link else ""
            self._line(f"[yellow]known fault[/] {escape(fault.says)}")
            self._line(f"  → {escape(fault.do + link)}")
        for trouble in found.profiles.troubles:
            self._line(f"[red]profile left out[/] {escape(trouble)}")

    def _table(self, title: str, rows: Any, columns: tuple[str, ...]) -> None:
        rows = list(rows)
        if not rows:
            if title:
                self._line(f"\n[bold]{title}[/]  none found")
            return
        if title:
            self._line(f"\n[bold]{title}[/]")
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        for _ in columns:
            table.add_column(overflow="fold")
        for row in rows:
            table.add_row(*(_styled(str(cell)) for cell in row))
        self._console.print(table)

    def _refused(self, device: Device) -> None:
        if not device.refused:
            return
        self._line("\n[bold]could not be read[/]")
        for line in device.refused[:_MOST_REFUSED]:
            self._line(f"[dim]{escape(line)}[/]")
        more = len(device.refused) - _MOST_REFUSED
        if more > 0:
            self._line(f"[dim]and {more} more: --json lists them[/]")

    def _line(self, markup: str) -> None:
        self._console.print(markup, soft_wrap=True)


_STYLES = {"ready": "green", "usable": "green", "not ready": "red", "not usable": "red"}


def _styled(cell: str) -> str:
    style = _STYLES.get(cell)
    return f"[{style}]{cell}[/]" if style else escape(cell)


def _summary(device: Device) -> Iterator[tuple[str, str]]:
    board, system, cpu = device.board, device.system, device.cpu
    yield "board", _joined(board.vendor, board.model, board.module) or "unknown"
    if board.compatible:
        yield "", " ".join(board.compatible)
    if device.jetson is not None:
        yield "jetson", _jetson(device)
    yield "system", _system(device)
    if system.container:
        yield "container", system.container
    yield "processors", _cpu(device)
    if cpu.features:
        yield "", " ".join(cpu.features)
    yield "memory", _memory(device)
    yield "storage", _storage(device)


def _jetson(device: Device) -> str:
    jetson = device.jetson
    if jetson is None:
        return ""
    return _joined(
        jetson.family,
        f"L4T {jetson.l4t or 'unknown'}",
        f"JetPack {jetson.jetpack}" if jetson.jetpack else "",
        f"compute capability {jetson.compute_capability}" if jetson.compute_capability else "",
        f"power mode {jetson.power_mode}" if jetson.power_mode else "",
        between=" · ",
    )


def _system(device: Device) -> str:
    system = device.system
    kernel = system.kernel_architecture
    width = f" ({kernel})" if kernel not in ("", system.architecture) else ""
    return _joined(
        system.os,
        system.architecture,
        f"kernel {system.kernel}{width}" if system.kernel else "",
        system.libc,
        f"python {system.python}" if system.python else "",
        f"pages of {system.page_bytes // 1024} KiB" if system.page_bytes else "",
        between=" · ",
    )


def _cpu(device: Device) -> str:
    cpu = device.cpu
    kinds = _joined(cpu.model, ", ".join(cpu.cores)) or "unknown"
    fewer = f", {cpu.usable:g} may be used" if cpu.usable != cpu.count else ""
    return f"{cpu.count} × {kinds}{fewer}" if cpu.count else kinds


def _memory(device: Device) -> str:
    memory = device.memory
    if not memory.total_bytes:
        return "unknown"
    limit = memory.limit_bytes
    return _joined(
        f"{memory.total_bytes / _GIB:.1f} GiB",
        f"{memory.available_bytes / _GIB:.1f} GiB available",
        f"limit {limit / _MIB:.0f} MiB" if limit is not None else "",
        "" if memory.can_be_limited else "the kernel cannot limit it (cgroup_enable=memory)",
        between=" · ",
    )


def _storage(device: Device) -> str:
    storage = device.storage
    used = storage.life_used_percent
    return _joined(
        _joined(storage.device, storage.kind),
        f"{storage.free_bytes / _GIB:.1f} GiB free",
        f"{used} % of its life used" if used is not None else "",
        f"wear: {storage.wear}" if storage.wear else "",
        "READ-ONLY" if storage.read_only else "",
        between=" · ",
    )


def _accelerators(device: Device) -> Iterator[tuple[str, ...]]:
    for found in device.accelerators:
        driver = _joined(found.driver, found.driver_version)
        ready = "ready" if found.ready else "not ready"
        yield found.kind, _joined(found.name, f"({found.bus})"), driver, ready, found.why


def _runtimes(device: Device) -> Iterator[tuple[str, ...]]:
    for found in device.runtimes:
        usable = "usable" if found.usable else "not usable"
        why = f"{found.why} → {found.hint}" if found.hint else found.why
        yield found.name, found.version, " ".join(found.providers), usable, why


def _sensors(device: Device) -> Iterator[tuple[str, ...]]:
    for found in device.sensors:
        value = found.value
        if value is not None and found.unit == "Hz":
            value /= 1e6
        shown = "no reading" if value is None else f"{value:g} {_UNITS.get(found.unit, '')}"
        yield found.kind, found.name, shown.strip()


def _joined(*words: str, between: str = " ") -> str:
    return between.join(word for word in words if word)
