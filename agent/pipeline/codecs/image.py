"""A JPEG or PNG picture, decoded with Pillow.

The number of pixels is read from the header and bounded before anything is decoded. The orientation
that a camera notes in EXIF is not applied: a fixed camera's pictures all have the same one.
"""

from __future__ import annotations

import io
import warnings
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from agent.errors import BadInput, DocumentError, RuntimeUnavailable
from agent.pipeline.codecs.api import (
    MAX_PAYLOAD_BYTES,
    Codec,
    Decode,
    DecoderContext,
    only_input,
    refuse_time_field,
)
from agent.pipeline.message import Decoded
from agent.pipeline.tensors import DTYPES, Array, Fit

Format = Literal["jpeg", "png", "bmp"]


class Options(msgspec.Struct, frozen=True):
    """How to decode.

    `mode`: colours of the array: RGB, or L (grey). `formats`: file formats taken. `max_pixels`:
    larger pictures are refused.
    """

    mode: Literal["RGB", "L"] = "RGB"
    formats: tuple[Format, ...] = ("jpeg", "png")
    max_pixels: Annotated[int, msgspec.Meta(ge=1, le=1 << 26)] = 1 << 24


def compile_decoder(options: Options, context: DecoderContext) -> Decode:
    """Return what decodes one picture to [height, width, channels], or [height, width] where the
    input has no axis for channels; with a leading 1 where the input has one."""
    refuse_time_field(context, "image")
    tensor = only_input(context, "image")
    if tensor.datatype not in ("UINT8", "FP32"):
        raise DocumentError(
            context.path, "an input of UINT8 or FP32 (0 to 255) for codec image", tensor.datatype
        )
    channels = 3 if options.mode == "RGB" else 1
    rank, fit, dtype = len(tensor.shape), Fit(tensor.shape), DTYPES[tensor.datatype]
    flat = rank == 2 and channels == 1
    if not flat and (rank not in (3, 4) or tensor.shape[-1] not in (channels, -1)):
        raise DocumentError(
            context.path, f"an input of shape [height,width,{channels}]", str(list(tensor.shape))
        )
    pillow = _import_pillow()
    formats = [name.upper() for name in options.formats]

    def decode(payload: bytes | memoryview) -> Decoded:
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise BadInput(f"payload: expected at most {MAX_PAYLOAD_BYTES} bytes")
        array = _pixels(pillow, payload, formats, options)
        if not flat and channels == 1:
            array = array[:, :, np.newaxis]
        array = array.reshape(fit(array.shape, "picture"))
        return Decoded({tensor.name: array.astype(dtype, copy=False)})

    return decode


def _pixels(
    pillow: Any, payload: bytes | memoryview, formats: list[str], options: Options
) -> Array:
    try:
        with warnings.catch_warnings():
            # Pillow warns of what may be a decompression bomb; the bound below is lower.
            warnings.simplefilter("ignore")
            with pillow.open(io.BytesIO(payload), formats=formats) as picture:
                width, height = picture.size
                if width * height > options.max_pixels:
                    raise BadInput(
                        f"picture: expected at most {options.max_pixels} pixels, "
                        f"got {width} x {height}"
                    )
                return np.asarray(picture.convert(options.mode))
    except BadInput:
        raise
    # Pillow's decoders raise nearly everything for broken files (SyntaxError, struct.error …).
    except Exception as error:
        raise BadInput(
            f"picture: expected {' or '.join(options.formats)}: {type(error).__name__}: "
            f"{str(error)[:80]}"
        ) from None


def _import_pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise RuntimeUnavailable(
            "codec image needs Pillow, which is not installed",
            hint="pip install 'edgeward[image]'",
        ) from None
    return Image


CODEC = Codec(Options, compile_decoder)
