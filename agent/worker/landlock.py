"""Landlock: which files a process may open, whatever its user may (landlock(7)).

It covers the calling thread and those that it starts, so a process must have one when it is used.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from agent.worker.kernel import PR_SET_NO_NEW_PRIVS, LayerUnavailable, prctl, syscall

# The same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_NEWEST_KNOWN = 7

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_FILE, MAKE_FILE = 1 << 5, 1 << 8
TRUNCATE, IOCTL_DEVICE = 1 << 14, 1 << 15
# What a rule for a single file may grant.
_FOR_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEVICE
# Rights over files that each version added: what it knows can be taken away.
_FILES = {1: (1 << 13) - 1, 2: 1 << 13, 3: TRUNCATE, 5: IOCTL_DEVICE}
# bind and connect by TCP; abstract Unix sockets and signals of other domains.
_NETWORK = {4: 0b11}
_SCOPES = {6: 0b11}


def version() -> int:
    """Return the newest version of the interface that this kernel has, as far as it is known here.

    Raises:
        LayerUnavailable: It has none.
    """
    try:
        found = syscall(_CREATE_RULESET, "landlock", None, ctypes.c_size_t(0), _ASK_VERSION)
    except OSError as error:
        raise LayerUnavailable("landlock", error.strerror or "") from None
    return min(found, _NEWEST_KNOWN)


def handled(abi: int) -> tuple[int, int, int]:
    """Return what a version lets be taken away: rights over files, network, scopes."""
    files, network, scopes = (
        sum(bits for since, bits in table.items() if since <= abi)
        for table in (_FILES, _NETWORK, _SCOPES)
    )
    return files, network, scopes


def restrict(
    readable: Iterable[str], writable: Iterable[str] = (), filled: Iterable[str] = ()
) -> int:
    """Let this process open nothing but these paths, and what lies below them; nothing undoes it.

    Args:
        readable: For reading.
        writable: Devices: for reading, writing and their ioctl calls.
        filled: Folders to make, write, rename and remove files in.

    Returns:
        The version in use.

    Raises:
        LayerUnavailable: It cannot be had.
    """
    abi = version()
    files, network, scopes = handled(abi)
    # struct landlock_ruleset_attr; an older kernel takes fewer fields.
    fields = struct.pack("QQQ", files, network, scopes)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    try:
        ruleset = syscall(
            _CREATE_RULESET, "landlock_create_ruleset", fields, ctypes.c_size_t(len(fields)), 0
        )
        try:
            for paths, rights in (
                (readable, READ_FILE | READ_DIR),
                (writable, READ_FILE | READ_DIR | WRITE_FILE | IOCTL_DEVICE),
                (filled, READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | MAKE_FILE | REMOVE_FILE),
            ):
                for path in paths:
                    _allow(ruleset, path, rights & files)
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            syscall(_RESTRICT_SELF, "landlock_restrict_self", ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError as error:
        raise LayerUnavailable("landlock", error.strerror or str(error)) from None
    return abi


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        # What is not there needs no right.
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _FOR_FILES
        # struct landlock_path_beneath_attr, packed: u64 rights, s32 descriptor.
        rule = struct.pack("=Qi", rights, descriptor)
        syscall(_ADD_RULE, f"landlock_add_rule {path}", ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)
