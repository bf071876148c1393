"""Views of the machine that hold nothing: no network, no process, no mount of the host."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from agent.worker.kernel import LayerUnavailable, check, libc

# CLONE_NEW… of clone(2). The user namespace comes first: it gives the right to make the others.
FLAGS = {
    "user": 0x10000000,
    "net": 0x40000000,
    "mnt": 0x00020000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
    "pid": 0x20000000,
}
# Those that a worker enters itself; `pid` it is born into.
OWN = ("user", "net", "mnt", "ipc", "uts", "cgroup")


def enter(names: Collection[str]) -> None:
    """Leave the host's namespaces of these kinds. This process must have one thread.

    Raises:
        LayerUnavailable: One cannot be had; which one, if they are asked for one by one.
    """
    ids = os.geteuid(), os.getegid()
    wanted = [name for name in FLAGS if name in names]
    layer = wanted[-1]
    try:
        check(libc.unshare(sum(FLAGS[name] for name in wanted)), "unshare")
        if "user" in wanted:
            layer = "user"
            _map_ids(*ids)
    except OSError as error:
        # Ubuntu gives a user namespace without rights: then the mapping is what fails.
        raise LayerUnavailable(layer, error.strerror or str(error)) from None


def _map_ids(user: int, group: int) -> None:
    """Keep this process's own ids in the new user namespace, and no other's."""
    # Without it an ordinary user may map no group.
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        try:
            Path(f"/proc/self/{name}").write_text(text)
        except OSError as error:
            raise OSError(error.errno, f"{name}: {error.strerror}") from None
