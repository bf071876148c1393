"""What the JSON and the binary form of the Open Inference Protocol V2 share.

A request is a JSON object; an input's elements stand in its `data`, flat or nested, or (binary
form) behind the JSON, in the order of the inputs, in `parameters.binary_data_size` bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import msgspec
import numpy as np

from agent.documents.codec import show
from agent.documents.manifest import Tensor
from agent.documents.names import DATATYPE_BYTES
from agent.errors import BadInput
from agent.pipeline.codecs.api import DecoderContext, EncoderContext
from agent.pipeline.codecs.json_text import (
    JSON_ERRORS,
    element_type,
    explain,
    find_id,
    to_array,
)
from agent.pipeline.message import Decoded, IdKind, RejectedMessage, check_id, check_reply_to
from agent.pipeline.selftest import strings_from
from agent.pipeline.tensors import DTYPES, MAX_RANK, Array, Fit, from_bytes, show_shape

Dimensions = Annotated[tuple[int, ...], msgspec.Meta(max_length=MAX_RANK)]
# Arguments: the JSON of `data`, the shape it shall have, and which input of the request it is.
ReadData = Callable[[msgspec.Raw, tuple[int, ...], int], Array]
# Arguments: the JSON of a request, and the bytes behind it.
ReadRequest = Callable[[bytes | memoryview, bytes | memoryview], Decoded]

_NESTED = re.compile(rb"\s*\[\s*\[")
_NO_BYTES = msgspec.Raw(b"")
BETWEEN_ID_AND_OUTPUTS = b',"outputs":['


class _InputParameters(msgspec.Struct, gc=False):
    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _Input(msgspec.Struct, gc=False):
    """One input of a request. `data` is parsed once its datatype is known."""

    name: str
    shape: Dimensions
    datatype: str
    data: msgspec.Raw = _NO_BYTES
    parameters: _InputParameters | None = None


class _RequestedOutput(msgspec.Struct, gc=False):
    name: str


class _Request(msgspec.Struct):
    """An inference request. Fields that are not listed are skipped unread."""

    inputs: list[_Input]
    id: str | None = None
    outputs: list[_RequestedOutput] | None = None


class _RequestWithReply(_Request):
    """The same, where a payload may say where its answer goes."""

    reply_to: str = ""


def compile_request(context: DecoderContext) -> ReadRequest:
    """Return what reads a request; it raises RejectedMessage, with the id if there is one."""
    kind = _RequestWithReply if context.reply_to else _Request
    request_decoder = msgspec.json.Decoder(kind)
    table = InputTable(context.inputs, context.stored)
    entries = table.entries
    count = len(context.inputs)

    def read_request(text: bytes | memoryview, blobs: bytes | memoryview) -> Decoded:
        try:
            request = request_decoder.decode(text)
        except JSON_ERRORS as error:
            raise RejectedMessage(explain(error), id=find_id(text)) from None
        arrays: dict[str, Array] = {}
        offset = 0
        try:
            for index, given in enumerate(request.inputs):
                entry = entries.get((given.name, given.datatype))
                if entry is None:
                    raise table.refusal(index, given.name, given.datatype)
                fit, read, tensor = entry
                shape = fit.known.get(given.shape)
                if shape is None:
                    shape = fit(given.shape, f"inputs[{index}]")
                parameters = given.parameters
                size = None if parameters is None else parameters.binary_data_size
                if size is None:
                    arrays[given.name] = read(given.data, shape, index)
                else:
                    blob = blobs[offset : offset + size]
                    offset += size
                    arrays[given.name] = _read_blob(blob, size, tensor, shape, index)
            if len(arrays) != count or len(request.inputs) != count:
                table.check_complete([given.name for given in request.inputs])
            if offset != len(blobs):
                raise BadInput(
                    f"payload: the inputs announce {offset} binary bytes, it holds {len(blobs)}"
                )
            if request.id is None and request.outputs is None and kind is _Request:
                return Decoded(arrays)
            return _complete(request, arrays)
        except BadInput as error:
            raise _rejected(error, request) from None

    return read_request


def _complete(request: _Request, arrays: dict[str, Array]) -> Decoded:
    wanted = None
    if request.outputs:
        wanted = tuple(output.name for output in request.outputs)
    message_id = None if request.id is None else check_id(request.id)
    reply_to = getattr(request, "reply_to", "")
    if reply_to:
        check_reply_to(reply_to)
    return Decoded(arrays, message_id, reply_to, None, wanted)


def _rejected(error: BadInput, request: _Request) -> RejectedMessage:
    """Give an error what is needed to answer it."""
    message_id, reply_to = request.id, getattr(request, "reply_to", "")
    try:
        check_id(message_id or "")
        check_reply_to(reply_to)
    except BadInput:
        message_id, reply_to = None, ""
    return RejectedMessage(error.message, id=message_id, reply_to=reply_to)


def compile_data(tensor: Tensor) -> ReadData:
    """Return what reads `data`, flat or nested, of one tensor into an array of a given shape."""
    flat = msgspec.json.Decoder(list[element_type(tensor)])  # type: ignore[misc]
    dtype = DTYPES[tensor.datatype]
    plain = tensor.datatype not in ("BF16", "UINT64", "BYTES")

    def read(data: msgspec.Raw, shape: tuple[int, ...], index: int) -> Array:
        try:
            values = flat.decode(data)
        except JSON_ERRORS as error:
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
    if not bytes(data):
        raise BadInput(f"{where}: expected a list of {math.prod(shape)} values, got none")
    if len(shape) < 2 or not _NESTED.match(data):
        raise BadInput(explain(flat_error, where)) from None
    nested = element_type(tensor)
    for _ in shape:
        nested = list[nested]  # type: ignore[valid-type]
    try:
        values = msgspec.json.decode(data, type=nested)
    except JSON_ERRORS as error:
        raise BadInput(explain(error, where)) from None
    array = to_array(values, tensor, where)
    if array.shape != shape:
        raise BadInput(
            f"{where}: expected lists of shape {show_shape(shape)}, got {show_shape(array.shape)}"
        )
    return array


def _read_blob(
    blob: bytes | memoryview, size: int, tensor: Tensor, shape: tuple[int, ...], index: int
) -> Array:
    where = f"inputs[{index}]"
    wanted = math.prod(shape) * DATATYPE_BYTES[tensor.datatype]
    if len(blob) != size:
        raise BadInput(f"{where}: announces {size} binary bytes, the payload holds {len(blob)}")
    if tensor.datatype == "BYTES":
        texts = strings_from(blob, where)
        if len(texts) != math.prod(shape):
            raise BadInput(f"{where}: expected {math.prod(shape)} elements, got {len(texts)}")
        return np.array(texts, DTYPES["BYTES"]).reshape(shape)
    if size != wanted:
        raise BadInput(f"{where}: expected {wanted} binary bytes, got {size}")
    return from_bytes(blob, tensor, where).reshape(shape)


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


def compile_frame(context: EncoderContext) -> tuple[bytes, dict[IdKind, bytes]]:
    """Return what a response starts with, up to its id, and what follows its outputs, up to the
    time that the run took; the latter by where the id comes from."""
    model = {"model_name": context.model_name, "model_version": context.model_version}
    made = context.produced_by
    origin = {
        "pack": made.pack,
        "variant": context.variant,
        "runtime": made.runtime,
        "provider": made.provider,
        "slot": made.slot,
    }
    head = msgspec.json.encode(model)[:-1] + b',"id":'
    parameters = b'],"parameters":' + msgspec.json.encode(origin)[:-1]
    kinds: tuple[IdKind, ...] = ("payload", "correlation", "agent")
    tails = {kind: parameters + f',"id_from":"{kind}","run_us":'.encode() for kind in kinds}
    return head, tails
