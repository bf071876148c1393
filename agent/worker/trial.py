"""Tries each layer of the confinement in a child that is thrown away, and looks from inside whether
it denies what it should. A layer that cannot be had, or does not deny, counts as missing.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from agent.worker import confine, identity, kernel, landlock, namespaces, root, seccomp
from agent.worker.confine import Plan
from agent.worker.kernel import LayerUnavailable, is_denied
from agent.worker.root import Bind

DEADLINE_S = 5.0
_MAX_BYTES = 16384
_DOES_NOT_DENY = "it does not deny"
# Hidden by a private root; there on any Linux, whoever the user is.
_HIDDEN = "/etc"
_LIBRARIES = str(Path(os.__file__).parent)
# In the trial's root, but not among what its Landlock rules allow.
_VISIBLE, _NOT_ALLOWED = "/proc/self", "/proc/cpuinfo"


class Trial:
    """A running trial. `result` waits for it, and tries again without what broke it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._canary = socket.socket(socket.AF_UNIX)
        # An abstract address, which only the network namespace hides.
        self._address = f"\0edgeward-{os.getpid()}-{id(self):x}"
        self._canary.bind(self._address)
        self._canary.listen(1)
        self._start()

    def result(self) -> Plan:
        """Return what this machine gives of the plan."""
        try:
            for _ in confine.LAYERS:
                missing, is_whole = self._wait()
                for layer, reason in missing.items():
                    self._plan = self._plan.without(layer, reason)
                if is_whole or not self._plan.layers:
                    break
                self._start()
            return self._plan
        finally:
            self._canary.close()

    def _start(self) -> None:
        self._told, line = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            with contextlib.suppress(BaseException):
                _be_tried(self._plan, self._address, line)
            os._exit(0)
        os.close(line)

    def _wait(self) -> tuple[dict[str, str], bool]:
        """Return what is missing, and whether everything was looked at."""
        lines: list[tuple[str, str]] = []
        with io.FileIO(self._told) as told:
            text = b""
            while select.select([told], [], [], DEADLINE_S)[0] and (part := told.read(_MAX_BYTES)):
                text += part
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        for line in text.splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                lines.append(msgspec.json.decode(line, type=tuple[str, str]))
        words = dict(lines)
        is_whole = words.pop("end", None) is not None
        begun = words.pop("begin", "")
        if not is_whole and not words:
            # It died on the way, or hangs: without this layer the next one goes on.
            words = {begun or confine.LAYERS[0]: "the trial of it did not end"}
        return words, is_whole


def _be_tried(plan: Plan, address: str, line: int) -> None:
    def tell(key: str, value: str) -> None:
        os.write(line, msgspec.json.encode((key, value)) + b"\n")

    confine.end_with_parent(os.getppid())
    if "pid" in plan.layers and "user" in plan.layers:
        # As the template does it: whose children are born into a process namespace.
        for name in ("user", "pid"):
            tell("begin", name)
            try:
                namespaces.enter([name])
            except LayerUnavailable as error:
                tell(error.layer, error.reason)
                # A process that is half in another user namespace proves nothing of the rest.
                return
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            return
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != 0:
            tell("pid", _DOES_NOT_DENY)
    for name, attempt in _attempts(plan, address):
        tell("begin", name)
        try:
            denies = attempt()
        except LayerUnavailable as error:
            tell(error.layer, error.reason)
            if error.layer in ("user", "root", identity.LAYER):
                return
        else:
            if not denies:
                tell(name, _DOES_NOT_DENY)
    tell("end", "")


def _attempts(plan: Plan, address: str) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Yield each layer with what takes it and says whether it denies."""
    for name in plan.namespaces:
        yield name, lambda name=name: _is_left(name, address)  # type: ignore[misc]
    if "root" in plan.layers:
        yield "root", _is_alone
    if plan.leaves_root:
        yield identity.LAYER, lambda: _is_another_user(plan.user)
    kernel.drop_capabilities()
    if "landlock" in plan.layers:
        yield "landlock", _is_restricted
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if "syscalls" in plan.layers:
        yield "syscalls", _is_filtered
    if "allow_list" in plan.layers:
        yield "allow_list", _is_narrowed


def _is_left(name: str, address: str) -> bool:
    own = Path(f"/proc/self/ns/{name}")
    before = own.readlink()
    namespaces.enter([name])
    if name == "net":
        with socket.socket(socket.AF_UNIX) as probe:
            return is_denied(lambda: probe.connect(address))
    return own.readlink() != before


def _is_alone() -> bool:
    root.enter([Bind(_LIBRARIES, programs=True), Bind(_VISIBLE), Bind(_NOT_ALLOWED)])
    return (
        Path(_LIBRARIES).exists()
        and not Path(_HIDDEN).exists()
        and is_denied(lambda: os.open("/new", os.O_CREAT | os.O_WRONLY, 0o600))
    )


def _is_another_user(user: int) -> bool:
    parent = os.getppid()
    identity.leave_root(user, [_LIBRARIES])
    return identity.is_left(user, parent) and any(Path(_LIBRARIES).iterdir())


def _is_restricted() -> bool:
    landlock.restrict([_LIBRARIES, _VISIBLE])
    return is_denied(lambda: os.open(_NOT_ALLOWED, os.O_RDONLY)) and any(Path(_LIBRARIES).iterdir())


def _is_filtered() -> bool:
    seccomp.deny()
    return is_denied(socket.socket) and is_denied(_fork)


def _is_narrowed() -> bool:
    seccomp.allow_only_known()
    return is_denied(lambda: os.getpgid(0)) and os.getpid() > 0


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)
