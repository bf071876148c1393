"""Which runtimes can be installed on which system: a table of the wheels that there are."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from agent.control.capabilities import TITLES
from agent.control.versions import at_least, older, release
from agent.documents.device import System


class Wheel(msgspec.Struct, frozen=True):
    """A wheel that a package index has.

    Args:
        package: Its name there.
        architectures: Of user space.
        glibc: The oldest that it runs with.
        versions: The newest for a Python, from that Python on.
        last_python: The newest Python that it is built for; nothing: all.
    """

    package: str
    architectures: tuple[str, ...]
    glibc: str
    versions: tuple[tuple[str, str], ...]
    last_python: str = ""

    def version_for(self, python: str) -> str:
        """Return the newest version for a Python, or nothing."""
        if self.last_python and release(python)[:2] > release(self.last_python):
            return ""
        fitting = [version for oldest, version in self.versions if at_least(python, oldest)]
        return fitting[-1] if fitting else ""


_BOTH_64 = ("x86_64", "aarch64")
_WHEELS: Mapping[str, tuple[Wheel, ...]] = {
    "onnx": (
        Wheel(
            "onnxruntime",
            _BOTH_64,
            "2.28",
            (("3.9", "1.19.2"), ("3.10", "1.23.2"), ("3.11", "1.32.0")),
        ),
    ),
    "tflite": (
        Wheel("ai-edge-litert", _BOTH_64, "2.27", (("3.9", "2.1.0"), ("3.10", "2.3.0"))),
        Wheel("tflite-runtime", ("armv7l",), "2.34", (("3.9", "2.14.0"),), last_python="3.11"),
        Wheel("tflite-runtime", ("armv7l",), "2.31", (("3.9", "2.13.0"),), last_python="3.10"),
    ),
    "openvino": (
        Wheel("openvino", ("x86_64",), "2.28", (("3.9", "2025.3.0"), ("3.10", "2026.4.1"))),
        Wheel("openvino", ("aarch64",), "2.35", (("3.9", "2025.3.0"), ("3.10", "2026.4.1"))),
    ),
}
# What else there is, by runtime and architecture.
_ELSEWHERE: Mapping[tuple[str, str], str] = {
    ("onnx", "armv7l"): "a 64-bit system has wheels; on 32 bits Debian 13's package "
    "python3-onnxruntime (1.21) is the one that is ready",
    ("tflite", "armv7l"): "use Debian 12 (Python 3.11) with tflite-runtime, or a 64-bit system",
}


class Obtainable(msgspec.Struct, frozen=True):
    """Whether a runtime can be installed on a system.

    Args:
        version: The newest that can; nothing: none.
        says: Why it is not there, or not to be had.
        do: What to do.
    """

    version: str
    says: str
    do: str


def obtainable(runtime: str, system: System) -> Obtainable:
    """Find out what can be installed of a runtime that a device does not have."""
    title = TITLES.get(runtime, f"the runtime {runtime}")
    if runtime == "edgetpu":
        return Obtainable(
            "",
            "libedgetpu, or a TFLite runtime for it, is not usable here",
            "install libedgetpu built for this TFLite runtime's TensorFlow; `edgeward detect` "
            "tries the pair",
        )
    wheels = _WHEELS.get(runtime, ())
    if not wheels:
        return Obtainable(
            "", f"{title} is not installed here", "install the package that declares it"
        )
    fitting = [wheel for wheel in wheels if not _misfit(wheel, system)]
    if fitting:
        version = fitting[0].version_for(system.python)
        return Obtainable(
            version,
            f"{title} is not installed here",
            f"pip install 'edgeward[{runtime}]' brings {fitting[0].package} {version}",
        )
    here = [wheel for wheel in wheels if system.architecture in wheel.architectures]
    why = _misfit((here or list(wheels))[0], system)
    return Obtainable(
        "",
        f"{title} is not installed here, and {why}",
        _ELSEWHERE.get((runtime, system.architecture), "use a system that it is built for"),
    )


def _misfit(wheel: Wheel, system: System) -> str:
    """Say why a wheel cannot be installed, or nothing. What is not known is no obstacle."""
    bits = {"armv7l": "32-bit ARM (armv7l)"}.get(system.architecture, system.architecture)
    if system.libc.startswith("musl"):
        return f"{wheel.package} has no wheel for musl"
    if system.architecture and system.architecture not in wheel.architectures:
        return f"{wheel.package} has no wheel for {bits}"
    if system.python and not wheel.version_for(system.python):
        return f"{wheel.package} has no wheel for Python {system.python} on {bits}"
    if system.libc and older(system.libc, wheel.glibc):
        return f"{wheel.package}'s wheel needs glibc {wheel.glibc}, and here is {system.libc}"
    return ""
