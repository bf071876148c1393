"""The bytes of the tensors themselves: little-endian, row-major, one tensor after the other."""

from __future__ import annotations

import msgspec

from agent.errors import BadInput, DocumentError
from agent.pipeline.codecs.api import (
    MAX_PAYLOAD_BYTES,
    Codec,
    Decode,
    DecoderContext,
    Encode,
    EncoderContext,
    refuse_time_field,
)
from agent.pipeline.message import Decoded, Prediction, Step
from agent.pipeline.selftest import to_bytes
from agent.pipeline.tensors import DTYPES, Array, Fit, from_bytes


class Options(msgspec.Struct, frozen=True):
    """`outputs`: which outputs an answer holds, in which order; default: all, as declared."""

    outputs: tuple[str, ...] = ()


def compile_decoder(_options: Options, context: DecoderContext) -> Decode:
    """Return what cuts a payload into tensors.

    At most one dimension of all inputs together may be free (a leading one beside it is then 1).
    """
    refuse_time_field(context, "raw")
    plan = [(tensor, Fit(tensor.shape), DTYPES[tensor.datatype]) for tensor in context.inputs]
    for tensor, fit, _ in plan:
        if tensor.datatype == "BYTES":
            raise DocumentError(context.path, "numbers for codec raw", f"{tensor.name}: BYTES")
        if not fit.is_solvable() or (fit.free and len(plan) > 1):
            raise DocumentError(
                context.path, "a size that tells the shape for codec raw", f"{tensor.name}"
            )
    sizes = [0 if fit.free else fit.fixed * dtype.itemsize for _, fit, dtype in plan]

    def decode(payload: bytes | memoryview) -> Decoded:
        free = len(plan) == 1 and bool(plan[0][1].free)
        if len(payload) > MAX_PAYLOAD_BYTES or (not free and len(payload) != sum(sizes)):
            expected = f"at most {MAX_PAYLOAD_BYTES}" if free else f"{sum(sizes)}"
            raise BadInput(f"payload: expected {expected} bytes, got {len(payload)}")
        arrays: dict[str, Array] = {}
        offset = 0
        for (tensor, fit, dtype), size in zip(plan, sizes, strict=True):
            part = payload if free else payload[offset : offset + size]
            offset += size
            if len(part) % dtype.itemsize:
                raise BadInput(
                    f"payload: expected a multiple of {dtype.itemsize} bytes, got {len(part)}"
                )
            array = from_bytes(part, tensor, "payload")
            arrays[tensor.name] = array.reshape(fit.solve(array.size, "payload"))
        return Decoded(arrays)

    return decode


def compile_encoder(options: Options, context: EncoderContext) -> Encode:
    """Return what writes the outputs' bytes one after the other."""
    known = {tensor.name: tensor for tensor in context.outputs}
    names = options.outputs or tuple(known)
    for index, name in enumerate(names):
        if name not in known:
            raise DocumentError(
                f"{context.path}.outputs[{index}]", f"one of {', '.join(known)}", name
            )
        if known[name].datatype == "BYTES":
            raise DocumentError(context.path, "numbers for codec raw", f"{name}: BYTES")

    def encode(_step: Step, prediction: Prediction, _run_us: int) -> bytes:
        return b"".join([to_bytes(prediction.tensors[name]) for name in names])

    return encode


CODEC = Codec(Options, compile_decoder, compile_encoder)
