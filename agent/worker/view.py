"""What of the machine's files a worker sees: the interpreter's, the libraries' and its pack."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from agent.worker.policies import Policy
from agent.worker.root import Bind

# LiteRT and ONNX Runtime size their thread pools and choose their kernels by these; without them
# LiteRT loses XNNPACK and says nothing.
MACHINE = ("/proc/cpuinfo", "/proc/meminfo", "/proc/self", "/sys/devices/system/cpu")
# Where the dynamic linker finds what a library loads later.
_LINKER = "/etc/ld.so.cache"
_LIBRARY_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")


class View(NamedTuple):
    """Files and folders that a worker sees, and nothing else of the host.

    Attributes:
        binds: As `agent.worker.root.enter` takes them.
        links: The same.
    """

    binds: tuple[Bind, ...]
    links: tuple[tuple[str, str], ...] = ()

    def readable(self) -> list[str]:
        """Return the paths to be read."""
        return [bind.path for bind in self.binds if not (bind.devices or bind.writes)]

    def devices(self) -> list[str]:
        """Return the paths of devices."""
        return [bind.path for bind in self.binds if bind.devices]

    def filled(self) -> list[str]:
        """Return the paths of folders to put files in."""
        return [bind.path for bind in self.binds if bind.writes]


def of_machine() -> View:
    """Return what every worker of this process needs, once its runtime is imported."""
    code = _outermost([*_modules(), *_libraries(), _LINKER])
    links = [Path(folder) for folder in _LIBRARY_FOLDERS if Path(folder).is_symlink()]
    return View(
        (*(Bind(path, programs=True) for path in code), *map(Bind, MACHINE)),
        tuple((str(link), str(link.readlink())) for link in links),
    )


def add(view: View, policy: Policy, directory: str, cache: str = "") -> View:
    """Return a view with a pack's folder, that of what was compiled of it, and what a policy
    adds."""
    more = [Bind(path, programs=True) for path in _found(policy.reads)]
    more += [Bind(path, devices=True) for path in _found(policy.devices)]
    pack = [Bind(str(Path(directory).absolute()))] if directory else []
    if cache:
        pack.append(Bind(str(Path(cache).absolute()), writes=policy.compiles))
    return View((*view.binds, *more, *pack), view.links)


def _modules() -> Iterator[str]:
    """Yield where modules come from: installed libraries' folders whole, since they import more as
    they go; of a checkout or somebody's own folder what was imported, for the rest may be anything.
    """
    prefixes = {os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix)}
    for entry in (Path(entry).absolute() for entry in sys.path if entry):
        real = os.path.realpath(entry)
        is_installed = any(real.startswith(f"{prefix}/lib") for prefix in prefixes)
        if entry.is_dir() and (is_installed or entry.name in ("site-packages", "dist-packages")):
            yield str(entry)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and "." not in name:
            path = Path(file).absolute()
            yield str(path.parent if path.name == "__init__.py" else path)


def _libraries() -> Iterator[str]:
    """Yield the folders of libraries: the interpreter's, and of the system's this architecture's
    where it has its own."""
    if sys.base_prefix != "/usr":
        yield f"{sys.base_prefix}/lib"
    architecture = sysconfig.get_config_var("MULTIARCH")
    own = f"/usr/lib/{architecture}"
    if Path("/usr/local/lib").is_dir():
        yield "/usr/local/lib"
    if architecture and Path(own).is_dir():
        yield own
        return
    for folder in _LIBRARY_FOLDERS:
        if Path(folder).is_dir():
            yield os.path.realpath(folder)


def _outermost(paths: Iterable[str]) -> list[str]:
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(f"{outer}/") for outer in kept):
            kept.append(path)
    return kept


def _found(patterns: Iterable[str]) -> list[str]:
    root = Path("/")
    return sorted({str(path) for pattern in patterns for path in root.glob(pattern.lstrip("/"))})
