"""What a model file says of itself, whatever its format.

These are claims of the file, read without loading it: a runtime may still refuse the model, and its
own word on inputs and outputs (after shape inference) is the one that counts when they differ.
"""

from __future__ import annotations

from typing import Literal

import msgspec

# Datatype names of the Open Inference Protocol V2 ("Tensor Data Types"); BF16 as Triton extends it.
V2_DATATYPES = frozenset(
    (
        *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
        *("FP16", "FP32", "FP64", "BF16", "BYTES"),
    )
)

HiddenState = Literal["none", "variable_tensors", "resource_variables"]


class Normalisation(msgspec.Struct, frozen=True):
    """How real-world values become the model's: `(x - mean) / std`, per channel or one for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class TensorDescription(msgspec.Struct, frozen=True):
    """One input or output.

    Attributes:
        name: exactly as the runtime expects it; may be empty in TFLite.
        datatype: a V2 name where `kind` is "tensor", else "".
        shape: -1 for a free dimension; () for a scalar and, with `ranked` false, for "not said".
        dim_names: as long as `shape`; "" where a dimension has no symbolic name.
        ranked: whether the file says how many dimensions there are.
        default_shape: what the runtime allocates unless told otherwise (TFLite only).
        scale, zero_point: `real = scale * (stored - zero_point)`; None where not
            quantised, or per channel.
        kind: "tensor", or e.g. "sequence(map(INT64,FP32))", "tensor(COMPLEX64)", "unknown".
        description: the author's words.
        normalisation: what the author says the input was trained with.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] = ()
    dim_names: tuple[str, ...] = ()
    ranked: bool = True
    default_shape: tuple[int, ...] | None = None
    scale: float | None = None
    zero_point: int | None = None
    kind: str = "tensor"
    description: str = ""
    normalisation: Normalisation | None = None


class ExternalData(msgspec.Struct, frozen=True, order=True):
    """Where an ONNX tensor's bytes are, in a file beside the model (TensorProto.external_data)."""

    location: str
    offset: int = 0
    length: int | None = None


class OnnxNeeds(msgspec.Struct, frozen=True, tag="onnx"):
    """What a runtime must know to run an ONNX model.

    Attributes:
        ir_version: version of the file layout.
        opsets: operator set version per domain; the default domain is called "ai.onnx".
        operators: sorted (domain, op_type) of every node, in subgraphs and functions too; operators
            that the file defines itself as functions are not among them.
        custom_operators: those whose domain is neither ONNX's nor ONNX Runtime's own.
        external_data: every reference to bytes outside the file, sorted; see `check_external_data`.
    """

    ir_version: int
    opsets: dict[str, int]
    operators: tuple[tuple[str, str], ...]
    custom_operators: tuple[tuple[str, str], ...] = ()
    external_data: tuple[ExternalData, ...] = ()


class TfliteNeeds(msgspec.Struct, frozen=True, tag="tflite"):
    """What a runtime must know to run a TFLite model.

    Attributes:
        schema_version: version of the flatbuffer schema (3 since 2017).
        operators: highest version per builtin operator; "BUILTIN_300" for a code with no name here.
        custom_operators: sorted names.
        min_runtime_version: the converter's word on the oldest runtime that will do.
        edgetpu: compiled for the Edge TPU: runs only with its delegate, never on the CPU.
    """

    schema_version: int
    operators: dict[str, int]
    custom_operators: tuple[str, ...] = ()
    min_runtime_version: str | None = None
    edgetpu: bool = False


class OtherNeeds(msgspec.Struct, frozen=True, tag="other"):
    """Of a format that another package reads: its runtime is asked, and nothing else knows.

    Attributes:
        operators: the operators used, where the format has any.
    """

    operators: tuple[str, ...] = ()


Needs = OnnxNeeds | TfliteNeeds | OtherNeeds


class Signature(msgspec.Struct, frozen=True):
    """A named way into a TFLite model: the signature's argument names → tensor names."""

    key: str
    inputs: dict[str, str]
    outputs: dict[str, str]


class ModelDescription(msgspec.Struct, frozen=True):
    """All that is read from a model file without loading it.

    Attributes:
        format: "onnx", "ort", "tflite", or one that another package reads.
        producer: the tool that wrote the file.
        name, description, model_version, metadata: the author's words, control characters removed.
        labels: class names in output order, where the file carries them.
        state: what the model keeps between two runs out of the caller's sight. "variable_tensors"
            can be reset; "resource_variables" only go with the interpreter.
        quantised: whether any of it computes on integers.
        signatures: TFLite only.
        associated_files: names in the archive at a TFLite file's tail.
        notes: for a person: what is unusual or could not be read.
    """

    format: str
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]
    needs: Needs
    producer: str = ""
    name: str = ""
    description: str = ""
    model_version: str | None = None
    metadata: dict[str, str] = {}
    labels: tuple[str, ...] | None = None
    state: HiddenState = "none"
    quantised: bool = False
    signatures: tuple[Signature, ...] = ()
    associated_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
