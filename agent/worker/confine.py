"""Takes from a worker what it does not need, before it reads the first byte of a model.

Each layer is tried and its effect looked at from inside; what does not hold is reported as missing.
Everything here happens while the process has one thread: a namespace or a filter of this kind
covers the calling thread and those that it starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
from pathlib import Path

from agent.errors import IsolationUnavailable
from agent.worker import seccomp

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_CAPABILITY_VERSION_3 = 0x20080522
OOM_SCORE_ADJ = 500
OPEN_FILES = 64
LAST_WORDS_BYTES = 8 * 1024 * 1024
# What this version can promise at most; a stronger one adds a private root and Landlock.
LEVELS = ("none", "basic")

_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before the kernel was asked.
    if os.getppid() != parent:
        os._exit(0)


def thread_count() -> int:
    """Return how many threads this process has, native ones included."""
    return len(list(Path("/proc/self/task").iterdir()))


def close_all_but(kept: set[int]) -> None:
    """Close every inherited descriptor that is not in `kept`."""
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if descriptor not in kept:
            # The one that listed the folder is closed already.
            with contextlib.suppress(OSError):
                os.close(descriptor)


def confine() -> dict[str, str]:
    """Give up the network, other processes, writing and privileges.

    Returns:
        Layer → what holds it, for the report; `missing_…` → why a layer is absent.
    """
    _be_the_first_to_go()
    os.umask(0o077)
    for limit, value in (
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        resource.setrlimit(limit, (value, value))
    no_namespace = _leave_network()
    _drop_capabilities()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    no_filter = seccomp.deny()
    if not no_filter and _can_open_socket():
        no_filter = "it does not deny"
    report = {
        "network": "namespace" if not no_namespace else "seccomp" if not no_filter else "none",
        "syscalls": "none" if no_filter else "seccomp",
    }
    report |= {"missing_namespace": no_namespace} if no_namespace else {}
    report |= {"missing_seccomp": no_filter} if no_filter else {}
    return report


def demand(require: str, report: dict[str, str]) -> None:
    """Check that a process is confined as far as the settings ask.

    Args:
        require: The level below which nothing may be served.
        report: What `confine` returned.

    Raises:
        IsolationUnavailable: It is not.
    """
    level = "none" if report["network"] == "none" else "basic"
    if require in LEVELS[: LEVELS.index(level) + 1]:
        return
    reasons = "; ".join(
        f"{layer.removeprefix('missing_')}: {reason}"
        for layer, reason in report.items()
        if layer.startswith("missing_")
    )
    raise IsolationUnavailable(
        f"the settings require isolation {require!r}, this machine gives a worker {level!r}"
        + (f" ({reasons})" if reasons else ""),
        hint="allow user namespaces or seccomp here, or lower isolation.require",
    )


def limit_memory(megabytes: int) -> str:
    """Limit private writable memory; return what holds the limit.

    Not the address space: mapped models, arenas and thread stacks reserve far more of it than they
    use.
    """
    size = megabytes * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (size, size + LAST_WORDS_BYTES))
    return "rlimit_data"


def allow_last_words() -> None:
    """Give a process that ran into its limit the little memory that it takes to say so."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _be_the_first_to_go() -> None:
    """Let the kernel, when memory runs out, take this process before any other."""
    # Before the process stops being dumpable: after that the file belongs to root.
    score = Path("/proc/self/oom_score_adj")
    try:
        if int(score.read_text()) < OOM_SCORE_ADJ:
            score.write_text(str(OOM_SCORE_ADJ))
    except OSError:
        return


def _leave_network() -> str:
    """Move to a network namespace of its own, with nothing in it; return why that failed."""
    own = Path("/proc/self/ns/net")
    before = own.readlink()
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return f"unshare: {os.strerror(ctypes.get_errno())}"
    if own.readlink() == before:
        return "unshare had no effect"
    return ""


def _drop_capabilities() -> None:
    # A new user namespace comes with every capability inside it; none is needed.
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITY_VERSION_3, 0))
    _libc.capset(header, ctypes.create_string_buffer(24))


def _can_open_socket() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")
