"""The manifest: what a pack is, holds, needs and promises. Its SHA-256 is the pack's id.

`inputs` and `outputs` are the pack's public signature: what a payload is decoded to and what a
prediction holds. Each variant lists the tensors of its own file beside them. Where the two differ
only by quantisation (a real-valued public FP32 beside an INT8 file tensor with a scale), the worker
quantises on the way in and dequantises on the way out: once, and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from agent.documents.names import Digest, Natural, Positive, ShortText, Text

MAX_MANIFEST_BYTES = 1024 * 1024

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "BF16",
    "FP32",
    "FP64",
    "BYTES",
]
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@+/-]{0,254}$")]
Shape = Annotated[tuple[Annotated[int, msgspec.Meta(ge=-1)], ...], msgspec.Meta(max_length=16)]


class Tensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """One named tensor. In `shape`, -1 is a dimension that each request may choose."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    datatype: Datatype
    shape: Shape
    unit: ShortText = ""
    # Per-tensor affine quantisation: real = (stored - zero_point) * scale.
    scale: float | None = None
    zero_point: int | None = None
    # A NaN or infinity in an output is a bad output unless the author says it is meant.
    allow_nan: bool = False
    # The range that seeded random samples are drawn from, and that the baseline describes.
    low: float | None = None
    high: float | None = None


class StatePair(msgspec.Struct, frozen=True):
    """An output that becomes an input of the next run of the same source, zeros at first."""

    input: str
    output: str


class Window(msgspec.Struct, frozen=True, omit_defaults=True):
    """How readings of one source become one input; exactly one of `size` and `span_ms`."""

    kind: Literal["sliding", "tumbling"]
    size: Annotated[int, msgspec.Meta(ge=1, le=65536)] | None = None
    span_ms: Annotated[int, msgspec.Meta(ge=1, le=86_400_000)] | None = None
    # A sliding window predicts every `step` readings.
    step: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 1
    # With `span_ms`: the name of the feature that holds the reading's time in ms, else arrival.
    time_field: ShortText = ""


class Pipeline(msgspec.Struct, frozen=True, omit_defaults=True):
    """What happens around the model. A step is an object with its name under `step` (for decode
    and encode: `codec`) and its options beside it; the `pipeline` room knows the names."""

    decode: dict[str, Any] | None = None
    window: Window | None = None
    pre: Annotated[tuple[dict[str, Any], ...], msgspec.Meta(max_length=32)] = ()
    post: Annotated[tuple[dict[str, Any], ...], msgspec.Meta(max_length=32)] = ()
    encode: dict[str, Any] | None = None


class Tolerance(msgspec.Struct, frozen=True):
    """An output value passes when |got - wanted| <= absolute + relative * |wanted|."""

    absolute: Annotated[float, msgspec.Meta(ge=0)]
    relative: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Needs(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a variant's file asks of a runtime, read from the file itself."""

    ir_version: int | None = None
    opsets: dict[str, int] = {}
    operators: tuple[str, ...] = ()
    custom_operators: tuple[str, ...] = ()
    schema_version: int | None = None
    min_runtime_version: ShortText = ""
    edgetpu: bool = False


class Variant(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model file of the pack, for one format."""

    name: ShortText
    file: FileName
    format: ShortText
    inputs: Annotated[tuple[Tensor, ...], msgspec.Meta(max_length=256)]
    outputs: Annotated[tuple[Tensor, ...], msgspec.Meta(max_length=256)]
    tolerance: Tolerance
    needs: Needs = Needs()
    # State inside the file that no input or output shows, and what to do with it between messages:
    # start every message clean, or keep one instance of the model per source.
    hidden_state: Literal["none", "reset", "per_source"] = "none"


class PackFile(msgspec.Struct, frozen=True):
    """One file of the pack beside the manifest."""

    digest: Digest
    size: Natural


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the author says the model needs; the device's own limits may be lower."""

    memory_mb: Positive | None = None
    # A run that takes longer is ended and its worker replaced.
    deadline_ms: Positive | None = None
    # How many sources (topics) may have a window or a state at a time.
    max_sources: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64


class Card(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a person should know before using the model."""

    licence: ShortText = ""
    description: Text = ""
    intended_use: Text = ""
    limitations: Text = ""


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """The whole manifest. Every file of the pack is in `files`; nothing else may be there."""

    schema: Literal[1]
    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    version: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}$")]
    inputs: Annotated[tuple[Tensor, ...], msgspec.Meta(max_length=256)]
    outputs: Annotated[tuple[Tensor, ...], msgspec.Meta(max_length=256)]
    variants: Annotated[tuple[Variant, ...], msgspec.Meta(min_length=1, max_length=16)]
    files: Annotated[dict[FileName, PackFile], msgspec.Meta(min_length=1, max_length=1024)]
    task: ShortText = ""
    pipeline: Pipeline = Pipeline()
    labels: Annotated[tuple[Text, ...], msgspec.Meta(max_length=100_000)] = ()
    state: Annotated[tuple[StatePair, ...], msgspec.Meta(max_length=64)] = ()
    # Files that each hold one `SelfTestCase`.
    selftest: Annotated[tuple[FileName, ...], msgspec.Meta(max_length=64)] = ()
    limits: Limits = Limits()
    card: Card = Card()


class CaseTensor(msgspec.Struct, frozen=True):
    """One expected output: row-major little-endian bytes (base64 in JSON)."""

    name: str
    datatype: Datatype
    shape: Shape
    data: bytes


class SelfTestCase(msgspec.Struct, frozen=True):
    """Golden input and output: the payloads of one source in order, and what the last one gives.

    Payloads go through the whole chain (decode, window, pre, run, post); what is compared are the
    output tensors before encoding.
    """

    schema: Literal[1]
    payloads: Annotated[tuple[bytes, ...], msgspec.Meta(min_length=1, max_length=4096)]
    outputs: tuple[CaseTensor, ...]
    # Which variant's kernels gave the outputs; others get their own tolerance.
    variant: ShortText = ""
