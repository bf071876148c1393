"""JSON that somebody may have made to be read in two ways: what has two readings is refused."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from agent.documents import codec
from agent.errors import BundleMalformed, DocumentError

T = TypeVar("T")

# Nothing that is signed holds a number; Python takes minutes for one of a million digits.
_DIGITS_MAX = 20


def parse(data: bytes, *, name: str, max_bytes: int) -> Any:
    """Read one JSON text.

    Args:
        data: UTF-8, with no byte order mark.
        name: What people call it; every error starts with it.
        max_bytes: What is longer is refused unread.

    Raises:
        BundleMalformed: It is too long, nested too deep, no JSON, or an object names a key twice.
    """
    if len(data) > max_bytes:
        raise malformed("too_large", f"{name}: has {len(data)} bytes, at most {max_bytes} are read")
    try:
        codec.bound_depth(data, name)
        return json.loads(
            data.decode(),
            object_pairs_hook=lambda pairs: _object(pairs, name),
            parse_int=lambda digits: _number(digits, name),
            parse_constant=lambda word: _not_json(name, word),
        )
    except DocumentError as error:
        raise malformed("too_deep", str(error)) from None
    except (ValueError, RecursionError) as error:
        raise malformed("not_json", f"{name}: is not JSON: {error}") from None


def fit(raw: object, kind: type[T], *, name: str) -> T:
    """Check parsed JSON against its type.

    Raises:
        BundleMalformed: A field is missing or of another type; says which.
    """
    try:
        return codec.convert(raw, kind, name=name).value
    except DocumentError as error:
        raise malformed("field", str(error)) from None


def fit_exactly(raw: object, kind: type[T], *, name: str) -> T:
    """The same for an object that must have no other fields than the type's.

    Raises:
        BundleMalformed: It does not fit, or has a field that is not the type's.
    """
    value = fit(raw, kind, name=name)
    for path, _ in codec.unknown_keys(raw, kind, name):
        raise malformed("unknown_field", f"{path}: is a field that is not known here")
    return value


def malformed(reason: str, message: str) -> BundleMalformed:
    """The error for a signature file that is not of the one form that is taken."""
    return BundleMalformed(
        message,
        reason=reason,
        hint="sign the pack again, with `edgeward sign` or model-signing 1.0 or newer",
    )


def _object(pairs: list[tuple[str, Any]], name: str) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise malformed("duplicate_key", f"{name}: names the key {codec.show(twice)} twice")
    return made


def _number(digits: str, name: str) -> int:
    if len(digits) > _DIGITS_MAX:
        raise malformed("not_json", f"{name}: has a number of {len(digits)} digits")
    return int(digits)


def _not_json(name: str, word: str) -> NoReturn:
    raise malformed("not_json", f"{name}: is not JSON: {word}")
