"""Reading JSON that a stranger wrote: typed, bounded, with errors that name the value.

Numbers never go through a wider or narrower type than their own: INT64 stays exact, a number beyond
FP32 is refused. NaN and Infinity are no JSON; where an input allows NaN, `null` means it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
import numpy as np

from agent.documents.manifest import Tensor
from agent.errors import BadInput
from agent.pipeline.message import MAX_ID_CHARACTERS
from agent.pipeline.tensors import DTYPES, FLOAT_MAX, Array, fp32_to_bf16

# What a decoder of msgspec raises for bytes that are not what they should be.
JSON_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_INTEGER_BITS = {"INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64}
_UNSIGNED_BITS = {"UINT8": 8, "UINT16": 16, "UINT32": 32}
# An id at the head of an object that is otherwise no JSON.
_LEADING_ID = re.compile(rb'\s*\{\s*"id"\s*:\s*("(?:[^"\\\x00-\x1f]|\\.){0,1024}")', re.DOTALL)
_WHERE = re.compile(r"(?P<what>.*) - at `\$(?P<where>.*)`$", re.DOTALL)


class _OnlyId(msgspec.Struct, gc=False):
    id: str | None = None


_only_id = msgspec.json.Decoder(_OnlyId)
_string = msgspec.json.Decoder(str)


def find_id(payload: bytes | memoryview) -> str | None:
    """Return the id of a JSON object, whatever else is wrong with it; None if there is none."""
    try:
        found = _only_id.decode(payload).id
    except JSON_ERRORS:
        return leading_id(payload)
    return found if found is not None and len(found) <= MAX_ID_CHARACTERS else None


def leading_id(payload: bytes | memoryview) -> str | None:
    """Return an id that stands first in an object, without looking at the rest."""
    match = _LEADING_ID.match(payload)
    try:
        found = _string.decode(match.group(1)) if match else None
    except JSON_ERRORS:
        return None
    return found if found is not None and len(found) <= MAX_ID_CHARACTERS else None


def explain(error: Exception, root: str = "") -> str:
    """Say in one sentence what a decoder did not like.

    Args:
        error: What it raised.
        root: The path of the decoded value in the payload.
    """
    if isinstance(error, RecursionError):
        return f"{root or 'payload'}: nested too deeply"
    text = str(error)
    found = _WHERE.match(text)
    if found:
        where = (root + found["where"]).lstrip(".")
        return f"{where or 'payload'}: {_lower(found['what'])}"
    return f"{root or 'payload'}: {_lower(text)}"


def _lower(text: str) -> str:
    text = text.replace("`", "").removesuffix(".")
    # "JSON is malformed" keeps its capitals.
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def element_type(tensor: Tensor) -> Any:
    """Return the JSON type of one element, with the bounds of its datatype."""
    datatype = tensor.datatype
    if datatype in FLOAT_MAX:
        largest = FLOAT_MAX[datatype]
        number: Any = Annotated[float, msgspec.Meta(ge=-largest, le=largest)]
        return number | None if tensor.allow_nan else number
    if datatype in _INTEGER_BITS:
        half = 1 << (_INTEGER_BITS[datatype] - 1)
        return Annotated[int, msgspec.Meta(ge=-half, le=half - 1)]
    if datatype in _UNSIGNED_BITS:
        return Annotated[int, msgspec.Meta(ge=0, le=(1 << _UNSIGNED_BITS[datatype]) - 1)]
    if datatype == "UINT64":
        return Annotated[int, msgspec.Meta(ge=0)]
    return bool if datatype == "BOOL" else str


def to_array(values: Any, tensor: Tensor, where: str) -> Array:
    """Turn elements of `element_type`, nested or flat, into an array.

    Raises:
        BadInput: An integer is beyond the datatype, or nested lists differ in length.
    """
    try:
        if tensor.datatype == "BF16":
            return fp32_to_bf16(np.array(values, np.float32))
        return np.array(values, DTYPES[tensor.datatype])
    except (OverflowError, ValueError):
        raise BadInput(
            f"{where}: expected {tensor.datatype} values in lists of equal length"
        ) from None
