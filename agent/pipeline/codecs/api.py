"""What a payload codec is.

A codec's decoder reads any bytes: it returns one array per public input, of that input's datatype
and of a shape that it allows, or raises BadInput. It holds no state between messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from agent.documents.manifest import Tensor
from agent.errors import DocumentError
from agent.pipeline.message import Decoded, Prediction, ProducedBy, Step

MAX_PAYLOAD_BYTES = 16 * 1024 * 1024

Decode = Callable[[bytes | memoryview], Decoded]
# Arguments: the step, its prediction, and how long the run took in µs.
Encode = Callable[[Step, Prediction, int], bytes]


class DecoderContext(msgspec.Struct, frozen=True):
    """What a decoder is made for."""

    inputs: tuple[Tensor, ...]
    # By public name: the tensor of the file, where a payload may hold its stored integers as well.
    stored: Mapping[str, Tensor] = msgspec.field(default_factory=dict)
    # Whether a payload may say where its answer goes.
    reply_to: bool = False
    # The field that holds a reading's time in ms, where it is none of the inputs.
    time_field: str = ""
    path: str = "manifest.pipeline.decode"


class EncoderContext(msgspec.Struct, frozen=True):
    """What an encoder is made for."""

    model_name: str
    model_version: str
    variant: str
    produced_by: ProducedBy
    outputs: tuple[Tensor, ...]
    path: str = "manifest.pipeline.encode"


class Codec(msgspec.Struct, frozen=True):
    """One kind of payload. The functions get the checked `options` and compile once per model.

    Both raise DocumentError, with the context's path, for a signature that the codec cannot carry.
    """

    options: type[msgspec.Struct]
    decoder: Callable[[Any, DecoderContext], Decode] | None = None
    encoder: Callable[[Any, EncoderContext], Encode] | None = None


def payload_bound(inputs: tuple[Tensor, ...], bytes_per_element: int) -> int:
    """Return the largest payload worth reading for these inputs.

    Args:
        inputs: The public inputs.
        bytes_per_element: The most that one element takes in this codec.
    """
    if any(-1 in tensor.shape or tensor.datatype == "BYTES" for tensor in inputs):
        return MAX_PAYLOAD_BYTES
    elements = sum(math.prod(tensor.shape) for tensor in inputs)
    return min(MAX_PAYLOAD_BYTES, 64 * 1024 + bytes_per_element * elements)


def only_input(context: DecoderContext, codec: str) -> Tensor:
    """Return the one input of the pack.

    Raises:
        DocumentError: It has several, or none.
    """
    if len(context.inputs) != 1:
        raise DocumentError(
            context.path, f"a pack with one input for codec {codec}", f"{len(context.inputs)}"
        )
    return context.inputs[0]


def refuse_time_field(context: DecoderContext, codec: str) -> None:
    """Refuse a window over a field that this codec's payloads cannot hold.

    Raises:
        DocumentError: The window names such a field.
    """
    if context.time_field:
        raise DocumentError(
            "manifest.pipeline.window.time_field",
            f"an input of the pack, as codec {codec} has no other fields",
            context.time_field,
        )
