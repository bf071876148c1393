"""Open Inference Protocol V2 in JSON: the default codec, both ways."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.documents.manifest import Tensor
from agent.pipeline.codecs.api import (
    Codec,
    Decode,
    DecoderContext,
    Encode,
    EncoderContext,
    payload_bound,
    refuse_time_field,
)
from agent.pipeline.codecs.json_text import leading_id
from agent.pipeline.codecs.v2 import BETWEEN_ID_AND_OUTPUTS, compile_frame, compile_request
from agent.pipeline.message import Decoded, Prediction, RejectedMessage, Step
from agent.pipeline.tensors import MAX_KNOWN_SHAPES, Array, bf16_to_fp32

# The longest text of a double, a comma and room to indent.
BYTES_PER_ELEMENT = 64


class Options(msgspec.Struct, frozen=True):
    """This codec has no options."""


def compile_decoder(_options: Options, context: DecoderContext) -> Decode:
    """Return what reads a request."""
    refuse_time_field(context, "v2_json")
    read_request = compile_request(context)
    bound = payload_bound(context.inputs, BYTES_PER_ELEMENT)

    def decode(payload: bytes | memoryview) -> Decoded:
        if len(payload) > bound:
            raise RejectedMessage(
                f"payload: expected at most {bound} bytes, got {len(payload)}",
                id=leading_id(payload),
            )
        return read_request(payload, b"")

    return decode


def compile_encoder(_options: Options, context: EncoderContext) -> Encode:
    """Return what writes a response. All but ids, values and times is made here, once."""
    head, tails = compile_frame(context)
    writers = [(tensor.name, compile_output(tensor)) for tensor in context.outputs]
    to_json = msgspec.json.Encoder().encode

    def encode(step: Step, prediction: Prediction, run_us: int) -> bytes:
        tensors, wanted = prediction.tensors, step.wanted
        outputs = b",".join(
            [write(tensors[name]) for name, write in writers if wanted is None or name in wanted]
        )
        tail = tails[step.id_kind]
        parts = (head, to_json(step.id), BETWEEN_ID_AND_OUTPUTS, outputs, tail, b"%d}}" % run_us)
        return b"".join(parts)

    return encode


def compile_output(tensor: Tensor) -> Callable[[Array], bytes]:
    """Return what writes one output as a JSON object; NaN and infinity become null."""
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
            if len(prefixes) < MAX_KNOWN_SHAPES:
                prefixes[shape] = prefix
        if widen is not None:
            array = widen(array)
        return prefix + to_json(array.ravel().tolist()) + b"}"

    return write


CODEC = Codec(Options, compile_decoder, compile_encoder)
