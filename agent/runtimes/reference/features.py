"""What prepares rows for a model and names its answers (domain ai.onnx.ml)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from agent.errors import BadInput
from agent.runtimes.api import Array
from agent.runtimes.reference.node import Compute, Made, Operator


def _as_float(x: Array) -> Array:
    """Integers become FP32, floating-point numbers stay."""
    return x if x.dtype.kind == "f" else x.astype(np.float32)


def _scaler(made: Made) -> Compute:
    offset, scale = made.numbers("offset"), made.numbers("scale")
    if offset is None or scale is None:
        raise made.refuse("it has no offset or no scale")

    def run(x: Array) -> Array:
        for values in (offset, scale):
            if values.size not in (1, x.shape[-1]):
                raise BadInput(f"a row has {x.shape[-1]} numbers, the model takes {values.size}")
        return np.asarray((_as_float(x) - offset) * scale).astype(np.float32)

    return run


def _normalizer(made: Made) -> Compute:
    norms: Mapping[str, Callable[[Array], Array]] = {
        "MAX": lambda x: x.max(-1, keepdims=True),
        "L1": lambda x: np.abs(x).sum(-1, keepdims=True),
        "L2": lambda x: np.sqrt((x * x).sum(-1, keepdims=True)),
    }
    norm = norms.get(made.text("norm", "MAX"))
    if norm is None:
        raise made.refuse("its norm is unknown")

    def run(x: Array) -> Array:
        rows = x.astype(np.float64)
        size = norm(rows)
        # A row of zeros stays one.
        return np.asarray(rows / np.where(size == 0, 1, size)).astype(np.float32)

    return run


def _imputer(made: Made) -> Compute:
    floats, integers = made.numbers("imputed_value_floats"), made.integers("imputed_value_int64s")
    missing_float = made.number("replaced_value_float", 0.0)
    missing_integer = made.integer("replaced_value_int64", 0)

    def run(x: Array) -> Array:
        is_float = x.dtype.kind == "f"
        imputed = floats if is_float else integers
        if imputed is None or imputed.size not in (1, x.shape[-1]):
            raise BadInput(f"there are no values to impute in {x.shape[-1]} numbers of {x.dtype}")
        missing = missing_float if is_float else missing_integer
        where = np.isnan(x) if is_float and np.isnan(missing) else x == x.dtype.type(missing)
        return np.where(where, imputed.astype(x.dtype), x)

    return run


def _extractor(made: Made) -> Compute:
    def run(x: Array, indices: Array) -> Array:
        places = indices.reshape(-1)
        if places.size and not (places.min() >= 0 and places.max() < x.shape[-1]):
            raise BadInput(f"an index is outside the {x.shape[-1]} numbers of a row")
        return np.take(x.reshape(1, -1) if x.ndim == 1 else x, places, -1)

    return run


def _binarizer(made: Made) -> Compute:
    threshold = made.number("threshold", 0.0)
    return lambda x: (x > x.dtype.type(threshold)).astype(x.dtype)


def _vectorizer(made: Made) -> Compute:
    sizes = made.integers("inputdimensions")
    if sizes is None or sizes.min(initial=0) < 0:
        raise made.refuse("it does not say how wide its inputs are")

    def run(*arrays: Array) -> Array:
        if len(arrays) != sizes.size:
            raise BadInput(f"{len(arrays)} inputs where the model takes {sizes.size}")
        rows = [x.reshape(1, -1) if x.ndim == 1 else x.reshape(len(x), -1) for x in arrays]
        parts = [
            np.zeros((len(row), size), np.float32) for row, size in zip(rows, sizes, strict=True)
        ]
        for part, row in zip(parts, rows, strict=True):
            width = min(part.shape[1], row.shape[1])
            part[:, :width] = row[:, :width]
        return np.concatenate(parts, 1)

    return run


def _encoder(made: Made) -> Compute:
    """LabelEncoder: each value is replaced by the one that stands at its place."""
    if made.opset < 2:
        raise made.refuse("it is of a version before 2")
    keys, values = (_column(made, name) for name in ("keys", "values"))
    if keys is None or values is None or keys.size != values.size:
        raise made.refuse("its keys and values do not match")
    default = _default(made, values)
    pairs = list(zip(keys.tolist(), values.tolist(), strict=True))
    if made.opset < 4:
        # Not a number is equal to nothing, itself included.
        pairs = [(key, value) for key, value in pairs if key == key]
    # The first of equal keys counts.
    table = {_key(k): v for k, v in reversed(pairs)}

    def run(x: Array) -> Array:
        found = [table.get(_key(value), default) for value in x.ravel().tolist()]
        return np.array(found, values.dtype).reshape(x.shape)

    return run


def _key(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "nan" if isinstance(value, float) and value != value else value


def _column(made: Made, side: str) -> Array | None:
    texts = made.texts(f"{side}_strings")
    if texts:
        return np.array(texts, object)
    for found in (made.integers(f"{side}_int64s"), made.numbers(f"{side}_floats")):
        if found is not None:
            return found
    return made.tensor(f"{side}_tensor")


def _default(made: Made, values: Array) -> Any:
    given = made.tensor("default_tensor")
    if given is not None:
        return given.reshape(-1)[0].item() if given.dtype.kind != "O" else given.reshape(-1)[0]
    if values.dtype.kind == "O":
        return made.text("default_string", "_Unused")
    if values.dtype.kind == "f":
        return made.number("default_float", -0.0)
    return made.integer("default_int64", -1)


def _one_hot(made: Made) -> Compute:
    categories = made.labels("cats_int64s", "cats_strings").tolist()
    places = {category: place for place, category in enumerate(categories)}
    zeros = made.integer("zeros", 1)

    def run(x: Array) -> Array:
        found = [places.get(_key(value), -1) for value in x.ravel().tolist()]
        if not zeros and -1 in found:
            raise BadInput("a value is none of the model's categories")
        hot = np.zeros((len(found), len(categories)), np.float32)
        for row, place in enumerate(found):
            if place >= 0:
                hot[row, place] = 1
        return hot.reshape(*x.shape, len(categories))

    return run


def _zip_map(made: Made) -> Compute:
    """Scores in ascending order of their classes: what the adapter over ONNX Runtime gives too."""
    labels = made.labels("classlabels_int64s", "classlabels_strings").tolist()
    order = sorted(range(len(labels)), key=labels.__getitem__)

    def run(x: Array) -> Array:
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[1] != len(order):
            raise BadInput(f"{rows.shape[1]} scores for {len(order)} classes")
        if not len(rows):
            return np.zeros((0, 0), np.float32)
        return rows[:, order].astype(np.float32)

    return run


OPERATORS: Mapping[str, Operator] = {
    "ArrayFeatureExtractor": Operator(_extractor),
    "Binarizer": Operator(_binarizer),
    "FeatureVectorizer": Operator(_vectorizer),
    "Imputer": Operator(_imputer),
    "LabelEncoder": Operator(_encoder),
    "Normalizer": Operator(_normalizer),
    "OneHotEncoder": Operator(_one_hot),
    "Scaler": Operator(_scaler),
    "ZipMap": Operator(_zip_map),
}
