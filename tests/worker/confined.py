"""Run by tests as a program: confines itself as a worker does, tries all that a hostile model would
try, and tells what became of it.

Its argument is a JSON object; see `Setting`. It writes one, too: `told` by the worker, and the
`status` that it ended with.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from agent.worker import confine, seccomp, template, view
from agent.worker.confine import Plan
from agent.worker.policies import POLICIES, STRICT
from agent.worker.trial import Trial

MEMORY_MB = 256
Attempt = Callable[[], object]
_libc = ctypes.CDLL(None, use_errno=True)


class Setting(msgspec.Struct, frozen=True):
    """What there is to attack, and what protects it.

    Attributes:
        port: Of a listening TCP socket.
        unix: Path of a listening Unix socket.
        abstract: Name of a listening abstract one.
        victim: Process id of a process of the same user that does not protect itself.
        state: A file of the daemon's.
        other: A file of another pack.
        pack: The folder of the worker's own.
        file: A file that everybody may write, in a folder that is so too.
        off: Layers that are switched off.
        only: The only layers that are on; nothing: all.
        policy: Of `POLICIES`.
        die: How to end.
    """

    port: int
    unix: str
    abstract: str
    victim: int
    state: str
    other: str
    pack: str
    file: str
    off: list[str] = []
    only: list[str] | None = None
    policy: str = STRICT
    die: str = "exit"


def attempts(setting: Setting) -> dict[str, Attempt]:
    """Return every attack by its name."""
    victim, file = setting.victim, Path(setting.file)
    folder = file.parent
    return {
        "read /etc/passwd": lambda: read("/etc/passwd"),
        "read the daemon's memory": lambda: read(f"/proc/{victim}/mem"),
        "read the daemon's environment": lambda: read(f"/proc/{victim}/environ"),
        "read the daemon's state": lambda: read(setting.state),
        "read another pack": lambda: read(setting.other),
        "list processes": lambda: read(f"/proc/{victim}/cmdline"),
        "write a file": lambda: file.open("r+"),
        "append to a file": lambda: file.open("a"),
        "create a file": lambda: (folder / "new").open("x"),
        "create a file in /tmp": lambda: Path(f"/tmp/edgeward-hostile-{victim}").open("x"),
        "create a file in /dev/shm": lambda: Path(f"/dev/shm/edgeward-hostile-{victim}").open("x"),
        "create a file in its pack": lambda: Path(setting.pack, "new").open("x"),
        "create a folder": (folder / "folder").mkdir,
        "truncate a file": lambda: os.truncate(file, 0),
        "remove a file": file.unlink,
        "rename a file": lambda: (folder / "second").rename(folder / "other"),
        "change a file's mode": lambda: (folder / "third").chmod(0o700),
        "make a link": lambda: (folder / "link").symlink_to(file),
        "connect by TCP": lambda: socket.create_connection(("127.0.0.1", setting.port), 1),
        "send by UDP": lambda: send_datagram(setting.port),
        "connect to a Unix socket": lambda: connect_unix(setting.unix),
        "connect to an abstract socket": lambda: connect_unix("\0" + setting.abstract),
        "open a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
        "make a socket pair": socket.socketpair,
        "start a program": lambda: start_program("/bin/true"),
        "fork": fork,
        "clone": lambda: call("clone", 17, 0, 0, 0, 0),
        "kill the daemon": lambda: os.kill(victim, 0),
        # PTRACE_SEIZE, which does not stop it.
        "trace the daemon": lambda: libc("ptrace", 0x4206, victim, None, None),
        "watch the daemon": lambda: os.pidfd_open(victim),
        "limit the daemon": lambda: resource.prlimit(victim, resource.RLIMIT_NOFILE),
        "slow the daemon": lambda: os.setpriority(os.PRIO_PROCESS, victim, 1),
        "move the daemon": lambda: os.sched_setaffinity(victim, os.sched_getaffinity(0)),
        "make a user namespace": lambda: libc("unshare", 0x10000000),
        "mount": lambda: libc("mount", b"none", b"/proc", b"tmpfs", 0, None),
        "change the root": lambda: os.chroot("/"),
        "use io_uring": lambda: call("io_uring_setup", 1, bytes(120)),
        "use a key": lambda: call("keyctl", 0, -3, 1),
        "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
        "fill memory": lambda: bytearray(2 * MEMORY_MB * 2**20),
        "fill shared memory": lambda: mapping(mmap.MAP_SHARED | mmap.MAP_ANONYMOUS),
        "fill a growing mapping": lambda: mapping(0x100 | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
        "fill a memory file": lambda: os.memfd_create("x"),
        "fill System V memory": lambda: libc("shmget", 0, ctypes.c_size_t(4096), 0o1600),
        "raise a limit": raise_limit,
        "outlive the daemon": lambda: libc("prctl", 1, 0, 0, 0, 0),
        "become dumpable": lambda: libc("prctl", 4, 1, 0, 0, 0),
        "be spared by the OOM killer": lambda: Path("/proc/self/oom_score_adj").write_text("0"),
    }


def read(path: str) -> None:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        # Of a process's memory the first page is never there; to have it open is enough.
        if not path.endswith("/mem"):
            file.read(1)


def send_datagram(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unconnected:
        unconnected.sendto(b"x", ("127.0.0.1", port))


def connect_unix(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(address)


def start_program(path: str) -> None:
    # Not in this process, which has more to try: but a file that may not be run says so itself.
    if not os.access(path, os.X_OK):
        raise PermissionError(path)
    fork(lambda: os.execv(path, [path]))


def fork(then: Attempt = lambda: None) -> None:
    child = os.fork()
    if child == 0:
        try:
            then()
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise PermissionError("the child could not do it")


def libc(name: str, *arguments: object) -> int:
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def call(name: str, *arguments: object) -> None:
    column = seccomp.ARCHITECTURES[os.uname().machine].column
    numbers = seccomp.DENIED.get(name) or seccomp.CONDITIONS[name].numbers
    if libc("syscall", ctypes.c_long(numbers[column] or 0), *arguments) == 0 and name == "clone":
        os._exit(0)


def mapping(flags: int) -> None:
    mmap.mmap(-1, 2 * MEMORY_MB * 2**20, flags=flags).close()


def raise_limit() -> None:
    for limit in (resource.RLIMIT_DATA, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (resource.RLIM_INFINITY,) * 2)


def outcome(attempt: Attempt) -> str:
    try:
        attempt()
    except (OSError, MemoryError, ValueError) as error:
        return type(error).__name__
    return "done"


DEATHS: dict[str, Attempt] = {
    "exit": lambda: None,
    "abort": os.abort,
    "crash": lambda: ctypes.string_at(8),
    "cpu": lambda: spin(),
    "signal": lambda: signal.raise_signal(signal.SIGSEGV),
}


def spin() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (1, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    while True:
        pass


def be_hostile(plan: Plan, setting: Setting, out: int) -> None:
    """Confine, try, tell, end."""
    tries = attempts(setting)
    seen = view.add(view.of_machine(), POLICIES[setting.policy], setting.pack)
    held = confine.confine(plan, seen, setting.policy)
    held.layers["memory"] = confine.limit_memory(MEMORY_MB)
    confine.narrow(held, "onnx")
    told = {name: outcome(attempt) for name, attempt in tries.items()}
    # What makes it dumpable or sets its end free is tried last, and so is what it may do.
    ran: list[bool] = []
    thread = threading.Thread(target=lambda: ran.append(True))
    thread.start()
    thread.join()
    status = dict(
        line.split(":\t", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
        if ":\t" in line
    )
    may: dict[str, Any] = {
        "thread": ran == [True],
        "pack": outcome(lambda: read(f"{setting.pack}/model")),
        "processors": outcome(lambda: list(Path("/sys/devices/system/cpu").iterdir())),
        "processor": outcome(lambda: read("/proc/cpuinfo")),
        "imports": outcome(lambda: __import__("wave")),
    }
    rest = {
        "isolation": msgspec.to_builtins(held.report()),
        "tries": told,
        "may": may,
        "capabilities": int(status["CapEff"], 16),
        "no_new_privs": int(status["NoNewPrivs"]),
        "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
    }
    os.write(out, json.dumps(rest).encode())
    os.close(out)
    DEATHS[setting.die]()
    os._exit(0)


def main() -> None:
    """Do what a template does for a worker, and wait for it."""
    setting = msgspec.json.decode(sys.argv[1], type=Setting)
    wanted = Plan()
    for layer in confine.LAYERS:
        if layer in setting.off or (setting.only is not None and layer not in setting.only):
            wanted = wanted.without(layer, "switched off")
    plan = Trial(wanted).result()
    # Its own environment and memory are worth as much as the daemon's.
    init = template._make_process_namespace(plan)
    told, out = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        be_hostile(plan, setting, out)
    os.close(out)
    with os.fdopen(told, "rb") as words:
        text = words.read()
    _, status = os.waitpid(pid, 0)
    if init:
        os.kill(init, signal.SIGKILL)
    result = {"told": json.loads(text or b"null"), "status": os.waitstatus_to_exitcode(status)}
    os.write(1, json.dumps(result).encode())


if __name__ == "__main__":
    main()
