"""Sound: bare PCM samples, or a WAV file with them.

Integers become real numbers in [-1, 1), as converters of speech models expect, where the input is
FP32; an INT16 input gets 16-bit samples as they are.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np

from agent.errors import BadInput, DocumentError
from agent.pipeline.codecs.api import (
    MAX_PAYLOAD_BYTES,
    Codec,
    Decode,
    DecoderContext,
    only_input,
    refuse_time_field,
)
from agent.pipeline.message import Decoded
from agent.pipeline.tensors import Array, Fit, all_finite

Encoding = Literal["u8", "s8", "s16le", "s24le", "s32le", "f32le"]
SAMPLE_BYTES: dict[str, int] = {"u8": 1, "s8": 1, "s16le": 2, "s24le": 3, "s32le": 4, "f32le": 4}
# By format tag and bits per sample of a WAV file.
_WAV_ENCODINGS = {
    (1, 8): "u8",
    (1, 16): "s16le",
    (1, 24): "s24le",
    (1, 32): "s32le",
    (3, 32): "f32le",
}
_EXTENSIBLE = 0xFFFE
_CHUNK = struct.Struct("<4sI")
_FORMAT = struct.Struct("<HHIIHH")


class Options(msgspec.Struct, frozen=True):
    """How the samples look.

    `encoding`: of bare samples; a WAV file says its own. `channels`: interleaved in bare samples.
    `mix`: make one channel of several, by their mean. `sample_rate_hz`: what a WAV file must have.
    """

    encoding: Encoding = "s16le"
    channels: Annotated[int, msgspec.Meta(ge=1, le=32)] = 1
    mix: bool = True
    sample_rate_hz: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None


class Sound(NamedTuple):
    """Samples as a payload holds them."""

    data: memoryview
    encoding: str
    channels: int


def compile_decoder(options: Options, context: DecoderContext) -> Decode:
    """Return what reads a block of sound: one channel as the input's shape has room for it,
    several as [samples, channels]."""
    refuse_time_field(context, "pcm")
    tensor = only_input(context, "pcm")
    fit = Fit(tensor.shape)
    if tensor.datatype not in ("FP32", "INT16"):
        raise DocumentError(
            context.path, "an input of FP32 or INT16 for codec pcm", tensor.datatype
        )
    if not fit.is_solvable():
        raise DocumentError(context.path, "a length that tells the shape", f"{tensor.name}")
    as_integers = tensor.datatype == "INT16"

    def decode(payload: bytes | memoryview) -> Decoded:
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise BadInput(f"payload: expected at most {MAX_PAYLOAD_BYTES} bytes")
        view = memoryview(payload)
        sound = Sound(view, options.encoding, options.channels)
        if bytes(view[:4]) == b"RIFF" and bytes(view[8:12]) == b"WAVE":
            sound = _read_wav(view, options)
        frame = SAMPLE_BYTES[sound.encoding] * sound.channels
        if len(sound.data) % frame:
            raise BadInput(
                f"payload: expected whole frames of {frame} bytes, got {len(sound.data)} bytes"
            )
        samples = _integers(sound) if as_integers else _reals(sound)
        if sound.channels > 1 and options.mix:
            mixed = samples.reshape(-1, sound.channels).mean(axis=1, dtype=np.float64)
            samples = (np.rint(mixed) if as_integers else mixed).astype(samples.dtype)
        return Decoded({tensor.name: samples.reshape(fit.solve(samples.size, "samples"))})

    return decode


def _integers(sound: Sound) -> Array:
    if sound.encoding != "s16le":
        raise BadInput(f"samples: expected 16-bit integers, got {sound.encoding}")
    return np.frombuffer(sound.data, "<i2").astype(np.int16, copy=False)


def _reals(sound: Sound) -> Array:
    """Return float32 samples; a full scale of integers is [-1, 1)."""
    if sound.encoding == "f32le":
        samples = np.frombuffer(sound.data, "<f4").astype(np.float32, copy=False)
        if not all_finite(samples):
            raise BadInput("samples: expected finite numbers, got NaN or infinity")
        return samples
    integers, bits, zero = _any_integers(sound)
    reals: Array = integers.astype(np.float32)
    reals -= np.float32(zero)
    reals *= np.float32(2.0 ** (1 - bits))
    return reals


def _any_integers(sound: Sound) -> tuple[Array, int, int]:
    """Return integer samples, the bits of one, and the value that is silence."""
    if sound.encoding == "s24le":
        wide = np.zeros((len(sound.data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(sound.data, np.uint8).reshape(-1, 3)
        return wide.view("<i4").ravel(), 32, 0
    dtype = {"u8": "u1", "s8": "i1", "s16le": "<i2", "s32le": "<i4"}[sound.encoding]
    samples = np.frombuffer(sound.data, dtype)
    return samples, samples.itemsize * 8, 128 if sound.encoding == "u8" else 0


def _read_wav(view: memoryview, options: Options) -> Sound:
    """Find the samples of a WAV file (RIFF, Multimedia Programming Interface 1.0)."""
    chunks = _chunks(view)
    head, data = chunks.get(b"fmt "), chunks.get(b"data")
    if head is None or data is None or len(head) < _FORMAT.size:
        raise BadInput("WAV: expected a format and a data chunk")
    tag, channels, rate, _, _, bits = _FORMAT.unpack_from(head)
    if tag == _EXTENSIBLE and len(head) >= 26:
        (tag,) = struct.unpack_from("<H", head, 24)
    encoding = _WAV_ENCODINGS.get((tag, bits))
    if encoding is None:
        raise BadInput(f"WAV: expected PCM samples, got format {tag} with {bits} bits")
    if options.sample_rate_hz not in (None, rate):
        raise BadInput(f"WAV: expected {options.sample_rate_hz} samples a second, got {rate}")
    if channels == 0 or (channels != options.channels and not (options.mix and channels <= 32)):
        raise BadInput(f"WAV: expected {options.channels} channels, got {channels}")
    return Sound(data, encoding, channels)


def _chunks(view: memoryview) -> dict[bytes, memoryview]:
    """Return the first chunk of each kind; a size beyond the end (of a stream) is cut."""
    found: dict[bytes, memoryview] = {}
    offset = 12
    while offset + _CHUNK.size <= len(view) and not {b"fmt ", b"data"} <= found.keys():
        kind, size = _CHUNK.unpack_from(view, offset)
        start = offset + _CHUNK.size
        found.setdefault(kind, view[start : start + size])
        # Chunks are padded to an even size.
        offset = start + size + size % 2
    return found


CODEC = Codec(Options, compile_decoder)
