"""The alphabets that names in documents are written in."""

from __future__ import annotations

from typing import Annotated

import msgspec

# `words` is what docs/documents.md calls the type.
# Twins forbid `.`, `$` and spaces in keys.
Key = Annotated[
    str,
    msgspec.Meta(pattern=r"^[a-z0-9_-]{1,64}$", extra={"words": "key"}),
]
Digest = Annotated[
    str,
    msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}$", extra={"words": "digest"}),
]
Text = Annotated[str, msgspec.Meta(max_length=1024)]
ShortText = Annotated[str, msgspec.Meta(max_length=128)]
Topic = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]

# The datatypes of the Open Inference Protocol V2 ("Tensor Data Types"), with their size in bytes.
DATATYPE_BYTES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": 0,
}
