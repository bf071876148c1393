"""The Edge TPU: compiled TFLite models through libedgetpu's delegate, with either interpreter.

Google's `pycoral` is not needed and not used; the package of that name on the public index is an
unrelated project and is never imported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.documents.device import RuntimeFacts
from agent.documents.manifest import Tensor
from agent.documents.report import Placement
from agent.errors import AcceleratorFailed, ModelError, ModelRejected, RuntimeUnavailable
from agent.formats import tflite as file_format
from agent.formats.description import TfliteNeeds
from agent.runtimes import tflite
from agent.runtimes.api import Arrays, Wanted, shorten
from agent.runtimes.edgetpu_library import LIBRARY, Library, why_none
from agent.runtimes.tflite_placement import MAX_OPERATORS_NAMED, PARTITION

PROVIDER = "edgetpu"
# Any (PCIe before USB), or one by its number and its bus; the library takes anything else for none.
_DEVICE = re.compile(r"(?:usb|pci)?(?::\d{1,2})?")
_PERFORMANCE = ("Low", "Medium", "High", "Max")
# What the interpreter adds to a delegate's own words, without a space between them.
_WHERE = re.compile(r"Node number \d+ \(.*$")
_OPTIONS: Mapping[str, Callable[[str], bool]] = {
    "device": lambda value: _DEVICE.fullmatch(value) is not None,
    "Performance": lambda value: value in _PERFORMANCE,
    "Usb.AlwaysDfu": lambda value: value in ("True", "False"),
    "Usb.MaxBulkInQueueLength": lambda value: value.isdecimal() and len(value) <= 3,
}


class EdgeTpuRuntime:
    """Loads `.tflite` files that were compiled for the Edge TPU.

    Only one process may hold the device: workers that were forked from one template share one
    that does (`agent.worker.owner`).
    """

    name = "edgetpu"
    formats = ("tflite",)
    exclusive = True

    def __init__(self) -> None:
        interpreter = tflite.TfliteRuntime()
        self.library = Library()
        # A library and an interpreter of different TensorFlow sources crash; the pair is what is
        # known to work, or not.
        self.version = f"{interpreter.version}+libedgetpu.{self.library.digest()}"

    def facts(self) -> RuntimeFacts:
        """Say what this pair of interpreter and library offers; whether there is a device is shown
        by a session only."""
        return RuntimeFacts(
            self.name,
            usable=True,
            version=self.version,
            package=tflite.DISTRIBUTION,
            formats=self.formats,
            providers=(PROVIDER,),
            driver=self.library.version(),
        )

    def probe(self) -> str | None:
        """Say what this machine lacks: nothing, once the library is loaded."""
        return None

    def policy(self) -> str:
        """Name the policy of the process that holds the device: the library looks on PCIe first."""
        return "edgetpu-pci" if any(Path("/dev").glob("apex_*")) else "edgetpu-usb"

    def open_device(self) -> None:
        """Open what is needed to hold the device later, when no file may be opened."""
        self.library.open_lock()

    def load(self, model: Path, wanted: Wanted, *, outputs: Sequence[str] = ()) -> EdgeTpuSession:
        """Load a compiled model; see `Runtime.load`.

        Raises:
            AcceleratorFailed: There is no Edge TPU, or it cannot be had.
        """
        try:
            data = model.read_bytes()
        except OSError as error:
            raise ModelRejected(f"{model.name} cannot be read: {error.strerror}") from None
        return self.load_bytes(data, wanted, outputs=outputs)

    def load_bytes(
        self, data: bytes, wanted: Wanted, *, outputs: Sequence[str] = ()
    ) -> EdgeTpuSession:
        """Load a compiled model from its bytes; else as `load`."""
        options = _checked(wanted)
        needs = file_format.describe(memoryview(data)).needs
        if not (isinstance(needs, TfliteNeeds) and needs.edgetpu):
            raise ModelRejected(
                "the model was not compiled for the Edge TPU: all of it would run on the CPU",
                hint="compile a fully quantised .tflite with edgetpu_compiler, or run this one on "
                "the runtime tflite",
            )
        return EdgeTpuSession(self.library, data, wanted, options, outputs)


class EdgeTpuSession:
    """One interpreter with a delegate of its own; inside a process these share the device."""

    def __init__(
        self,
        library: Library,
        data: bytes,
        wanted: Wanted,
        options: Mapping[str, str],
        outputs: Sequence[str],
    ) -> None:
        self._library = library
        self._inner: tflite.TfliteSession | None = None
        library.hold()
        try:
            self._delegate: Any = _delegate(options)
            inner = tflite.TfliteSession(
                data, Wanted("", wanted.threads), outputs, (self._delegate,)
            )
        except BaseException:
            library.let_go()
            raise
        self._inner = inner
        self.inputs: tuple[Tensor, ...] = inner.inputs
        self.outputs: tuple[Tensor, ...] = inner.outputs
        self.placement = _placement(inner.operators)

    def run(self, arrays: Arrays) -> dict[str, Any]:
        """Run once; see `Session.run`.

        Raises:
            AcceleratorFailed: The device did not answer as it should, as when it is unplugged.
        """
        if self._inner is None:
            raise ModelError("the session is closed")
        try:
            return self._inner.run(arrays)
        except ModelError as error:
            # Shapes are fixed, and what does not fit has been refused before: it is the device.
            if type(error) is not ModelError:
                raise
            words = _WHERE.sub("", error.message)
            raise AcceleratorFailed(
                f"the Edge TPU failed: {words}", hint="it may have been unplugged"
            ) from None

    def reset(self) -> None:
        """Forget the state of recurrent operators."""
        if self._inner is not None:
            self._inner.reset()

    def close(self) -> None:
        """Free the interpreter, then its delegate; after the last, others may have the device."""
        if self._inner is not None:
            self._inner.close()
            self._inner = self._delegate = None
            self._library.let_go()


def _checked(wanted: Wanted) -> dict[str, str]:
    if wanted.provider not in ("", PROVIDER):
        raise RuntimeUnavailable(
            f"the Edge TPU's runtime has no provider {wanted.provider!r}", hint=f"it has {PROVIDER}"
        )
    for name, value in wanted.options.items():
        check = _OPTIONS.get(name)
        if check is None:
            raise RuntimeUnavailable(
                f"the Edge TPU's runtime does not take the option {name!r}",
                hint=f"it takes {', '.join(_OPTIONS)}",
            )
        if not check(value):
            raise RuntimeUnavailable(
                f"the option {name} of the Edge TPU cannot be {value!r}",
                hint="device: nothing, :N, usb, usb:N, pci or pci:N; Performance: "
                + ", ".join(_PERFORMANCE),
            )
    return dict(wanted.options)


def _delegate(options: Mapping[str, str]) -> Any:
    try:
        return tflite.external_delegate(LIBRARY, options)
    except (ValueError, OSError) as error:
        # `Failed to load delegate from X`, a line's end, and then words, or none.
        said = shorten(str(error).partition("\n")[2])
        why = said or why_none()
        raise AcceleratorFailed(
            f"the Edge TPU cannot be opened: {why}", hint="`edgeward detect` says what it lacks"
        ) from None


def _placement(operators: Sequence[Mapping[str, Any]]) -> Placement:
    """Say how many of the file's operators the device has; one of its own holds many."""
    names = [entry["op_name"] for entry in operators if entry["op_name"] != PARTITION]
    left = Counter(name for name in names if name != file_format.EDGETPU_OPERATOR)
    share = 1 - left.total() / len(names) if names else 0.0
    shown = [f"{count} {name}" for name, count in left.most_common(MAX_OPERATORS_NAMED)]
    if not left:
        return Placement(PROVIDER, PROVIDER, 1.0, 1.0)
    why = f"{left.total()} of {len(names)} operators run on the CPU: {', '.join(shown)}"
    return Placement(PROVIDER, PROVIDER, round(share, 4), why=why)
