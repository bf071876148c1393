"""Runs a command as root where there are no user namespaces, and its interpreter is everybody's.

`python rooted.py COMMAND…`. It takes root: what the command changes of users is real, and what it
sees of mounts is its own.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from pathlib import Path

_NEWNS, _NEWUSER = 0x20000, 0x10000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_IDS = "0 0 65536"
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    open_interpreter(Path(sys.base_prefix))
    leave_user_namespaces()
    os.execvp(sys.argv[1], sys.argv[1:])


def open_interpreter(prefix: Path) -> None:
    """Where a folder on the way to the interpreter is root's alone, have it hold nothing else."""
    closed = [folder for folder in prefix.parents if not folder.stat().st_mode & 0o001]
    if not closed:
        return
    check(_libc.unshare(_NEWNS), "unshare")
    mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    os.umask(0o022)
    with tempfile.TemporaryDirectory() as kept:
        mount(str(prefix), kept, "", _MS_BIND | _MS_REC)
        mount("none", str(closed[-1]), "tmpfs", 0, b"mode=755")
        prefix.mkdir(parents=True)
        mount(kept, str(prefix), "", _MS_BIND | _MS_REC)
        check(_libc.umount2(kept.encode(), 2), "umount2")


def leave_user_namespaces() -> None:
    """Be in a user namespace with all users, in which there can be no other one."""
    told, line = os.pipe()
    done, word = os.pipe()
    child = os.getpid()
    helper = os.fork()
    if helper == 0:
        # Only outside of it may so many ids be mapped.
        os.read(told, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text(_IDS)
        os.write(word, b"\0")
        os._exit(0)
    check(_libc.unshare(_NEWUSER), "unshare")
    os.write(line, b"\0")
    os.read(done, 1)
    os.waitpid(helper, 0)
    for descriptor in (told, line, done, word):
        os.close(descriptor)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def mount(source: str, target: str, kind: str, flags: int, data: bytes | None = None) -> None:
    arguments = (source.encode(), target.encode(), kind.encode() or None)
    check(_libc.mount(*arguments, ctypes.c_ulong(flags), data), f"mount {target}")


def check(result: int, step: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{step}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
