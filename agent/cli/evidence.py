"""`edgeward evidence`: what happened on a device, exported from it and verified anywhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import click
import msgspec

from agent.cli import exits, options
from agent.cli.commands import HELP_SETTINGS
from agent.cli.configuration import load_settings
from agent.control.evidence import LINE_BYTES_MAX, Head, digest_of, end_line, read_line, verify
from agent.documents.text import printable
from agent.errors import UsageError
from agent.store.evidence import EvidenceLog
from agent.store.files import Files

EXPORT_EPILOG = """\b
Examples:
  edgeward evidence export --out press-7.jsonl      on the device, running or not
  sudo -u edgeward edgeward evidence export | ssh office 'cat > press-7.jsonl'

\b
The last line names the first and the last number, and the hash of the last
line. Keep that hash away from the device: `evidence verify --head` holds a
later export against it.

""" + exits.epilog(exits.DONE, exits.FAILED, exits.USAGE)
VERIFY_EPILOG = """\b
Examples:
  edgeward evidence verify press-7.jsonl
  edgeward evidence verify press-7.jsonl --head 4f2a…   of the export before

\b
What it finds: any line that was changed, left out, added, doubled or exchanged,
and an export that was cut at either end. What it cannot find without --head:
that the whole chain was written anew by somebody with the rights of the agent.

""" + exits.epilog(exits.DONE, exits.FAILED, exits.USAGE)


@click.group(context_settings=HELP_SETTINGS, epilog=exits.epilog(exits.DONE, exits.USAGE))
def evidence() -> None:
    """Export what happened on this device, and verify such an export.

    The agent keeps one line for each start, deployment, refusal, trust decision, activation,
    return and word of a person, at most 2 MiB of them. Each holds the hash of the one before.
    """


@evidence.command(epilog=EXPORT_EPILOG, context_settings=HELP_SETTINGS)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="The file to make (default: -)."
)
@options.config
def export(out: Path | None, config: Path | None) -> int:
    """Write all lines that are kept, oldest first, and one that ends the export."""
    folder = Path(load_settings(config).state_dir) / "evidence"
    if not folder.is_dir():
        raise UsageError(
            f"there is no evidence at {folder}", hint="has the agent run here? name its --config"
        )
    with out.open("xb") if out is not None else nullcontext(sys.stdout.buffer) as file:
        first, head = _export(EvidenceLog(Files(), folder), file)
    lines = head.n - first + 1 if first else 0
    click.echo(f"{lines} lines, {first} to {head.n}; head {head.digest}", err=True)
    return exits.DONE


@evidence.command("verify", epilog=VERIFY_EPILOG, context_settings=HELP_SETTINGS)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--head", default="", help="The hash of a line that must be in it, 64 hex digits.")
@options.as_json
def verify_command(file: Path, head: str, as_json: bool) -> int:
    """Follow the chain in FILE, and say at which line it breaks first."""
    with file.open("rb") as opened:
        verdict = verify(_lines(opened), head.lower())
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(verdict)))
    elif verdict.ok:
        last = verdict.first + verdict.lines - 1 if verdict.lines else 0
        dropped = f"; {verdict.first - 1} older ones were given up" if verdict.first > 1 else ""
        click.echo(f"whole: lines {verdict.first} to {last}{dropped}; head {verdict.head}")
    else:
        click.echo(printable(f"{file}: broken at line {verdict.broken_line}: {verdict.why}"))
        click.echo(f"{verdict.lines} lines before it follow from one another")
    return exits.DONE if verdict.ok else exits.FAILED


def _export(log: EvidenceLog, file: BinaryIO) -> tuple[int, Head]:
    first, head = 0, Head()
    for data in log.lines():
        line = read_line(data)
        number = line.n if line is not None else head.n + 1
        # As they are, also where they do not follow: to find that is the verifier's part.
        first, head = first or number, Head(number, digest_of(data))
        file.write(data + b"\n")
    file.write(end_line(first, head) + b"\n")
    file.flush()
    return first, head


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(LINE_BYTES_MAX + 2):
        yield line
