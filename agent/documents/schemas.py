"""JSON Schemas (2020-12) of every document and of profiles, generated from the types.

`python -m agent.documents.schemas FOLDER` writes them; a test holds folder and types together.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from agent.documents.blocks import BlockRefused, BlockRequest
from agent.documents.deployment import Deployment
from agent.documents.device import Device
from agent.documents.docstrings import about, structs_in
from agent.documents.gap import GapDocument
from agent.documents.manifest import Manifest, SelfTestCase
from agent.documents.profile import Profile
from agent.documents.report import Report
from agent.documents.settings import Settings
from agent.documents.status import Status
from agent.documents.telemetry import DeadLetterDocument, Event, Telemetry

DOCUMENTS: dict[str, type[msgspec.Struct]] = {
    "manifest": Manifest,
    "selftest-case": SelfTestCase,
    "deployment": Deployment,
    "report": Report,
    "telemetry": Telemetry,
    "event": Event,
    "dead-letter": DeadLetterDocument,
    "gap": GapDocument,
    "status": Status,
    "block-request": BlockRequest,
    "block-refused": BlockRefused,
    "device": Device,
    "settings": Settings,
}
# Profiles have a page of their own, docs/profiles.md.
SCHEMAS: dict[str, type[msgspec.Struct]] = {**DOCUMENTS, "profile": Profile}


def schema_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema of one document, with the types' own words as descriptions."""
    schema = msgspec.json.schema(kind)
    for struct in structs_in(kind):
        described, words = schema["$defs"][struct.__name__], about(struct)
        described["description"] = words.summary
        for name, text in words.fields.items():
            described["properties"][name]["description"] = text
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def rendered() -> dict[str, str]:
    """File name → text, for every document."""
    return {
        f"{name}.json": json.dumps(schema_of(kind), indent=2, sort_keys=True) + "\n"
        for name, kind in SCHEMAS.items()
    }


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in rendered().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
