"""The table of payload codecs."""

from __future__ import annotations

from agent.pipeline.codecs import csv, features, image, pcm, raw, v2_binary, v2_json
from agent.pipeline.codecs.api import Codec

CODECS: dict[str, Codec] = {
    "v2_json": v2_json.CODEC,
    "v2_binary": v2_binary.CODEC,
    "features": features.CODEC,
    "raw": raw.CODEC,
    "csv": csv.CODEC,
    "image": image.CODEC,
    "pcm": pcm.CODEC,
}
DEFAULT = "v2_json"
