"""What a model file says of itself, read in a child process that may not take long or much."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from agent.author.pack_child import Described
from agent.errors import AgentError, ModelRejected, UsageError
from agent.formats.description import ModelDescription, OnnxNeeds
from agent.formats.external_data import check_external_data

DEADLINE_S = 30.0
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent"}


def read_model(path: Path, *, deadline_s: float = DEADLINE_S) -> ModelDescription:
    """Describe a model file.

    Args:
        path: An `.onnx` or `.tflite` file.
        deadline_s: How long reading it may take.

    Raises:
        UsageError: There is no such file.
        ModelRejected: It is no model that is read here, a damaged one, or one that keeps its
            reader busy.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise UsageError(f"{path}: {what}", hint="give an .onnx or .tflite file")
    command = [sys.executable, "-I", "-m", "agent.author.pack_child", str(path.absolute())]
    try:
        done = subprocess.run(
            command,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=deadline_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelRejected(f"{path.name}: reading it took more than {deadline_s:g} s") from None
    return _answer(path, done)


def _answer(path: Path, done: subprocess.CompletedProcess[bytes]) -> ModelDescription:
    try:
        told = msgspec.json.decode(done.stdout, type=Described)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ModelRejected(
            f"{path.name}: the process that read it ended with status {done.returncode}"
        ) from None
    if told.description is None:
        raise _error(told.code, f"{path.name}: {told.message}", told.hint)
    return told.description


def _error(code: str, message: str, hint: str) -> AgentError:
    error = ModelRejected if code == ModelRejected.code else AgentError
    return error(message, hint=hint)


def external_files(path: Path, description: ModelDescription) -> tuple[str, ...]:
    """Return the names of the files beside the model that hold its weights.

    Raises:
        ModelRejected: The model names a file that is not one plainly beside it, or too short.
    """
    if not isinstance(description.needs, OnnxNeeds):
        return ()
    external = description.needs.external_data
    sizes = {data.location: _size_beside(path.parent, data.location) for data in external}
    there = {name: size for name, size in sizes.items() if size is not None}
    return check_external_data(external, there)


def _size_beside(folder: Path, location: str) -> int | None:
    """Return the size of a file in a folder; None where a name leads elsewhere."""
    parts = location.split("/")
    if location.startswith("/") or any(part in ("", ".", "..") for part in parts):
        return None
    place = folder
    for part in parts:
        place /= part
        try:
            if place.is_symlink():
                return None
        except (OSError, ValueError):
            return None
    return place.stat().st_size if place.is_file() else None
