"""Runtimes that compile, for tests: the reference one, which takes its time for a model unless it
finds what it made of it before. Run as a program, this is the template process of one of them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec import structs

from agent.documents.device import RuntimeFacts
from agent.links.spawn import CONTROL, ENVIRONMENT, spawn
from agent.links.template import TemplateProcess
from agent.runtimes import registry
from agent.runtimes.api import Array, Arrays, Wanted
from agent.runtimes.reference.runtime import ReferenceRuntime, ReferenceSession, _read

FILE = "program"
# Work that a library would do to compile: hashes of 1 MiB.
WORK = 100
_REPOSITORY = Path(__file__).parents[2]


class Keeper(ReferenceRuntime):
    """Compiles well."""

    name = "keeper"
    work = WORK

    def facts(self) -> RuntimeFacts:
        return structs.replace(super().facts(), compiles={"": "7.1"}, operators=())

    def load(self, model: Path, wanted: Wanted, *, outputs: Sequence[str] = ()) -> Session:
        data = hashlib.sha256(model.read_bytes()).digest()
        told = ""
        if wanted.cache is not None and not wanted.fill and (wanted.cache / FILE).exists():
            told = "used" if (wanted.cache / FILE).read_bytes() == data else "refused"
        if told != "used":
            for _ in range(self.work):
                hashlib.sha256(bytes(1 << 20))
        if wanted.cache is not None and wanted.fill:
            self.keep(wanted.cache, data)
        super().load(model, wanted, outputs=outputs).close()
        session = Session(_read(model), outputs)
        session.compiled = told
        session.extra, session.work = self.changes(told)
        return session

    def keep(self, folder: Path, data: bytes) -> None:
        (folder / FILE).write_bytes(data)

    def changes(self, told: str) -> tuple[float, int]:
        """What is added to an answer, and how much work a run takes, in hashes of 1 MiB."""
        return 0.0, 0


class Session(ReferenceSession):
    """One that can be wrong, or slow."""

    compiled = ""
    extra, work = 0.0, 0

    def run(self, arrays: Arrays) -> dict[str, Array]:
        for _ in range(self.work):
            hashlib.sha256(bytes(1 << 20))
        return {name: value + self.extra for name, value in super().run(arrays).items()}


class Plodder(Keeper):
    """Slow, whatever it does."""

    name = "plodder"

    def changes(self, told: str) -> tuple[float, int]:
        return 0.0, 4


class Liar(Keeper):
    """What it compiles answers wrongly."""

    name = "liar"

    def changes(self, told: str) -> tuple[float, int]:
        return (1.0 if told == "used" else 0.0), 0


class Slacker(Keeper):
    """What it compiles is slow."""

    name = "slacker"

    def changes(self, told: str) -> tuple[float, int]:
        return 0.0, 4 if told == "used" else 0


class Endless(Keeper):
    """Begins to write, and never ends."""

    name = "endless"

    def keep(self, folder: Path, data: bytes) -> None:
        (folder / FILE).write_bytes(data)
        while True:
            hashlib.sha256(bytes(1 << 20))


class Glutton(Keeper):
    """Writes and writes."""

    name = "glutton"

    def keep(self, folder: Path, data: bytes) -> None:
        with (folder / FILE).open("wb") as file:
            while True:
                file.write(bytes(1 << 16))


class Escaper(Keeper):
    """Tries to write where it must not."""

    name = "escaper"

    def keep(self, folder: Path, data: bytes) -> None:
        told = []
        for place in (folder.parent / "beside", Path("/tmp/out"), folder / "sub" / "x"):
            try:
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(data)
                told.append(str(place))
            except OSError:
                continue
        (folder / FILE).write_text("\n".join(told))


RUNTIMES = {kind.name: kind for kind in (Keeper, Plodder, Liar, Slacker, Endless, Glutton, Escaper)}


def start(runtime: str) -> TemplateProcess:
    """Start the template process of one of these, or of a usual runtime."""
    code = f"import sys; sys.path.insert(0, {str(_REPOSITORY)!r}); import tests.runtimes.compiling"
    arguments = [runtime, str(CONTROL), str(os.getpid())]
    command = [sys.executable, "-I", "-c", f"{code} as own; own.main()", *arguments]
    return TemplateProcess(spawn(runtime, command, ENVIRONMENT))


def main() -> None:
    """Be the template process that the arguments ask for."""
    from agent.worker import __main__ as worker

    for name, kind in RUNTIMES.items():
        registry.BUILT_IN[name] = f"{__name__}:{kind.__name__}"
    worker.main()
