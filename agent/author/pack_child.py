"""Reads a model file's own words: `python -I -m agent.author.pack_child FILE`, one JSON line out.

A process of its own, because the file may be made to hurt its reader: it gets little memory, little
time, may write no file and knows no secret. No inference library is loaded here.
"""

from __future__ import annotations

import mmap
import resource
import sys
from pathlib import Path

import msgspec

from agent.errors import AgentError, ModelRejected
from agent.formats import registry
from agent.formats.description import ModelDescription

MEMORY_BYTES = 512 * 1024 * 1024
CPU_SECONDS = 30
_OWN_FORMATS = {own.name for own in registry.FORMATS}


class Described(msgspec.Struct, omit_defaults=True):
    """What the child says: the description, or why there is none."""

    description: ModelDescription | None = None
    code: str = ""
    message: str = ""
    hint: str = ""


def main() -> None:
    """Describe the file that the command line names."""
    for limit, value in (
        (resource.RLIMIT_DATA, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    sys.stdout.buffer.write(msgspec.json.encode(_describe(Path(sys.argv[1]))))


def _describe(path: Path) -> Described:
    try:
        return Described(describe_file(path))
    except AgentError as error:
        return Described(code=error.code, message=error.message, hint=error.hint)
    except MemoryError:
        return Described(
            code=ModelRejected.code,
            message=f"reading {path.name} takes more than {MEMORY_BYTES >> 20} MiB of memory",
        )


def describe_file(path: Path) -> ModelDescription:
    """Describe a model file without copying it into memory.

    Raises:
        ModelRejected: It is no model that is read here, or a damaged one.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            return registry.describe(b"", filename=path.name)
        # Not closed by hand: the error of a damaged file still holds views of it.
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if registry.recognise(bytes(data[: registry.HEAD_LENGTH])) not in _OWN_FORMATS:
            # Imports NumPy, and code of other packages: not for the files of most people.
            from agent.runtimes.registry import add_formats

            add_formats()
        return registry.describe(data, filename=path.name)


if __name__ == "__main__":
    main()
