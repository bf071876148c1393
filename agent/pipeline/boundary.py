"""Where the public tensors of a pack meet the tensors of one variant's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from agent.documents.manifest import Tensor
from agent.errors import BadInput, BadOutput, DocumentError
from agent.pipeline.conversion import compile_conversion
from agent.pipeline.tensors import (
    DTYPES,
    FLOAT_MAX,
    Array,
    Arrays,
    Fit,
    all_finite,
    bf16_to_fp32,
    may_match,
    show_shape,
)

Bind = Callable[[Arrays], Arrays]


def pair(
    wanted: Sequence[Tensor], offered: Sequence[Tensor], *, path: str
) -> list[tuple[Tensor, Tensor]]:
    """Pair each wanted tensor with the offered one of the same name.

    Two variants of one network may name a tensor differently; where exactly one of the others
    fits, it is taken. Position is never looked at: converters reorder tensors.

    Raises:
        DocumentError: A wanted tensor finds no partner, or more than one.
    """
    by_name = {tensor.name: tensor for tensor in offered}
    taken = {tensor.name for tensor in wanted if tensor.name in by_name}
    spare = [tensor for tensor in offered if tensor.name not in taken]
    pairs = []
    for tensor in wanted:
        partner = by_name.get(tensor.name)
        if partner is None:
            fitting = [other for other in spare if fits_shape(tensor.shape, other.shape)]
            if len(fitting) != 1:
                names = ", ".join(other.name for other in offered) or "none"
                raise DocumentError(path, f"a tensor named {tensor.name!r}", names)
            partner = fitting[0]
            spare.remove(partner)
        pairs.append((tensor, partner))
    return pairs


def fits_shape(wanted: Sequence[int], shape: Sequence[int]) -> bool:
    """True if some array of `shape` fits `wanted`, a leading 1 more or less aside."""
    return (
        may_match(wanted, shape)
        or (len(wanted) > 0 and wanted[0] in (1, -1) and may_match(wanted[1:], shape))
        or (len(shape) > 0 and shape[0] in (1, -1) and may_match(wanted, shape[1:]))
    )


def compile_inputs(
    flow: Sequence[Tensor], file: Sequence[Tensor], *, path: str, stored: bool
) -> Bind:
    """Return what turns arrays as the pack names them into those that the file's tensors take.

    Args:
        flow: What decoding, window and steps give.
        file: The tensors of the file that are not fed from a state.
        path: Where errors point.
        stored: Arrays may already hold the file's own datatype; those pass as they are.

    Raises:
        DocumentError: The two do not fit together.
    """
    plan = []
    for target, source in pair(file, flow, path=path):
        where = f"{path}.{target.name}"
        if not fits_shape(target.shape, source.shape):
            raise DocumentError(
                f"{where}.shape", show_shape(target.shape), show_shape(source.shape)
            )
        convert = compile_conversion(source, target, path=where, refuse=BadInput)
        passes = stored and source.datatype != target.datatype
        own = DTYPES[target.datatype] if passes else None
        fit = Fit(target.shape)
        plan.append((source.name, target.name, own, convert, fit))

    def bind(arrays: Arrays) -> Arrays:
        bound = {}
        for name, file_name, own, convert, fit in plan:
            array = arrays[name]
            if convert is not None and (own is None or array.dtype != own):
                array = convert(array)
            shape = array.shape
            fitted = fit.known.get(shape) or fit(shape, file_name)
            if fitted != shape:
                array = array.reshape(fitted)
            flags = array.flags
            if not (flags.c_contiguous and flags.aligned):
                array = np.require(array, requirements=("C", "A"))
            bound[file_name] = array
        return bound

    return bind


def compile_outputs(public: Sequence[Tensor], file: Sequence[Tensor], *, path: str) -> Bind:
    """Return what checks the arrays of a run and turns them into the pack's outputs.

    Args:
        public: The outputs as the pack names them, before any step.
        file: The tensors of the file.
        path: Where errors point.

    Raises:
        DocumentError: The two do not fit together.
    """
    plan = []
    for target, source in pair(public, file, path=path):
        where = f"{path}.{target.name}"
        if not may_match(target.shape, source.shape):
            raise DocumentError(
                f"{where}.shape", show_shape(target.shape), show_shape(source.shape)
            )
        check = compile_output_check(source, allow_nan=target.allow_nan)
        convert = compile_conversion(source, target, path=where, refuse=BadOutput)
        plan.append((source.name, target.name, check, convert))

    def bind(raw: Mapping[str, Array]) -> Arrays:
        bound = {}
        for file_name, name, check, convert in plan:
            array = check(raw.get(file_name))
            bound[name] = array if convert is None else convert(array)
        return bound

    return bind


def compile_output_check(tensor: Tensor, *, allow_nan: bool) -> Callable[[object], Array]:
    """Return what refuses an array that is not what `tensor` says, with BadOutput."""
    dtype = DTYPES[tensor.datatype]
    fit = Fit(tensor.shape)
    known = fit.known
    finite = tensor.datatype in FLOAT_MAX and not allow_nan
    widen = bf16_to_fp32 if tensor.datatype == "BF16" else None
    texts = tensor.datatype == "BYTES"
    name = f"output {tensor.name!r} of the model"

    def check(array: object) -> Array:
        if not isinstance(array, np.ndarray):
            raise BadOutput(f"{name}: expected an array, got {type(array).__name__}")
        if texts:
            array = _as_texts(array, name)
        elif array.dtype != dtype:
            raise BadOutput(f"{name}: expected {tensor.datatype}, got {array.dtype.name}")
        shape = array.shape
        if known.get(shape) != shape and not fit.takes(shape):
            raise BadOutput(
                f"{name}: expected shape {show_shape(tensor.shape)}, got {show_shape(shape)}"
            )
        if finite and not all_finite(widen(array) if widen else array):
            raise BadOutput(f"{name}: holds NaN or infinity")
        return array

    return check


def _as_texts(array: Array, name: str) -> Array:
    """Return an array of `str`; runtimes give text, bytes or NumPy's own kinds of both."""
    found = array.ravel().tolist() if array.dtype.kind in "OSU" else [array.dtype]
    texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in found]
    if not all(isinstance(text, str) for text in texts):
        raise BadOutput(f"{name}: expected texts, got {array.dtype.name}")
    return np.array(texts, np.object_).reshape(array.shape)


def example(tensor: Tensor) -> Array:
    """Return zeros (or empty strings) of a tensor, free dimensions filled with 1."""
    shape = [1 if n == -1 else n for n in tensor.shape]
    if tensor.datatype == "BYTES":
        return np.full(shape, "", DTYPES["BYTES"])
    # Stored zeros of a quantised tensor may mean a large number; its zero point means none.
    fill = int(tensor.zero_point or 0) if tensor.scale is not None else 0
    return np.full(shape, fill, DTYPES[tensor.datatype])
