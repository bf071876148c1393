"""Another user for a worker where the agent is root and there are no user namespaces.

Without those a worker would be root too: the owner of the agent's files, if without its rights. The
user that it becomes owns nothing and is nobody else's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from agent.worker.kernel import LayerUnavailable, is_denied

LAYER = "uid"


def leave_root(user: int, needed: Iterable[str] = ()) -> None:
    """Become a user and its group, and nothing but these, for good. All capabilities go with it.

    Args:
        user: Number of both.
        needed: What must still be there to be read afterwards, where it is there before.

    Raises:
        LayerUnavailable: It cannot be had, or could not read what it needs. End the process.
    """
    there = [path for path in needed if os.access(path, os.R_OK)]
    try:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError as error:
        raise LayerUnavailable(LAYER, f"user {user}: {error.strerror}") from None
    for path in there:
        if not is_readable(path):
            raise LayerUnavailable(LAYER, f"user {user} may not read {path}")


def is_readable(path: str) -> bool:
    """Whether this process may read a file, or a folder with what lies in it."""
    # A folder that cannot be reached looks like none, and is not readable either.
    if not os.path.isdir(path):  # noqa: PTH112
        return os.access(path, os.R_OK)
    if not os.access(path, os.R_OK | os.X_OK):
        return False
    # The kernel's own folders hold files that nobody may read.
    entries = () if path.startswith(("/proc/", "/sys/")) else os.scandir(path)
    return all(os.access(entry, os.R_OK) for entry in entries)


def is_left(user: int, parent: int) -> bool:
    """Whether this process is that user, cannot go back, and has no say over its parent."""
    if (os.getresuid(), os.getresgid()) != ((user,) * 3, (user,) * 3) or os.getgroups():
        return False
    ways_back = (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.kill(parent, 0))
    return all(map(is_denied, ways_back))
