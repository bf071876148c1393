"""The table of payload codecs."""

from __future__ import annotations

from agent.pipeline.codecs import raw, v2_json
from agent.pipeline.codecs.api import Codec

CODECS: dict[str, Codec] = {
    "v2_json": v2_json.CODEC,
    "raw": raw.CODEC,
}
DEFAULT = "v2_json"
