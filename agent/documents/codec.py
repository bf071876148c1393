"""Strict, bounded decoding of documents, with errors that name the offending value.

Unknown fields are ignored and counted, so that a newer console can talk to an older device; an
unknown `schema` is refused. Everything else that does not fit is a `DocumentError` that says where,
what was expected and what was there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from agent.errors import DocumentError

T = TypeVar("T")

MAX_DEPTH = 24
MAX_SHOWN = 60
_WHERE = re.compile(r" - at `.*`$", re.DOTALL)
# Fits wherever a quote stands, also where the string never ends: a pattern that could fail there
# would be tried again at each quote, for hours in one manifest.
_STRING = re.compile(rb'"(?:[^"\\]+|\\.?)*"?', re.DOTALL)


class Decoded(msgspec.Struct, Generic[T], frozen=True):
    """A document and the number of fields in it that this version does not know."""

    value: T
    unknown_fields: int


def decode(data: bytes, kind: type[T], *, name: str, max_bytes: int) -> Decoded[T]:
    """Decode one JSON document.

    Args:
        data: UTF-8 JSON.
        kind: The `msgspec.Struct` to decode to.
        name: What people call this document; every error starts with it.
        max_bytes: Larger documents are refused unread.

    Raises:
        DocumentError: The document is too large, too deep, no JSON, or does not fit the type.
    """
    if len(data) > max_bytes:
        raise DocumentError(name, f"at most {max_bytes} bytes", f"{len(data)} bytes")
    bound_depth(data, name)
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DocumentError(name, "a JSON document", str(error)) from None
    return convert(raw, kind, name=name)


def convert(raw: object, kind: type[T], *, name: str) -> Decoded[T]:
    """Check an already parsed document (builtins, as JSON or TOML give them) against its type.

    Raises:
        DocumentError: It does not fit.
    """
    if isinstance(raw, Mapping) and "schema" in getattr(kind, "__struct_fields__", ()):
        wanted = _schema_of(kind)
        if raw.get("schema", wanted) != wanted:
            raise DocumentError(
                f"{name}.schema",
                str(wanted),
                show(raw["schema"]),
                hint="this version of edgeward does not know that schema; upgrade the agent",
            )
    try:
        value = msgspec.convert(raw, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _locate(raw, kind, name) or DocumentError(name, *_reason(error, raw, kind)) from None
    return Decoded(value, sum(1 for _ in unknown_keys(raw, kind, name)))


def encode(document: msgspec.Struct) -> bytes:
    """Encode a document as compact JSON, keys in the order of the type."""
    return msgspec.json.encode(document)


def show(value: object) -> str:
    """Return a short, safe rendering of a value for an error text."""
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _named(key: object) -> str:
    """A key as a path shows it: as it is, unless it is too long or would not print."""
    text = str(key)
    return text if len(text) <= MAX_SHOWN and text.isprintable() else show(key)


def bound_depth(data: bytes, name: str) -> None:
    """Refuse JSON whose nesting could exhaust a parser.

    Raises:
        DocumentError: It has more than `MAX_DEPTH` levels.
    """
    depth = deepest = 0
    for byte in re.findall(rb"[\[\]{}]", _STRING.sub(b"", data)):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise DocumentError(name, f"at most {MAX_DEPTH} levels of nesting", f"{deepest} levels")


def _schema_of(kind: Any) -> object:
    """Return N of a document's `schema: Literal[N]`."""
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}
    return get_args(types["schema"])[0]


def _reason(error: msgspec.ValidationError, raw: object, kind: Any) -> tuple[str, str]:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}", show(raw)
    text = _WHERE.sub("", str(error))
    found = re.match(r"Expected (.*?)(?:, got (.*))?$", text, re.DOTALL)
    if found:
        return found.group(1).replace("`", ""), show(raw)
    missing = re.match(r"Object missing required field `(.*)`", text)
    if missing:
        return f"a field {missing.group(1)!r}", "none"
    return "a valid value", f"{show(raw)}: {_cut(text)}"


def _locate(raw: object, kind: Any, path: str) -> DocumentError | None:
    """Find the deepest value that does not fit, so that the error can name it."""
    for child, child_kind, child_path in _children(raw, kind, path):
        try:
            msgspec.convert(child, child_kind, strict=True)
        except msgspec.ValidationError as error:
            deeper = _locate(child, child_kind, child_path)
            return deeper or DocumentError(child_path, *_reason(error, child, child_kind))
    return None


def _children(raw: object, kind: Any, path: str) -> list[tuple[object, Any, str]]:
    kind = _choose(raw, kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(raw, Mapping):
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return [
                (raw[f.encode_name], f.type, f"{path}.{f.encode_name}")
                for f in msgspec.structs.fields(kind)
                if f.encode_name in raw
            ]
        if origin in (dict, Mapping) or (origin is not None and len(arguments) == 2):
            keys = [(key, arguments[0], f"{path} key {show(key)}") for key in raw]
            return keys + [(raw[key], arguments[1], f"{path}.{_named(key)}") for key in raw]
    if isinstance(raw, (list, tuple)) and origin in (list, tuple) and arguments:
        return [(item, arguments[0], f"{path}[{i}]") for i, item in enumerate(raw)]
    return []


def _choose(raw: object, kind: Any) -> Any:
    """Look through Annotated and Optional to the type that says what is inside."""
    if hasattr(kind, "__metadata__"):
        return _choose(raw, get_args(kind)[0])
    if get_origin(kind) is Union or type(kind).__name__ == "UnionType":
        for option in get_args(kind):
            inner = _choose(raw, option)
            is_struct = isinstance(inner, type) and issubclass(inner, msgspec.Struct)
            if isinstance(raw, Mapping) and (is_struct or get_origin(inner) is dict):
                return inner
            if isinstance(raw, list) and get_origin(inner) in (list, tuple):
                return inner
    return kind


def unknown_keys(raw: object, kind: Any, path: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Find the keys of an already parsed document that this version does not know.

    Yields:
        The path of such a key, and the keys that are known in its place.
    """
    chosen = _choose(raw, kind)
    if isinstance(raw, Mapping) and isinstance(chosen, type) and issubclass(chosen, msgspec.Struct):
        known = tuple(field.encode_name for field in msgspec.structs.fields(chosen))
        yield from ((f"{path}.{_named(key)}", known) for key in raw if key not in known)
    for child, child_kind, child_path in _children(raw, chosen, path):
        yield from unknown_keys(child, child_kind, child_path)
