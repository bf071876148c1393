"""Open Inference Protocol V2 with binary tensors.

HTTP says in a header where the JSON ends; MQTT has no such header, so a payload starts with that
number:

    u32 length of the JSON (little-endian) · JSON · the tensors' bytes, in the order of the JSON

An input (output) of the JSON with `parameters.binary_data_size` has its elements in that many bytes
behind the JSON: little-endian, row-major; a BYTES element as its length (u32) and its UTF-8 text.
Inputs without it have `data`, as in the JSON form.
"""

from __future__ import annotations

import struct

import msgspec

from agent.pipeline.codecs.api import (
    MAX_PAYLOAD_BYTES,
    Codec,
    Decode,
    DecoderContext,
    Encode,
    EncoderContext,
    refuse_time_field,
)
from agent.pipeline.codecs.v2 import BETWEEN_ID_AND_OUTPUTS, compile_frame, compile_request
from agent.pipeline.message import Decoded, Prediction, RejectedMessage, Step
from agent.pipeline.selftest import to_bytes

LENGTH = struct.Struct("<I")


class Options(msgspec.Struct, frozen=True):
    """This codec has no options."""


def compile_decoder(_options: Options, context: DecoderContext) -> Decode:
    """Return what reads a request."""
    refuse_time_field(context, "v2_binary")
    read_request = compile_request(context)

    def decode(payload: bytes | memoryview) -> Decoded:
        if not LENGTH.size <= len(payload) <= MAX_PAYLOAD_BYTES:
            raise RejectedMessage(
                f"payload: expected {LENGTH.size} to {MAX_PAYLOAD_BYTES} bytes, got {len(payload)}"
            )
        (length,) = LENGTH.unpack_from(payload)
        end = LENGTH.size + length
        if end > len(payload):
            raise RejectedMessage(
                f"payload: announces {length} bytes of JSON, holds {len(payload) - LENGTH.size}"
            )
        view = memoryview(payload)
        return read_request(view[LENGTH.size : end], view[end:])

    return decode


def compile_encoder(_options: Options, context: EncoderContext) -> Encode:
    """Return what writes a response with all its outputs in binary."""
    head, tails = compile_frame(context)
    names = [(tensor.name, tensor.datatype) for tensor in context.outputs]
    to_json = msgspec.json.Encoder().encode

    def encode(step: Step, prediction: Prediction, run_us: int) -> bytes:
        described, blobs = [], []
        for name, datatype in names:
            if step.wanted is not None and name not in step.wanted:
                continue
            array = prediction.tensors[name]
            blobs.append(to_bytes(array))
            described.append(
                {
                    "name": name,
                    "shape": array.shape,
                    "datatype": datatype,
                    "parameters": {"binary_data_size": len(blobs[-1])},
                }
            )
        text = b"".join(
            (
                head,
                to_json(step.id),
                BETWEEN_ID_AND_OUTPUTS,
                to_json(described)[1:-1],
                tails[step.id_kind],
                b"%d}}" % run_us,
            )
        )
        return b"".join((LENGTH.pack(len(text)), text, *blobs))

    return encode


CODEC = Codec(Options, compile_decoder, compile_encoder)
