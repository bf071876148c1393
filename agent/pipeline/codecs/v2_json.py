"""Open Inference Protocol V2 in JSON: the default codec, both ways."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.documents.manifest import Tensor
from agent.errors import BadInput
from agent.pipeline.codecs.api import (
    Codec,
    Decode,
    DecoderContext,
    Encode,
    EncoderContext,
    payload_bound,
    refuse_time_field,
)
from agent.pipeline.codecs.v2 import Dimensions, InputTable, explain, find_id, leading_id
from agent.pipeline.message import (
    Decoded,
    Prediction,
    RejectedMessage,
    Step,
    check_id,
    check_reply_to,
)
from agent.pipeline.tensors import Array, bf16_to_fp32

# The longest text of a double, a comma and room to indent.
BYTES_PER_ELEMENT = 64
# Prefixes for shapes with free dimensions are kept for as many shapes.
MAX_KEPT_SHAPES = 64


class Options(msgspec.Struct, frozen=True):
    """This codec has no options."""


class InputTensor(msgspec.Struct, gc=False):
    """One input of a request. `data` is parsed once its datatype is known."""

    name: str
    shape: Dimensions
    datatype: str
    data: msgspec.Raw


class RequestedOutput(msgspec.Struct, gc=False):
    """One output that a request asks for."""

    name: str


class Request(msgspec.Struct):
    """A V2 inference request. Fields that are not listed are skipped unread."""

    inputs: list[InputTensor]
    id: str | None = None
    outputs: list[RequestedOutput] | None = None


class RequestWithReply(Request):
    """The same, where a payload may say where its answer goes."""

    reply_to: str = ""


def compile_decoder(_options: Options, context: DecoderContext) -> Decode:
    """Return what reads a request."""
    refuse_time_field(context, "v2_json")
    kind = RequestWithReply if context.reply_to else Request
    request_decoder = msgspec.json.Decoder(kind)
    table = InputTable(context.inputs, context.stored)
    entries = table.entries
    count = len(context.inputs)
    bound = payload_bound(context.inputs, BYTES_PER_ELEMENT)

    def decode(payload: bytes | memoryview) -> Decoded:
        if len(payload) > bound:
            raise RejectedMessage(
                f"payload: expected at most {bound} bytes, got {len(payload)}",
                id=leading_id(payload),
            )
        try:
            request = request_decoder.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RejectedMessage(explain(error), id=find_id(payload)) from None
        try:
            arrays: dict[str, Array] = {}
            for index, given in enumerate(request.inputs):
                entry = entries.get((given.name, given.datatype))
                if entry is None:
                    raise table.refusal(index, given.name, given.datatype)
                fit, read, _ = entry
                shape = fit.known.get(given.shape)
                if shape is None:
                    shape = fit(given.shape, f"inputs[{index}]")
                arrays[given.name] = read(given.data, shape, index)
            if len(arrays) != count or len(request.inputs) != count:
                table.check_complete([given.name for given in request.inputs])
            if request.id is None and request.outputs is None and kind is Request:
                return Decoded(arrays)
            return _complete(request, arrays)
        except BadInput as error:
            raise _rejected(error, request) from None

    return decode


def _complete(request: Request, arrays: dict[str, Array]) -> Decoded:
    wanted = None
    if request.outputs:
        wanted = tuple(output.name for output in request.outputs)
    reply_to = getattr(request, "reply_to", "")
    if reply_to:
        check_reply_to(reply_to)
    return Decoded(
        arrays,
        None if request.id is None else check_id(request.id),
        reply_to,
        None,
        wanted,
    )


def _rejected(error: BadInput, request: Request) -> RejectedMessage:
    """Give an error what is needed to answer it."""
    message_id, reply_to = request.id, getattr(request, "reply_to", "")
    try:
        check_id(message_id or "")
        check_reply_to(reply_to)
    except BadInput:
        message_id, reply_to = None, ""
    return RejectedMessage(error.message, id=message_id, reply_to=reply_to)


def compile_encoder(_options: Options, context: EncoderContext) -> Encode:
    """Return what writes a response. All but ids, values and times is made here, once."""
    head = msgspec.json.encode(
        {"model_name": context.model_name, "model_version": context.model_version}
    )[:-1]
    made = context.produced_by
    parameters = msgspec.json.encode(
        {
            "pack": made.pack,
            "variant": context.variant,
            "runtime": made.runtime,
            "provider": made.provider,
            "slot": made.slot,
        }
    )[:-1]
    head += b',"id":'
    tails = {
        kind: b'],"parameters":' + parameters + b',"id_from":"%b","run_us":' % kind.encode()
        for kind in ("payload", "correlation", "agent")
    }
    writers = [(tensor.name, compile_output(tensor)) for tensor in context.outputs]
    names = {tensor.name for tensor in context.outputs}
    to_json = msgspec.json.Encoder().encode

    def encode(step: Step, prediction: Prediction, run_us: int) -> bytes:
        tensors = prediction.tensors
        wanted = step.wanted
        if wanted is None:
            outputs = b",".join([write(tensors[name]) for name, write in writers])
        else:
            if not names.issuperset(wanted):
                unknown = next(name for name in wanted if name not in names)
                raise BadInput(f"outputs: expected {', '.join(sorted(names))}, got {unknown!r}")
            outputs = b",".join([write(tensors[name]) for name, write in writers if name in wanted])
        return b"".join(
            (
                head,
                to_json(step.id),
                b',"outputs":[',
                outputs,
                tails[step.id_kind],
                b"%d}}" % run_us,
            )
        )

    return encode


def compile_output(tensor: Tensor) -> Callable[[Array], bytes]:
    """Return what writes one output as a JSON object."""
    to_json = msgspec.json.Encoder().encode
    start = b'{"name":' + to_json(tensor.name) + b',"shape":'
    middle = b',"datatype":"%b","data":' % tensor.datatype.encode()
    prefixes: dict[tuple[int, ...], bytes] = {}
    widen = bf16_to_fp32 if tensor.datatype == "BF16" else None

    def write(array: Array) -> bytes:
        shape = array.shape
        prefix = prefixes.get(shape)
        if prefix is None:
            prefix = start + to_json(shape) + middle
            if len(prefixes) < MAX_KEPT_SHAPES:
                prefixes[shape] = prefix
        if widen is not None:
            array = widen(array)
        return prefix + to_json(array.ravel().tolist()) + b"}"

    return write


CODEC = Codec(Options, compile_decoder, compile_encoder)
