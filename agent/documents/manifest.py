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
MAX_DELTA_BLOCK_BYTES = 4 * 1024 * 1024

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
FileName = Annotated[
    str,
    msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@+/-]{0,254}$", extra={"words": "file name"}),
]
Shape = Annotated[tuple[Annotated[int, msgspec.Meta(ge=-1)], ...], msgspec.Meta(max_length=16)]


class Tensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """One named tensor.

    Attributes:
        name: As messages, or the model file, call it.
        datatype: Of the Open Inference Protocol.
        shape: -1 is a dimension that each request may choose.
        unit: For people.
        scale: Of per-tensor affine quantisation: real = (stored - zero_point) * scale.
        zero_point: Beside `scale`.
        allow_nan: NaN and infinity are meant; else an input with one is refused, an output is bad.
        low: Least value of the range that random samples are drawn from.
        high: Its largest value.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    datatype: Datatype
    shape: Shape
    unit: ShortText = ""
    scale: float | None = None
    zero_point: int | None = None
    allow_nan: bool = False
    low: float | None = None
    high: float | None = None


class StatePair(msgspec.Struct, frozen=True):
    """An output that becomes an input of the next run of the same source, zeros at first.

    Attributes:
        input: A tensor of every variant.
        output: Another one.
    """

    input: str
    output: str


class Window(msgspec.Struct, frozen=True, omit_defaults=True):
    """How readings of one source become one input. Exactly one of `size` and `span_ms` is given.

    Attributes:
        kind: `sliding` windows overlap, `tumbling` ones do not.
        size: Readings in a window.
        span_ms: Its length in time.
        step: A sliding window predicts every so many readings.
        time_field: With `span_ms`, the feature that holds a reading's own time in ms; without it
            the time of arrival counts.
    """

    kind: Literal["sliding", "tumbling"]
    size: Annotated[int, msgspec.Meta(ge=1, le=65536)] | None = None
    span_ms: Annotated[int, msgspec.Meta(ge=1, le=86_400_000)] | None = None
    step: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 1
    time_field: ShortText = ""


class Pipeline(msgspec.Struct, frozen=True, omit_defaults=True):
    """What happens around the model. A codec is an object with its name under `codec`, a step one
    with its name under `step`, the options beside it; docs/packs.md lists them.

    Attributes:
        decode: From a payload to arrays; `v2_json` where nothing is said.
        window: Collects readings.
        pre: Steps before the model, in order.
        post: Steps after it.
        encode: From arrays to the answer; `v2_json` where nothing is said.
    """

    decode: dict[str, Any] | None = None
    window: Window | None = None
    pre: Annotated[tuple[dict[str, Any], ...], msgspec.Meta(max_length=32)] = ()
    post: Annotated[tuple[dict[str, Any], ...], msgspec.Meta(max_length=32)] = ()
    encode: dict[str, Any] | None = None


class Tolerance(msgspec.Struct, frozen=True):
    """An output value passes when |got - wanted| <= absolute + relative * |wanted|.

    Attributes:
        absolute: In the output's own unit.
        relative: A share of the wanted value.
    """

    absolute: Annotated[float, msgspec.Meta(ge=0)]
    relative: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Needs(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a variant's file asks of a runtime, read from the file itself.

    Attributes:
        ir_version: Of an ONNX file.
        opsets: ONNX operator sets by domain.
        operators: The operators used; those of TFLite each with its version: `CONV_2D:3`.
        custom_operators: Those of them that no standard names.
        schema_version: Of a TFLite file.
        min_runtime_version: As a TFLite file states it.
        edgetpu: It was compiled for an Edge TPU.
    """

    ir_version: int | None = None
    opsets: dict[str, int] = {}
    operators: tuple[str, ...] = ()
    custom_operators: tuple[str, ...] = ()
    schema_version: int | None = None
    min_runtime_version: ShortText = ""
    edgetpu: bool = False


class Variant(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model file of the pack, for one format.

    Attributes:
        name: What reports call it.
        file: The model file.
        format: `onnx` or `tflite`.
        inputs: The tensors of the file itself.
        outputs: The same.
        tolerance: How far its answers may be from the self-test's.
        needs: What it asks of a runtime.
        hidden_state: State inside the file that no input or output shows, and what becomes of it:
            `reset`: every message starts clean; `per_source`: one instance of the model a source.
    """

    name: ShortText
    file: FileName
    format: ShortText
    inputs: Annotated[tuple[Tensor, ...], msgspec.Meta(max_length=256)]
    outputs: Annotated[tuple[Tensor, ...], msgspec.Meta(max_length=256)]
    tolerance: Tolerance
    needs: Needs = Needs()
    hidden_state: Literal["none", "reset", "per_source"] = "none"


class ChunkList(msgspec.Struct, frozen=True):
    """What a file is made of, so that a device that has some of it asks for the rest only.

    Attributes:
        alg: `sha256`; a device leaves a list of another kind alone.
        packed: For each chunk in order, without a gap: its size (u32, little-endian) and its
            SHA-256. At most 4 MiB a chunk and 32 768 chunks.
    """

    alg: ShortText
    packed: bytes = msgspec.field(name="list")


class Delta(msgspec.Struct, frozen=True):
    """How to make a file from an older one, by a further file of the pack.

    Attributes:
        base: SHA-256 of the older file.
        method: `xor-planes-1`: for each block its length (u32, little-endian), then the byte
            planes, compressed, of the new block XOR the old one, zeros past the old one's end. A
            device leaves a delta of another kind alone.
        width: How many planes: bytes of one number in the file, 1, 2, 4 or 8.
        codec: What compressed them: `zlib`, or `lzma` in the `.xz` format.
        block: Bytes of each block of the file but the last.
        file: The delta, a file of the pack that is never installed.
    """

    base: Digest = msgspec.field(name="from")
    method: ShortText
    width: Annotated[int, msgspec.Meta(ge=1, le=64)]
    codec: ShortText
    block: Annotated[int, msgspec.Meta(ge=4096, le=MAX_DELTA_BLOCK_BYTES)]
    file: FileName


class PackFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """One file of the pack beside the manifest.

    Attributes:
        digest: SHA-256 of its bytes.
        size: In bytes.
        chunks: What it is made of, where it is large.
        deltas: Ways to make it from older files.
    """

    digest: Digest
    size: Natural
    chunks: ChunkList | None = None
    deltas: Annotated[tuple[Delta, ...], msgspec.Meta(max_length=16)] = ()


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the author says the model needs. The device's own limits hold where they are lower.

    Attributes:
        memory_mb: Private writable memory of the worker.
        deadline_ms: A message that takes longer ends the worker, which is replaced.
        max_sources: How many sources (topics) may have a window or a state at a time.
        max_p95_ms: Of 100 runs of the model, 95 must take no longer on the device.
        min_coverage: Share of operators that must run on what they were to run on, from 0 to 1; a
            library that silently falls back to the CPU fails this.
    """

    memory_mb: Positive | None = None
    deadline_ms: Positive | None = None
    max_sources: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64
    max_p95_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None
    min_coverage: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class Card(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a person should know before using the model.

    Attributes:
        licence: Its name.
        description: What it is.
        intended_use: What it is for.
        limitations: What it is not for.
    """

    licence: ShortText = ""
    description: Text = ""
    intended_use: Text = ""
    limitations: Text = ""


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a pack is, holds, needs and promises.

    Attributes:
        schema: The version of this format.
        name: Of the model: `a-z`, `0-9`, `_` and `-`, beginning with a letter or digit.
        version: Of the model: letters, digits and `.+_-`, beginning with a letter or digit.
        inputs: What a message is decoded to. Where it differs from the file's own tensor only by
            quantisation, the worker quantises on the way in.
        outputs: What a prediction holds; dequantised in the same way.
        variants: The model in one or more formats; the first that passes on a device serves.
        files: Every file of the pack but the manifest itself; nothing else may be there.
        task: A word for people.
        pipeline: What happens around the model.
        labels: Names of the classes, in order.
        state: Outputs that the next run gets as inputs.
        selftest: Files that each hold one self-test case.
        limits: What the model needs.
        card: What a person should know.
    """

    schema: Literal[1]
    name: Annotated[
        str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", extra={"words": "name"})
    ]
    version: Annotated[
        str,
        msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}$", extra={"words": "version"}),
    ]
    inputs: Annotated[tuple[Tensor, ...], msgspec.Meta(max_length=256)]
    outputs: Annotated[tuple[Tensor, ...], msgspec.Meta(max_length=256)]
    variants: Annotated[tuple[Variant, ...], msgspec.Meta(min_length=1, max_length=16)]
    files: Annotated[dict[FileName, PackFile], msgspec.Meta(min_length=1, max_length=1024)]
    task: ShortText = ""
    pipeline: Pipeline = Pipeline()
    labels: Annotated[tuple[Text, ...], msgspec.Meta(max_length=100_000)] = ()
    state: Annotated[tuple[StatePair, ...], msgspec.Meta(max_length=64)] = ()
    selftest: Annotated[tuple[FileName, ...], msgspec.Meta(max_length=64)] = ()
    limits: Limits = Limits()
    card: Card = Card()


def delta_files(manifest: Manifest) -> frozenset[str]:
    """The files of a pack that only serve to make others: no device installs them."""
    return frozenset(delta.file for file in manifest.files.values() for delta in file.deltas)


class CaseTensor(msgspec.Struct, frozen=True):
    """One expected output, before it is encoded.

    Attributes:
        name: Of the output.
        datatype: Of `data`.
        shape: Of `data`.
        data: Its elements, row-major, little-endian; a BYTES element is its length (u32) and its
            UTF-8 text.
    """

    name: str
    datatype: Datatype
    shape: Shape
    data: bytes


class SelfTestCase(msgspec.Struct, frozen=True):
    """Golden input and output. Payloads go through the whole chain: decode, window, pre, run, post.

    Attributes:
        schema: The version of this format.
        payloads: Messages of one source, in order.
        outputs: What the last of them must give.
        variant: Whose kernels gave the outputs.
    """

    schema: Literal[1]
    payloads: Annotated[tuple[bytes, ...], msgspec.Meta(min_length=1, max_length=4096)]
    outputs: tuple[CaseTensor, ...]
    variant: ShortText = ""
