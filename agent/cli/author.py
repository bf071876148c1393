"""`edgeward pack`, `inspect` and `predict`: on the workstation, with no device and no broker."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from agent.cli import exits, options
from agent.cli.commands import HELP_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.author.deltas import Saving
    from agent.author.folder import OpenedPack
    from agent.author.pack import Packed
    from agent.author.sign import Signer
    from agent.author.trials import Tried
    from agent.documents.manifest import Manifest

_PATH = click.Path(path_type=Path)


def _json(document: Any) -> None:
    sys.stdout.write(msgspec.json.encode(document).decode() + "\n")


def _console() -> Console:
    # Into a pipe or a file nothing is cut to the width of a screen.
    width = None if sys.stdout.isatty() else 200
    return Console(highlight=False, soft_wrap=True, width=width)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


@click.command(
    context_settings=HELP_SETTINGS,
    epilog="\b\nExamples:\n"
    "  edgeward pack model.onnx --out build/vibration --version 1.4.0\n"
    "  edgeward pack model.tflite --out build/kws --spec model.toml --samples golden.json\n"
    "  edgeward pack model.onnx --out build/vibration --key release\n\n"
    + exits.epilog(exits.DONE, exits.FAILED, exits.USAGE, exits.BAD_PACK),
)
@click.argument("model", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="The folder to make.")
@click.option("--name", help="Default: that of the specification, else the file's.")
@click.option("--version", help="Default: that of the specification, else 1.")
@click.option("--spec", "spec_file", type=_PATH, help="model.toml; docs/packs.md describes it.")
@click.option(
    "--samples",
    type=_PATH,
    multiple=True,
    help="Golden samples: .npy, .npz, .csv, .json (V2), .jsonl, or a payload. Can be repeated.",
)
@click.option("--deadline", default=30.0, show_default=True, help="Seconds for a load or a run.")
@click.option("--force", is_flag=True, help="Replace another pack in --out.")
@click.option(
    "--delta-from",
    type=_PATH,
    multiple=True,
    metavar="DIR",
    help="An older pack: devices that have it fetch a delta. Can be repeated.",
)
@click.option("--key", type=_PATH, help="Sign it at once with this private key.")
@options.key_password_file
@click.option(
    "--unchecked",
    is_flag=True,
    help="For tests: write the pack without reading or running the model.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def pack(
    model: Path,
    out: Path,
    name: str | None,
    version: str | None,
    spec_file: Path | None,
    samples: tuple[Path, ...],
    deadline: float,
    force: bool,
    delta_from: tuple[Path, ...],
    key: Path | None,
    password_file: Path | None,
    unchecked: bool,
    as_json: bool,
) -> int:
    """Make a pack of MODEL, an .onnx or .tflite file, and prove it here.

    What the file says of itself is read, golden samples are run through it, and their answers
    become the self-test that every device must pass. The same input gives the same pack.
    """
    from agent.author.pack import pack as make
    from agent.author.sign import read_key, read_password, sign_pack
    from agent.author.spec import read_spec

    password = read_password(password_file)
    signer = read_key(key, password) if key else None
    packed = make(
        model,
        out,
        spec=read_spec(spec_file) if spec_file else None,
        name=name,
        version=version,
        samples=samples or None,
        unchecked=unchecked,
        force=force,
        deadline_s=deadline,
        delta_from=delta_from,
    )
    signed = sign_pack(packed.directory, signer) if signer else None
    if as_json:
        _json(
            {
                "pack": packed.pack,
                "name": packed.manifest.name,
                "version": packed.manifest.version,
                "directory": str(packed.directory),
                "variants": packed.tried,
                "selftest": len(packed.manifest.selftest),
                "notes": packed.notes,
                "savings": packed.savings,
                "key_id": signed.key_id if signed else "",
            }
        )
        return exits.DONE
    _show_packed(packed, signed.key_id if signed else "")
    return exits.DONE


def _show_packed(packed: Packed, key_id: str) -> None:
    console = _console()
    manifest = packed.manifest
    console.print(f"[bold]{manifest.name} {manifest.version}[/] in {packed.directory}")
    _signature(console, manifest)
    if packed.tried:
        table = _table("variant", "runtime", "self-test", "median", "memory")
        for one in packed.tried:
            table.add_row(one.variant, *_tried(one))
        console.print(table)
    if packed.savings:
        _savings(console, packed.savings)
    for note in packed.notes:
        console.print(f"note: {note}", markup=False)
    if key_id:
        console.print(f"signed by key {key_id}")
    console.print(packed.pack, style="bold")


def _savings(console: Console, savings: Sequence[Saving]) -> None:
    from agent.author import inspect as words

    table = _table("file", "from version", "whole", "missing chunks", "delta", "to fetch")
    for one in savings:
        chunks = "-" if one.chunks_bytes is None else words.size_line(one.chunks_bytes)
        delta = words.size_line(one.delta_bytes) + ("" if one.kept else " (left out)")
        fetched = f"{one.wire_bytes / one.whole_bytes:.1%}"
        table.add_row(
            one.file, one.version, words.size_line(one.whole_bytes), chunks, delta, fetched
        )
    console.print(table)


def _tried(one: Tried) -> tuple[str, str, str, str]:
    if one.probed is None:
        return one.runtime or "-", f"not run: {one.why}", "-", "-"
    probed = one.probed
    ready = probed.ready
    return (
        f"{ready.runtime} {ready.runtime_version} ({ready.placement.got})",
        f"{probed.cases} passed, deviation {probed.max_deviation:.2g}",
        f"{probed.p50_ms:.3g} ms",
        f"{probed.peak_memory_bytes / 1e6:.0f} MB",
    )


def _signature(console: Console, manifest: Manifest) -> None:
    from agent.author import inspect as words

    table = _table("", "", "")
    for role in ("inputs", "outputs"):
        for tensor in getattr(manifest, role):
            table.add_row(role.removesuffix("s"), tensor.name, words.tensor_line(tensor))
    console.print(table)


@click.command(
    context_settings=HELP_SETTINGS,
    epilog="\b\nExamples:\n  edgeward inspect build/vibration\n\n"
    + exits.epilog(exits.DONE, exits.USAGE, exits.BAD_PACK),
)
@click.argument("directory", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def inspect(directory: Path, as_json: bool) -> int:
    """Show what is in the pack in DIRECTORY, and verify its files while at it."""
    from agent.author.folder import open_pack, verify
    from agent.author.sign import claimed_signer
    from agent.errors import PackError

    opened = open_pack(directory)
    wrong = verify(opened)
    signer = None
    try:
        signer = claimed_signer(directory)
    except PackError as error:
        wrong.append(error.message)
    if as_json:
        _json(
            {
                "pack": opened.pack,
                "signed": opened.signed,
                "signer": signer,
                "whole": not wrong,
                "wrong": wrong,
                "manifest": opened.manifest,
            }
        )
    else:
        _show_pack(opened, signer)
    for sentence in wrong:
        print(f"edgeward: {directory}: {sentence}", file=sys.stderr)
    return exits.BAD_PACK if wrong else exits.DONE


def _show_pack(opened: OpenedPack, signer: Signer | None) -> None:
    from agent.author import inspect as words

    console, manifest = _console(), opened.manifest
    console.print(f"[bold]{manifest.name} {manifest.version}[/]  {manifest.task}")
    console.print(opened.pack)
    console.print(words.signer_line(signer), style="dim", markup=False)
    _signature(console, manifest)
    console.print(words.pipeline_line(manifest), markup=False)
    for pair in manifest.state:
        console.print(f"state: {pair.output} → {pair.input}", markup=False)
    if manifest.labels:
        shown = ", ".join(manifest.labels[:8])
        more = f" … ({len(manifest.labels)})" if len(manifest.labels) > 8 else ""
        console.print(f"labels: {shown}{more}", markup=False)
    _variants(console, manifest)
    _files(console, manifest)
    for key, value in msgspec.to_builtins(manifest.card).items():
        console.print(f"{key.replace('_', ' ')}: {value}", markup=False)
    limits = msgspec.to_builtins(manifest.limits)
    if limits:
        said = ", ".join(f"{key} {value}" for key, value in limits.items())
        console.print(f"limits: {said}", markup=False)
    console.print(f"self-test: {len(manifest.selftest)} cases", markup=False)


def _variants(console: Console, manifest: Manifest) -> None:
    from agent.author import inspect as words

    table = _table("variant", "file", "needs", "tolerance", "hidden state")
    for variant in manifest.variants:
        tolerance = f"±{variant.tolerance.absolute:g}"
        if variant.tolerance.relative:
            tolerance += f" ±{variant.tolerance.relative:.2%}"
        table.add_row(
            variant.name, variant.file, words.needs_line(variant), tolerance, variant.hidden_state
        )
    console.print(table)


def _files(console: Console, manifest: Manifest) -> None:
    from agent.author import inspect as words

    table = _table("file", "size", "digest", "chunks")
    for name, file in manifest.files.items():
        chunks = words.chunks_line(file)
        table.add_row(name, words.size_line(file.size), file.digest[:19] + "…", chunks)
    console.print(table)
    for line in words.delta_lines(manifest):
        console.print(line, markup=False)


def _setting(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, str | int | float | bool]:
    settings: dict[str, str | int | float | bool] = {}
    for one in given:
        key, equals, text = one.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"expected name=value, got {one!r}")
        settings[key] = _value(text)
    return settings


def _value(text: str) -> str | int | float | bool:
    """Read a value as JSON would: 0.8, true; anything else is text."""
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    return value if isinstance(value, (int, float, bool)) else text


@click.command(
    context_settings=HELP_SETTINGS,
    epilog="\b\nExamples:\n"
    "  edgeward predict build/vibration --input request.json\n"
    "  edgeward predict build/camera --input photo.jpg --setting threshold=0.6\n\n"
    + exits.epilog(exits.DONE, exits.FAILED, exits.USAGE, exits.TIMED_OUT, exits.BAD_PACK),
)
@click.argument("directory", type=_PATH)
@click.option(
    "--input",
    "inputs",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True),
    multiple=True,
    required=True,
    help="A V2 request, or what the pack decodes. Repeated: in that order, from one source.",
)
@click.option("--topic", default="predict", show_default=True, help="The source's topic.")
@click.option("--variant", default="", help="Default: the first that runs here.")
@click.option(
    "--setting",
    "settings",
    multiple=True,
    callback=_setting,
    metavar="NAME=VALUE",
    help="Of the pack, as a slot's.",
)
@click.option("--deadline", default=30.0, show_default=True, help="Seconds for a load or a run.")
@click.option("--json", "as_json", is_flag=True, help="The answer itself on standard output.")
def predict(
    directory: Path,
    inputs: tuple[Path, ...],
    topic: str,
    variant: str,
    settings: dict[str, str | int | float | bool],
    deadline: float,
    as_json: bool,
) -> int:
    """Run the pack in DIRECTORY once, in a worker as on a device, with no daemon and no broker."""
    from agent.author.folder import open_pack
    from agent.author.inspect import codec_hint
    from agent.author.predict import ask, serve
    from agent.errors import BadInput, UsageError

    payloads = [_payload(path) for path in inputs]
    with serve(directory, variant=variant, settings=settings, deadline_s=deadline) as worker:
        try:
            answers = [ask(worker, payload, topic=topic) for payload in payloads]
        except BadInput as error:
            error.hint = error.hint or codec_hint(open_pack(directory).manifest)
            raise
    answer = answers[-1]
    if answer is None:
        raise UsageError(
            f"after {len(payloads)} messages the window is still open: there is no prediction yet",
            hint="give --input for each message that the window takes",
        )
    if as_json:
        sys.stdout.buffer.write(answer + b"\n")
    else:
        _show_answer(answer)
    return exits.DONE


def _payload(path: Path) -> bytes:
    return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()


def _show_answer(answer: bytes) -> None:
    """Print the outputs of a V2 response; anything else as it came."""
    try:
        response: dict[str, Any] = msgspec.json.decode(answer)
        outputs = response["outputs"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        sys.stdout.buffer.write(answer)
        return
    console = _console()
    table = _table("output", "datatype", "shape", "values")
    for output in outputs:
        values = [_short(value) for value in output["data"][:10]]
        more = " …" if len(output["data"]) > 10 else ""
        table.add_row(
            output["name"],
            output["datatype"],
            str(output["shape"]),
            " ".join(values) + more,
        )
    console.print(table)
    made = response.get("parameters", {})
    console.print(
        f"{response.get('model_name')} {response.get('model_version')}, {made.get('variant')} on "
        f"{made.get('runtime')} ({made.get('provider')}), {made.get('run_us')} µs",
        style="dim",
    )


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
