"""`edgeward plan`: will it run? From a manifest and a device's facts, before a model is fetched."""

from __future__ import annotations

import hashlib
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec.structs import replace
from rich.console import Console

from agent.cli import exits, options
from agent.cli.commands import HELP_SETTINGS
from agent.cli.here import device_here, settings_here
from agent.control.objections import PlanLimits
from agent.control.plan import Plan, VariantPlan
from agent.control.plan import plan as make_plan
from agent.control.profiles import Recognised, typical_of
from agent.device.profiles import OWN, Profiles, load
from agent.documents.codec import decode
from agent.documents.device import MAX_DEVICE_BYTES, Device, RuntimeFacts
from agent.documents.manifest import MAX_MANIFEST_BYTES, Manifest
from agent.documents.profile import Fault
from agent.errors import DocumentError, RuntimeUnavailable, UsageError

MANIFEST = "manifest.json"
_WEB = ("http://", "https://")


class _Asked(msgspec.Struct, frozen=True):
    """What is planned, and for what."""

    pack: str
    manifest: Manifest
    device: Device
    recognised: Recognised
    troubles: tuple[str, ...]
    # Facts of a kind of device, not of one that was looked at.
    typical: bool


@click.command(
    context_settings=HELP_SETTINGS,
    epilog="\b\nExamples:\n"
    "  edgeward plan build/vibration\n"
    "  edgeward plan build/vibration --profile raspberry-pi-5 --profile coral-usb\n"
    "  edgeward plan https://models.example/vibration/1.4.0/ --device detect.json --json\n\n"
    + exits.epilog(exits.DONE, exits.FAILED, exits.USAGE, exits.WILL_NOT_RUN),
)
@click.argument("pack")
@click.option(
    "--device",
    "device_file",
    type=click.Path(path_type=Path),
    help="What `edgeward detect` said there, with --json or --record. Default: this device.",
)
@click.option(
    "--profile",
    "names",
    multiple=True,
    help="A kind of device, as it usually comes; repeated: with an add-on.",
)
@click.option(
    "--profiles",
    "own",
    type=click.Path(path_type=Path),
    default=OWN,
    show_default=True,
    help="Folder of your own profiles.",
)
@options.config
@options.as_json
def plan(
    pack: str,
    device_file: Path | None,
    names: Sequence[str],
    own: Path,
    config: Path | None,
    as_json: bool,
) -> int:
    """Say for each variant of PACK whether it will run on a device, how, and if not, why.

    PACK is a pack's folder, its manifest.json, or the URL of either. No model is read, fetched or
    loaded. The device is this one (with its settings), a recorded one, or a kind of device.
    """
    if device_file and names:
        raise UsageError("--device and --profile exclude each other", hint="give one of them")
    digest, manifest = _manifest(pack)
    profiles, limits = load(own), PlanLimits(momentary=True)
    if device_file is not None:
        device = _recorded(device_file)
    elif names:
        device = _typical(names, profiles)
    else:
        settings = settings_here(config)
        device = device_here(settings)
        worker_memory_bytes = settings.limits.worker_memory_mb * 1024 * 1024
        limits = PlanLimits(worker_memory_bytes, momentary=True)
    asked = _Asked(
        digest,
        manifest,
        device,
        profiles.recognise(device),
        profiles.troubles,
        bool(names),
    )
    planned = make_plan(manifest, device, asked.recognised, limits)
    if as_json:
        sys.stdout.write(msgspec.json.encode(_document(asked, planned)).decode() + "\n")
    else:
        _show(asked, planned)
    return exits.DONE if planned.runs else exits.WILL_NOT_RUN


def _manifest(pack: str) -> tuple[str, Manifest]:
    """Return a manifest with the id of its pack."""
    data = _from_web(pack) if pack.startswith(_WEB) else _from_disk(Path(pack))
    manifest = decode(data, Manifest, name=MANIFEST, max_bytes=MAX_MANIFEST_BYTES).value
    return f"sha256:{hashlib.sha256(data).hexdigest()}", manifest


def _from_disk(path: Path) -> bytes:
    place = path / MANIFEST if path.is_dir() else path
    return _read(place, MAX_MANIFEST_BYTES, "give a pack's folder, its manifest.json, or a URL")


def _from_web(url: str) -> bytes:
    from agent.daemon.fetch_http import HttpFiles

    parts, question, query = url.partition("?")
    base = parts.removesuffix(MANIFEST) + question + query
    data = bytearray()
    for offset, piece in HttpFiles(base).pieces(MANIFEST, 0, None):
        del data[offset:]
        data += piece
    return bytes(data)


def _read(path: Path, most: int, hint: str) -> bytes:
    try:
        if not path.is_file():
            raise UsageError(f"{path}: there is no such file", hint=hint)
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint=hint) from None


def _recorded(file: Path) -> Device:
    """Read a device's facts: from a recording, alone, or under `device` of what `edgeward detect`
    prints."""
    if file.suffix == ".tar":
        return _recording(file)
    hint = "give what `edgeward detect --json` printed, or the .tar of `edgeward detect --record`"
    data = _read(file, 4 * MAX_DEVICE_BYTES, hint)
    most = 4 * MAX_DEVICE_BYTES
    try:
        raw = decode(data, dict[str, Any], name=str(file), max_bytes=most).value
        facts = msgspec.json.encode(raw.get("device", raw))
        return decode(facts, Device, name=str(file), max_bytes=MAX_DEVICE_BYTES).value
    except DocumentError as error:
        raise DocumentError(
            error.path, error.expected, error.got, hint=error.hint or hint
        ) from None


def _recording(file: Path) -> Device:
    from agent.device.detect import detect
    from agent.device.recording import open_root
    from agent.device.tree import Tree

    opened = open_root(file)
    return detect(Tree(opened.source), opened.machine, opened.runtimes)


def _typical(names: Sequence[str], profiles: Profiles) -> Device:
    chosen = []
    for name in names:
        profile = profiles.named(name)
        if profile is None:
            known = ", ".join(sorted(one.name for one in profiles.every))
            raise UsageError(f"there is no profile called {name!r}", hint=f"known here: {known}")
        chosen.append(profile)
    boards = [profile for profile in chosen if profile.kind == "board"]
    if len(boards) != 1:
        raise UsageError(
            f"of {', '.join(names)} {len(boards) or 'none'} are boards",
            hint="give one board, and add-ons beside it if there are any",
        )
    device = typical_of(boards[0], [one for one in chosen if one.kind == "addon"])
    if device is None:
        raise UsageError(
            f"the profile {boards[0].name} does not say how such a device usually comes",
            hint="give a recorded device with --device",
        )
    return replace(device, runtimes=(*device.runtimes, *_everywhere(device)))


def _everywhere(device: Device) -> list[RuntimeFacts]:
    """What comes with the agent itself, and needs nothing that this kind of device could lack."""
    if device.runtime("reference"):
        return []
    from agent.runtimes import registry

    try:
        return [registry.find("reference").facts()]
    except RuntimeUnavailable:
        return []


# For programs.


def _document(asked: _Asked, planned: Plan) -> dict[str, Any]:
    return {
        "schema": 1,
        "pack": asked.pack,
        "name": asked.manifest.name,
        "version": asked.manifest.version,
        "profile": asked.recognised.name,
        "typical": asked.typical,
        "runs": planned.runs,
        "variants": [_variant(one) for one in planned.variants],
        "candidates": [
            {**msgspec.to_builtins(one.way), "because": one.because} for one in planned.candidates
        ],
        "fetch": planned.fetch,
        "files": planned.files,
        "faults": [msgspec.to_builtins(fault) for fault in asked.recognised.faults],
        "troubles": asked.troubles,
    }


def _variant(one: VariantPlan) -> dict[str, Any]:
    return {
        "name": one.variant.name,
        "format": one.variant.format,
        "bytes": one.bytes,
        "runs": one.runs,
        "reason": one.reason,
        "ways": [
            {
                "runtime": verdict.runtime,
                "provider": verdict.provider,
                "options": verdict.options,
                "runs": verdict.runs,
                "peak_memory_bytes": verdict.peak_bytes,
                "reason": verdict.reason,
            }
            for verdict in one.verdicts
        ],
    }


# For people.


def _show(asked: _Asked, planned: Plan) -> None:
    width = None if sys.stdout.isatty() else 120
    console = Console(highlight=False, width=width)
    manifest, recognised = asked.manifest, asked.recognised
    _say(console, f"{manifest.name} {manifest.version} on {_named(asked)}", indent=0)
    for name, why in recognised.why.items():
        _say(console, f"{name}: {why}", indent=0)
    for one in planned.variants:
        _show_variant(console, one)
    _show_candidates(console, planned)
    for fault in recognised.faults:
        _show_fault(console, fault)
    for trouble in asked.troubles:
        print(f"edgeward: {trouble}", file=sys.stderr)


def _named(asked: _Asked) -> str:
    board = asked.recognised.board
    title = asked.device.board.model or (board.title if board else "a device of no known kind")
    memory = asked.device.memory.total_bytes
    facts = (
        asked.device.system.architecture,
        asked.device.system.os,
        f"Python {asked.device.system.python}" if asked.device.system.python else "",
        f"{memory / 2**30:.3g} GiB" if memory else "",
        "as it usually comes" if asked.typical else "",
    )
    return f"{title} ({', '.join(fact for fact in facts if fact)})"


def _show_variant(console: Console, one: VariantPlan) -> None:
    mark = "[green]yes[/]" if one.runs else "[red]no[/]"
    console.print(
        f"\n{mark} [bold]{one.variant.name}[/] {one.variant.format}, {one.bytes / 1e6:.3g} MB"
    )
    for verdict in one.verdicts:
        how = f"{verdict.runtime} {verdict.provider}".rstrip()
        if verdict.reason is None:
            memory = f"about {verdict.peak_bytes / 1e6:.0f} MB of memory while it loads"
            _say(console, f"{how}: can be tried, {memory}")
            continue
        _say(console, f"{how}: {verdict.reason.says}")
        if verdict.reason.do:
            _say(console, f"→ {verdict.reason.do}", indent=6)
    if not one.verdicts and one.reason:
        _say(console, one.reason.says)


def _show_candidates(console: Console, planned: Plan) -> None:
    if not planned.runs:
        console.print("\n[bold]Nothing of this pack runs there.[/]")
        return
    console.print(f"\nfetched: {', '.join(planned.fetch)}; measured, in this order:")
    told: set[str] = set()
    for one in planned.candidates:
        because = f": {one.because}" if one.because and one.because not in told else ""
        told.add(one.because)
        _say(console, f"{one.way}{because}")


def _show_fault(console: Console, fault: Fault) -> None:
    console.print()
    _say(console, f"known here: {fault.says}", indent=0)
    _say(console, f"→ {fault.do}", indent=2)
    _say(console, fault.link, indent=2)


def _say(console: Console, text: str, indent: int = 4) -> None:
    """Print text with every line of it indented; nothing in it is markup."""
    space = " " * indent
    hanging = space + "  "
    lines = textwrap.wrap(
        text,
        max(40, console.width),
        initial_indent=space,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
