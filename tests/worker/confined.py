"""Run by tests as a program: confines itself, does what a hostile model would, prints the outcome.

Arguments: port of a listening socket, path of a writable file, path of a listening Unix socket.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from agent.worker import confine


def attempts(port: int, file: Path, unix: str) -> dict[str, Callable[[], object]]:
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> object:
        if getattr(libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)
        return None

    return {
        "connect": lambda: socket.create_connection(("127.0.0.1", port), 1),
        "datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(
            b"x", ("127.0.0.1", port)
        ),
        "unix socket": lambda: socket.socket(socket.AF_UNIX).connect(unix),
        "socketpair": socket.socketpair,
        "fork": os.fork,
        "exec": lambda: os.execv("/bin/true", ["true"]),
        "write": lambda: file.open("w"),
        "append": lambda: file.open("a"),
        "read and write": lambda: file.open("r+"),
        "create": lambda: (file.parent / "new").open("x"),
        "truncate": lambda: os.truncate(file, 0),
        "unlink": file.unlink,
        "rename": lambda: file.rename(file.parent / "other"),
        "chmod": lambda: file.chmod(0o777),
        "symlink": lambda: (file.parent / "link").symlink_to(file),
        "kill": lambda: os.kill(os.getppid(), 0),
        "limits of the parent": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE),
        "priority of the parent": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 1),
        "processors of the parent": lambda: os.sched_setaffinity(
            os.getppid(), os.sched_getaffinity(0)
        ),
        "scheduling of the parent": lambda: os.sched_setscheduler(
            os.getppid(), os.SCHED_OTHER, os.sched_param(0)
        ),
        "ptrace": lambda: call("ptrace", 16, os.getppid(), None, None),
        "memfd": lambda: os.memfd_create("x"),
        "unshare": lambda: call("unshare", 0x00020000),
        "environment of the parent": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "memory of the parent": lambda: Path(f"/proc/{os.getppid()}/mem").open("rb"),
    }


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return f"{type(error).__name__}"
    return "done"


def main() -> None:
    """Confine, try, tell."""
    port, file, unix = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    tries = attempts(port, file, unix)
    report = confine.confine()
    confine.limit_memory(256)
    told = {name: outcome(attempt) for name, attempt in tries.items()}
    ran: list[bool] = []
    thread = threading.Thread(target=lambda: ran.append(True))
    thread.start()
    thread.join()
    try:
        bytearray(512 * 1024 * 1024)
        memory = "given"
    except MemoryError:
        memory = "refused"
    status = dict(
        line.split(":\t", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
        if ":\t" in line
    )
    score = Path("/proc/self/oom_score_adj").read_text().strip()
    rest = {
        "report": report,
        "tries": told,
        "thread": ran == [True],
        "memory": memory,
        "capabilities": int(status["CapEff"], 16),
        "no_new_privs": int(status["NoNewPrivs"]),
        "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
        "reads": bool(file.read_bytes()),
        "oom_score_adj": int(score),
    }
    os.write(1, json.dumps(rest).encode())
    # Ends it as a C++ library would; the filter must let this through.
    os.abort()


if __name__ == "__main__":
    main()
