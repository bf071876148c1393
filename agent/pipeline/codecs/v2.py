"""What the JSON and the binary form of the Open Inference Protocol V2 share.

Numbers never go through a wider or narrower type than their own: INT64 stays exact, a number beyond
FP32 is refused. NaN and Infinity are no JSON; where an input allows NaN, `null` means it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np

from agent.documents.codec import show
from agent.documents.manifest import Tensor
from agent.errors import BadInput
from agent.pipeline.message import MAX_ID_CHARACTERS
from agent.pipeline.tensors import DTYPES, FLOAT_MAX, MAX_RANK, Array, Fit, fp32_to_bf16, show_shape

Dimensions = Annotated[tuple[int, ...], msgspec.Meta(max_length=MAX_RANK)]

_INTEGER_BITS = {"INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64}
_UNSIGNED_BITS = {"UINT8": 8, "UINT16": 16, "UINT32": 32}
# An id at the head of an object that is otherwise no JSON.
_LEADING_ID = re.compile(rb'\s*\{\s*"id"\s*:\s*("(?:[^"\\\x00-\x1f]|\\.){0,1024}")', re.DOTALL)
_NESTED = re.compile(rb"\s*\[\s*\[")
_WHERE = re.compile(r"(?P<what>.*) - at `\$(?P<where>.*)`$", re.DOTALL)

# Arguments: the JSON of `data`, the shape it shall have, and which input of the request it is.
ReadData = Callable[[msgspec.Raw, tuple[int, ...], int], Array]


class _OnlyId(msgspec.Struct, gc=False):
    id: str | None = None


_only_id = msgspec.json.Decoder(_OnlyId)
_string = msgspec.json.Decoder(str)


def find_id(payload: bytes | memoryview) -> str | None:
    """Return the id of a JSON object, whatever else is wrong with it; None if there is none."""
    try:
        found = _only_id.decode(payload).id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return leading_id(payload)
    return found if found is not None and len(found) <= MAX_ID_CHARACTERS else None


def leading_id(payload: bytes | memoryview) -> str | None:
    """Return an id that stands first in an object, without looking at the rest."""
    match = _LEADING_ID.match(payload)
    try:
        found = _string.decode(match.group(1)) if match else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return found if found is not None and len(found) <= MAX_ID_CHARACTERS else None


def explain(error: Exception, root: str = "") -> str:
    """Say in one sentence what a JSON decoder did not like.

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


def flat_type(tensor: Tensor) -> Any:
    """Return the type of one element of `data`."""
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
    """Turn checked elements, nested or flat, into an array.

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


def compile_data(tensor: Tensor) -> ReadData:
    """Return what reads `data`, flat or nested, of one tensor into an array of a given shape."""
    flat = msgspec.json.Decoder(list[flat_type(tensor)])  # type: ignore[misc]
    dtype = DTYPES[tensor.datatype]
    plain = tensor.datatype not in ("BF16", "UINT64", "BYTES")

    def read(data: msgspec.Raw, shape: tuple[int, ...], index: int) -> Array:
        try:
            values = flat.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return _read_nested(data, tensor, shape, f"inputs[{index}].data", error)
        if len(values) != math.prod(shape):
            raise BadInput(
                f"inputs[{index}].data: expected {math.prod(shape)} values, got {len(values)}"
            )
        if plain:
            return np.array(values, dtype).reshape(shape)
        return to_array(values, tensor, f"inputs[{index}].data").reshape(shape)

    return read


def _read_nested(
    data: msgspec.Raw, tensor: Tensor, shape: tuple[int, ...], where: str, flat_error: Exception
) -> Array:
    nested = flat_type(tensor)
    if len(shape) < 2 or not _NESTED.match(data):
        raise BadInput(explain(flat_error, where)) from None
    for _ in shape:
        nested = list[nested]  # type: ignore[valid-type]
    try:
        values = msgspec.json.decode(data, type=nested)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(explain(error, where)) from None
    array = to_array(values, tensor, where)
    if array.shape != shape:
        raise BadInput(
            f"{where}: expected lists of shape {show_shape(shape)}, got {show_shape(array.shape)}"
        )
    return array


class InputTable:
    """Finds what an input of a request is by its name and datatype."""

    def __init__(self, inputs: Sequence[Tensor], stored: Mapping[str, Tensor]) -> None:
        """Prepare for the public inputs.

        Args:
            inputs: As the manifest lists them.
            stored: By public name: the file's tensor whose datatype is taken as well.
        """
        self.entries: dict[tuple[str, str], tuple[Fit, ReadData, Tensor]] = {}
        self._datatypes: dict[str, list[str]] = {}
        for tensor in inputs:
            others = [stored[tensor.name]] if tensor.name in stored else []
            for other in (tensor, *others):
                entry = (Fit(tensor.shape), compile_data(other), other)
                self.entries[tensor.name, other.datatype] = entry
                self._datatypes.setdefault(tensor.name, []).append(other.datatype)

    def refusal(self, index: int, name: str, datatype: str) -> BadInput:
        """Say why a request's input is none of ours."""
        expected = self._datatypes.get(name)
        if expected is None:
            names = ", ".join(self._datatypes)
            return BadInput(f"inputs[{index}].name: expected one of {names}, got {show(name)}")
        return BadInput(
            f"inputs[{index}].datatype: expected {' or '.join(expected)}, got {show(datatype)}"
        )

    def check_complete(self, given: Sequence[str]) -> None:
        """Refuse a request that lacks an input or gives one twice.

        Raises:
            BadInput: It does.
        """
        if len(given) != len(set(given)):
            raise BadInput("inputs: expected each input once")
        missing = [name for name in self._datatypes if name not in given]
        if missing:
            raise BadInput(f"inputs: expected {', '.join(self._datatypes)}; missing {missing[0]}")
