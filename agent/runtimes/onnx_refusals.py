"""What ONNX Runtime says, as our own errors: one sentence that a person can act on."""

from __future__ import annotations

import re

from agent.errors import AgentError, ModelRejected
from agent.runtimes.api import shorten

_OPSET = re.compile(
    r"Opset (\d+) is under development.*support for domain (\S+) is till opset (\d+)", re.DOTALL
)
_IR_VERSION = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_NO_MEMORY = re.compile(r"bad_alloc|[Ff]ailed to allocate memory|bad allocation")
_NO_OPERATOR = re.compile(
    r"(?P<custom>\S+?)(?:\(-?\d+\))? is not a registered function/op"
    r"|No Op registered for (?P<standard>\w+ with domain_version of \d+)"
)
_ORT_VERSION = re.compile(r"ORT format version|ort format model.*version|ORT model.*not supported")
# The library's own source files and C++ signatures are of no use to who reads the reason.
_NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:"
    r"|/\w*onnxruntime\w*/\S+:\d+ (?:[^(]*\([^)]*\)(?: const)?(?: \[with [^\]]*\])? )?"
)
# What is searched: the words quote names of the model, and a pattern's time grows with the square
# of what a name without end makes of them.
_MAX_TEXT = 4000


def needs_memory(text: str) -> bool:
    """Whether it could not get memory."""
    return _NO_MEMORY.search(text) is not None


def reason_in(text: str) -> str:
    """Return the part of the library's words that is about the model."""
    return shorten(_NOISE.sub("", text[:_MAX_TEXT]))


def limit_in(text: str) -> tuple[str, int] | None:
    """Read what a version knows from its refusal of more: (`opset` or `ir_version`, number)."""
    text = text[:_MAX_TEXT]
    if found := _OPSET.search(text):
        return "opset", int(found[3])
    if found := _IR_VERSION.search(text):
        return "ir_version", int(found[2])
    return None


def refusal(error: Exception, version: str, file: str) -> AgentError | MemoryError:
    """Say why a model is not loaded.

    Args:
        error: What the library raised.
        version: The library's.
        file: The model's name.
    """
    text = str(error)[:_MAX_TEXT]
    if needs_memory(text):
        return MemoryError(shorten(text))
    newer = f"this is ONNX Runtime {version}; update it, or export for an older one"
    if found := _OPSET.search(text):
        opset, domain, known = found.groups()
        return ModelRejected(
            f"this runtime does not know opset {opset} (of {domain}; it knows up to {known})",
            hint=newer,
        )
    if found := _IR_VERSION.search(text):
        return ModelRejected(
            f"this runtime does not know IR version {found[1]} (it knows up to {found[2]})",
            hint=newer,
        )
    if found := _NO_OPERATOR.search(text):
        operator = found["custom"] or found["standard"]
        return ModelRejected(f"this runtime does not know the operator {operator}", hint=newer)
    if _ORT_VERSION.search(text):
        return ModelRejected(
            f"ONNX Runtime {version} does not know the layout of {file}: {reason_in(text)}",
            hint="convert the .onnx file with the version that runs it, or give the .onnx file",
        )
    if type(error).__name__ == "InvalidProtobuf":
        return ModelRejected(
            f"{file} is no ONNX model: its bytes are not the Protocol Buffers they must be"
        )
    return ModelRejected(f"ONNX Runtime {version} refuses {file}: {reason_in(text)}")
