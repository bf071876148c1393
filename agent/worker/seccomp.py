"""A seccomp filter for a process that holds a model: what it never needs fails with EPERM.

A deny list, so that a runtime's next version still loads; threads work, processes do not. How a
filter is read stands in seccomp(2); it is classic BPF over `struct seccomp_data`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import NamedTuple

EPERM, ENOSYS = 1, 38
ERRNO, ALLOW = 0x00050000, 0x7FFF0000
_SET_MODE_FILTER, _TSYNC = 1, 1
_CLONE_THREAD = 0x00010000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# struct seccomp_data: i32 number, u32 architecture, u64 instruction pointer, u64 arguments[6].
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# The x32 calls of x86_64 are the same calls under other numbers.
_X32_BIT = 0x40000000

# Numbers on x86_64 and aarch64 (asm/unistd_64.h, asm-generic/unistd.h); None: not there.
DENIED: dict[str, tuple[int, int | None]] = {
    # sockets
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # programs and processes
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    # programmable parts of the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # keys, shared memory, files by handle
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "open_by_handle_at": (304, 265),
    # content, name, owner, mode, time and labels of files
    "creat": (85, None),
    "truncate": (76, 45),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    # the machine as a whole
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "acct": (163, 89),
    "personality": (135, 92),
    "iopl": (172, None),
    "ioperm": (173, None),
}
# glibc falls back from these, whose arguments no filter can see, to clone and openat.
ABSENT: dict[str, tuple[int, int | None]] = {"clone3": (435, 435), "openat2": (437, 437)}


class Condition(NamedTuple):
    """A call that one of its arguments decides on."""

    numbers: tuple[int, int | None]
    argument: int
    # Holds where the argument has one of these bits, or is this value; None: this process's id.
    test: int
    value: int | None
    allowed_if_it_holds: bool


CONDITIONS = {
    # Reading only.
    "open": Condition((2, None), 1, JUMP_SET, _WRITING, False),
    "openat": Condition((257, 56), 2, JUMP_SET, _WRITING, False),
    # Threads only.
    "clone": Condition((56, 220), 0, JUMP_SET, _CLONE_THREAD, True),
    # Itself only: `abort` needs it.
    "tgkill": Condition((234, 131), 0, JUMP_EQUAL, None, True),
    # Itself only, as 0: the daemon is of the same user, whose limits the kernel would let it set.
    "prlimit64": Condition((302, 261), 0, JUMP_EQUAL, 0, True),
    "sched_setaffinity": Condition((203, 122), 0, JUMP_EQUAL, 0, True),
}


class Architecture(NamedTuple):
    """Which column of the tables holds, AUDIT_ARCH_…, and the number of seccomp itself."""

    column: int
    audit: int
    seccomp: int


ARCHITECTURES = {
    "x86_64": Architecture(0, 0xC000003E, 317),
    "aarch64": Architecture(1, 0xC00000B7, 277),
}


def deny() -> str:
    """Install the filter on this process; nothing undoes it. `no_new_privs` must be set before.

    Returns:
        Nothing on success, else why there is none.
    """
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None or struct.calcsize("P") != 8:
        return f"no table of system calls for {platform.machine()}"
    program = compile_filter(architecture, os.getpid())
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: u16 number of instructions, pointer to them.
    head = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.syscall(
        ctypes.c_long(architecture.seccomp),
        ctypes.c_long(_SET_MODE_FILTER),
        ctypes.c_long(_TSYNC),
        ctypes.byref(head),
    )
    return "" if done == 0 else os.strerror(ctypes.get_errno()) if done < 0 else "threads differ"


def compile_filter(architecture: Architecture, own_pid: int) -> bytes:
    """Return the filter, 8 bytes an instruction."""
    column = architecture.column
    # operation, value, where to go if it holds, where if not; +n: so many instructions further.
    code: list[tuple[int, int, str, str]] = [
        (LOAD, _ARCHITECTURE, "", ""),
        (JUMP_EQUAL, architecture.audit, "", "denied"),
        (LOAD, _NUMBER, "", ""),
        (JUMP_GREATER_EQUAL, _X32_BIT, "denied", ""),
    ]
    for condition in CONDITIONS.values():
        number = condition.numbers[column]
        if number is not None:
            value = own_pid if condition.value is None else condition.value
            ends = ("allowed", "denied") if condition.allowed_if_it_holds else ("denied", "allowed")
            code.append((JUMP_EQUAL, number, "", "+2"))
            code.append((LOAD, _ARGUMENTS + 8 * condition.argument, "", ""))
            code.append((condition.test, value, *ends))
    for calls, label in ((ABSENT, "absent"), (DENIED, "denied")):
        code += [(JUMP_EQUAL, n[column] or 0, label, "") for n in calls.values() if n[column]]
    labels = {"allowed": len(code), "denied": len(code) + 1, "absent": len(code) + 2}
    code += [(RETURN, value, "", "") for value in (ALLOW, ERRNO | EPERM, ERRNO | ENOSYS)]
    return b"".join(
        struct.pack("<HBBI", operation, _jump(then, at, labels), _jump(other, at, labels), value)
        for at, (operation, value, then, other) in enumerate(code)
    )


def _jump(label: str, at: int, labels: dict[str, int]) -> int:
    if label.startswith("+"):
        return int(label)
    return labels[label] - at - 1 if label else 0
