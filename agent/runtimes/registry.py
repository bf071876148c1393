"""Finds a runtime by name, importing only the one that is asked for.

A runtime in somebody else's package joins by an entry point in the group `edgeward.runtimes`, its
name the runtime's and its value a class that fulfils `agent.runtimes.api.Runtime`. Where it loads
files of a format of its own, one in the group `edgeward.formats` names an
`agent.formats.registry.Format`, which is read without the runtime.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

from agent.errors import RuntimeUnavailable
from agent.formats import registry as formats
from agent.runtimes.api import Runtime, shorten
from agent.runtimes.installed import cure_for

GROUP, FORMATS_GROUP = "edgeward.runtimes", "edgeward.formats"
# Found also where the package runs from a bare folder, without the metadata of an installation.
BUILT_IN = {
    "edgetpu": "agent.runtimes.edgetpu:EdgeTpuRuntime",
    "onnx": "agent.runtimes.onnx:OnnxRuntime",
    "openvino": "agent.runtimes.openvino:OpenvinoRuntime",
    "reference": "agent.runtimes.reference.runtime:ReferenceRuntime",
    "tflite": "agent.runtimes.tflite:TfliteRuntime",
}


def names() -> tuple[str, ...]:
    """Return the names of all runtimes that an installed package declares; nothing is imported."""
    return tuple(sorted({name for name, _ in _declared()} | set(BUILT_IN)))


def find(name: str) -> Runtime:
    """Import one runtime with its inference library.

    Raises:
        RuntimeUnavailable: No package declares it, its library is absent or does not import, or
            the machine lacks what it needs.
    """
    place = BUILT_IN.get(name) or dict(_declared()).get(name)
    if place is None:
        raise RuntimeUnavailable(
            f"there is no runtime called {name!r}", hint=f"known here: {', '.join(names())}"
        )
    try:
        runtime = cast(Runtime, _named(place)())
    except RuntimeUnavailable:
        raise
    except Exception as error:
        # A native library can fail in any way while it is loaded, not only by ImportError.
        raise _not_imported(name, error) from error
    lack = runtime.probe()
    if lack is not None:
        raise RuntimeUnavailable(f"the runtime {name} cannot work here: {lack}")
    if name not in BUILT_IN:
        add_formats(runtime.formats)
    return runtime


def add_formats(names: Sequence[str] | None = None) -> None:
    """Make formats known that other packages read.

    Args:
        names: Only these; None: all.

    Raises:
        RuntimeUnavailable: A reader cannot be imported.
    """
    for name, place in _declared(FORMATS_GROUP):
        if names is not None and name not in names:
            continue
        try:
            formats.add(_named(place))
        except Exception as error:
            raise RuntimeUnavailable(
                f"the reader of the model format {name} cannot be imported: "
                f"{type(error).__name__}: {shorten(error)}",
                hint=install_hint(name),
            ) from error


def _named(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _not_imported(name: str, error: Exception) -> RuntimeUnavailable:
    words = f"{type(error).__name__}: {shorten(error)}"
    return RuntimeUnavailable(
        f"the runtime {name} cannot be imported: {words}",
        hint=cure_for(words) or install_hint(name),
    )


def install_hint(name: str) -> str:
    """Say what to install for a runtime."""
    if name in BUILT_IN:
        return f"pip install 'edgeward[{name}]' installs it"
    return "install or repair the package that declares it"


def _declared(group: str = GROUP) -> Iterator[tuple[str, str]]:
    """Yield name and place of each entry point of a group."""
    # Costs 2 MB in each template if it stands at the top, and the built-in ones do without it.
    from importlib import metadata

    for point in metadata.entry_points(group=group):
        yield point.name, point.value
