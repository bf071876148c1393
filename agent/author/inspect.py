"""What is in a pack, in words: for `edgeward inspect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent.author.sign import Signer
from agent.documents.manifest import (
    Manifest,
    Needs,
    PackFile,
    Pipeline,
    Tensor,
    Variant,
    Window,
)
from agent.documents.text import printable
from agent.errors import PackError
from agent.wire.chunks import decode_list

MAX_SHOWN_OPERATORS = 12


def tensor_line(tensor: Tensor) -> str:
    """Return datatype, shape and what the numbers mean: `UINT8 [1,224,224,3]`."""
    shape = ",".join("?" if size == -1 else str(size) for size in tensor.shape)
    extra = []
    if tensor.scale is not None:
        extra.append(f"real = (q - {tensor.zero_point or 0}) * {tensor.scale:g}")
    if tensor.low is not None or tensor.high is not None:
        extra.append(f"{_bound(tensor.low)} to {_bound(tensor.high)}")
    if tensor.allow_nan:
        extra.append("may be NaN")
    words = f" {tensor.unit}" if tensor.unit else ""
    return f"{tensor.datatype} [{shape}]{words}" + (f" ({', '.join(extra)})" if extra else "")


def _bound(value: float | None) -> str:
    return "any" if value is None else f"{value:g}"


def signed_by(key_id: str, subject: str) -> str:
    """Return who signed, in words."""
    if subject and key_id:
        return f"signed by {subject} with key {key_id}"
    return f"signed by {subject}" if subject else f"signed by key {key_id}"


def signer_line(signer: Signer | None) -> str:
    """Return by whom a pack claims to be signed."""
    if signer is None:
        return "not signed"
    return printable(
        f"{signed_by(signer.key_id, signer.subject)}, which was not verified here", 400
    )


def codec_hint(manifest: Manifest) -> str:
    """What to try where a payload could not be decoded."""
    codec = (manifest.pipeline.decode or {}).get("codec", "v2_json")
    return f"the pack decodes {codec}; docs/packs.md has other codecs, for model.toml"


def pipeline_line(manifest: Manifest) -> str:
    """Return the way of a message as one line of arrows."""
    pipeline: Pipeline = manifest.pipeline
    parts = [_named(pipeline.decode, "codec") or "v2_json"]
    if pipeline.window is not None:
        parts.append(_window(pipeline.window))
    parts += [_named(step, "step") for step in pipeline.pre]
    parts.append("model")
    parts += [_named(step, "step") for step in pipeline.post]
    parts.append(_named(pipeline.encode, "codec") or "v2_json")
    return " → ".join(parts)


def _named(options: Mapping[str, Any] | None, key: str) -> str:
    if not options:
        return ""
    shown = ", ".join(f"{name}={value}" for name, value in options.items() if name != key)
    return f"{options.get(key)}({shown})" if shown else str(options.get(key))


def _window(window: Window) -> str:
    length = f"{window.size} readings" if window.size is not None else f"{window.span_ms} ms"
    step = f", every {window.step}" if window.kind == "sliding" and window.step > 1 else ""
    return f"{window.kind} window of {length}{step}"


def needs_line(variant: Variant) -> str:
    """Return what a variant asks of a runtime."""
    needs: Needs = variant.needs
    parts = []
    if needs.edgetpu:
        parts.append("an Edge TPU")
    if needs.ir_version is not None:
        opsets = ", ".join(f"{domain} {version}" for domain, version in needs.opsets.items())
        parts.append(f"IR {needs.ir_version}, opset {opsets}")
    if needs.schema_version is not None:
        oldest = needs.min_runtime_version
        parts.append(f"schema {needs.schema_version}" + (f", runtime {oldest}" if oldest else ""))
    if needs.custom_operators:
        parts.append(f"custom operators {_some(needs.custom_operators)}")
    return "; ".join(parts)


def _some(names: Sequence[str]) -> str:
    more = len(names) - MAX_SHOWN_OPERATORS
    return ", ".join(names[:MAX_SHOWN_OPERATORS]) + (f" and {more} more" if more > 0 else "")


def chunks_line(file: PackFile) -> str:
    """Return how many chunks a file is listed in; a list that is not its own is no error here."""
    try:
        count = len(decode_list(file.chunks, file.size))
    except PackError as error:
        return error.message
    return str(count) if count else ""


def delta_lines(manifest: Manifest) -> list[str]:
    """Return a sentence for each delta: what it is for, and what it saves."""
    lines = []
    for name, file in manifest.files.items():
        for delta in file.deltas:
            made = manifest.files.get(delta.file)
            size = "missing from the manifest" if made is None else size_line(made.size)
            share = "" if made is None or not file.size else f" ({made.size / file.size:.1%})"
            how = f"{delta.method}, {delta.codec}, {delta.width} planes"
            whole = size_line(file.size)
            lines.append(
                f"delta: {name} from {delta.base[:19]}…: {size} in place of {whole}{share}, {how}"
            )
    return lines


def size_line(size: int) -> str:
    """Return a size in the unit that suits it."""
    if size < 10_000:
        return f"{size} B"
    return f"{size / 1000:.1f} kB" if size < 10_000_000 else f"{size / 1_000_000:.1f} MB"
