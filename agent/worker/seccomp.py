"""Seccomp filters for a process that holds a model: what it does not need fails with EPERM.

Before the load a deny list, so that a runtime's next version still loads; threads work, processes
do not. After it, on top, a list of what may be called at all. How a filter is read stands in
seccomp(2); it is classic BPF over `struct seccomp_data`.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Collection
from typing import NamedTuple

from agent.worker.kernel import LayerUnavailable, machine, syscall

EPERM, ENOSYS = 1, 38
ERRNO, ALLOW = 0x00050000, 0x7FFF0000
_SET_MODE_FILTER, _TSYNC = 1, 1
_CLONE_THREAD = 0x00010000
_MAP_SHARED, _MAP_ANONYMOUS, _MAP_GROWSDOWN = 0x01, 0x20, 0x100
_AF_NETLINK = 16
# Of a thread: its name, the name of a mapping; of the process: what can only be asked.
_PRCTL = (15, 16, 0x53564D41, 2, 3, 39)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# struct seccomp_data: i32 number, u32 architecture, u64 instruction pointer, u64 arguments[6].
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
LOAD, AND, JUMP_EQUAL, JUMP_GREATER_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALL_BITS = 0xFFFFFFFF
# The x32 calls of x86_64 are the same calls under other numbers.
_X32_BIT = 0x40000000

Numbers = tuple[int, int | None]

# Numbers on x86_64 and aarch64 (asm/unistd_64.h, asm-generic/unistd.h); None: not there.
DENIED: dict[str, Numbers] = {
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
    "process_mrelease": (448, 448),
    # The same user's processes would obey these.
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "setpgid": (109, 154),
    "setsid": (112, 157),
    # ids and rights
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "setgroups": (116, 159),
    "capset": (126, 91),
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
    "memfd_secret": (447, 447),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
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
    "syslog": (103, 116),
    "modify_ldt": (154, None),
    "iopl": (172, None),
    "ioperm": (173, None),
}
# glibc falls back from these, whose arguments no filter can see, to clone and openat.
ABSENT: dict[str, Numbers] = {"clone3": (435, 435), "openat2": (437, 437)}


class Condition(NamedTuple):
    """A call that one of its arguments decides on.

    Attributes:
        numbers: As in the tables.
        argument: Which one.
        tests: Bits and value of each test; one holds where the argument has this value in these
            bits. The value None: this process's id.
        allowed: What becomes of the call where a test holds; otherwise the opposite.
    """

    numbers: Numbers
    argument: int
    tests: tuple[tuple[int, int | None], ...]
    allowed: bool


_ITSELF = ((_ALL_BITS, 0), (_ALL_BITS, None))
CONDITIONS = {
    # Reading only.
    "open": Condition((2, None), 1, ((_WRITING, 0),), True),
    "openat": Condition((257, 56), 2, ((_WRITING, 0),), True),
    # Threads only.
    "clone": Condition((56, 220), 0, ((_CLONE_THREAD, _CLONE_THREAD),), True),
    # Itself only: `abort` needs it.
    "tgkill": Condition((234, 131), 0, ((_ALL_BITS, None),), True),
    # Limits and processors of other processes of the same user could be changed too.
    "prlimit64": Condition((302, 261), 0, _ITSELF, True),
    "sched_setaffinity": Condition((203, 122), 0, _ITSELF, True),
    # RLIMIT_DATA counts neither shared memory nor what grows like a stack.
    "mmap": Condition(
        *((9, 222), 3),
        (
            (_MAP_SHARED | _MAP_ANONYMOUS, _MAP_SHARED | _MAP_ANONYMOUS),
            (_MAP_GROWSDOWN, _MAP_GROWSDOWN),
        ),
        False,
    ),
    # Not to outlive its parent, and not to be dumpable again.
    "prctl": Condition((157, 167), 0, tuple((_ALL_BITS, value) for value in _PRCTL), True),
}
# What a policy can have in place of an entry above of which it lifts the denial.
NETLINK = "socket (netlink)"
_NETLINK_ONLY = Condition(DENIED["socket"], 0, ((_ALL_BITS, _AF_NETLINK),), True)

# What pools of threads, memory and files to read take, from loading a model to answering: seen with
# ONNX Runtime and LiteRT, and their near relatives. Conditions hold beside it.
ALLOWED: dict[str, Numbers] = {
    # the stream, and files to read
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "recvfrom": (45, 207),
    "recvmsg": (47, 212),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "shutdown": (48, 210),
    "close": (3, 57),
    "open": (2, None),
    "openat": (257, 56),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "lseek": (8, 62),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "fcntl": (72, 25),
    "fadvise64": (221, 223),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    # memory
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "brk": (12, 214),
    # threads
    "clone": (56, 220),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "set_tid_address": (218, 96),
    "arch_prctl": (158, None),
    "prctl": (157, 167),
    "membarrier": (324, 283),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "sched_setaffinity": (203, 122),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "getcpu": (309, 168),
    "gettid": (186, 178),
    "getpid": (39, 172),
    "exit": (60, 93),
    "exit_group": (231, 94),
    # signals to itself
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "tgkill": (234, 131),
    "restart_syscall": (219, 128),
    # time, chance and facts
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "getrandom": (318, 278),
    "getrusage": (98, 165),
    "prlimit64": (302, 261),
    "getrlimit": (97, 163),
    "setrlimit": (160, 164),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
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


_Code = list[tuple[int, int, str, str]]
_LOAD_NUMBER = (LOAD, _NUMBER, "", "")


def deny(permitted: Collection[str] = ()) -> None:
    """Deny this process what no model needs; nothing undoes it. `no_new_privs` must be set.

    Args:
        permitted: Names of the tables that are not denied.

    Raises:
        LayerUnavailable: There is no filter.
    """
    _install(compile_deny_list(_architecture(), os.getpid(), permitted))


def allow_only_known() -> None:
    """Let this process call nothing but what is in `ALLOWED`, on top of what is denied already.

    Raises:
        LayerUnavailable: There is no filter.
    """
    _install(compile_allow_list(_architecture()))


def _architecture() -> Architecture:
    architecture = ARCHITECTURES.get(machine())
    if architecture is None:
        raise LayerUnavailable("syscalls", f"no table of system calls for {machine()}")
    return architecture


def _install(program: bytes) -> None:
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: u16 number of instructions, pointer to them.
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    number = _architecture().seccomp
    try:
        left_out = syscall(number, "seccomp", _SET_MODE_FILTER, _TSYNC, head)
    except OSError as error:
        raise LayerUnavailable("syscalls", error.strerror or str(error)) from None
    if left_out:
        raise LayerUnavailable("syscalls", "seccomp: the threads have different filters")


def compile_deny_list(
    architecture: Architecture, own_pid: int, permitted: Collection[str] = ()
) -> bytes:
    """Return the filter for the time of the load, 8 bytes an instruction."""
    column = architecture.column
    conditions = {name: one for name, one in CONDITIONS.items() if name not in permitted}
    denied = {name: numbers for name, numbers in DENIED.items() if name not in permitted}
    if NETLINK in permitted:
        conditions["socket"] = _NETLINK_ONLY
    code = _prologue(architecture)
    for condition in conditions.values():
        code += _decide(condition, column, own_pid)
    code += _each(ABSENT, column, "absent") + _each(denied, column, "denied")
    return _assemble(code, otherwise="allowed")


def compile_allow_list(architecture: Architecture) -> bytes:
    """Return the filter for the time after the load, 8 bytes an instruction."""
    column = architecture.column
    code = _prologue(architecture)
    # Of two filters that answer with an error, the newer one's error counts.
    code += _each(ABSENT, column, "absent") + _each(ALLOWED, column, "allowed")
    return _assemble(code, otherwise="denied")


def _prologue(architecture: Architecture) -> _Code:
    # operation, value, where to go if it holds, where if not; +n: so many instructions further.
    return [
        (LOAD, _ARCHITECTURE, "", ""),
        (JUMP_EQUAL, architecture.audit, "", "denied"),
        _LOAD_NUMBER,
        (JUMP_GREATER_EQUAL, _X32_BIT, "denied", ""),
    ]


def _each(calls: dict[str, Numbers], column: int, label: str) -> _Code:
    numbers = (pair[column] for pair in calls.values())
    return [(JUMP_EQUAL, number, label, "") for number in numbers if number is not None]


def _decide(condition: Condition, column: int, own_pid: int) -> _Code:
    number = condition.numbers[column]
    if number is None:
        return []
    holds, fails = ("allowed", "denied") if condition.allowed else ("denied", "allowed")
    tests: _Code = []
    for bits, value in condition.tests:
        tests.append((LOAD, _ARGUMENTS + 8 * condition.argument, "", ""))
        if bits != _ALL_BITS:
            tests.append((AND, bits, "", ""))
        tests.append((JUMP_EQUAL, own_pid if value is None else value, holds, ""))
    operation, value, _, _ = tests[-1]
    tests[-1] = (operation, value, holds, fails)
    return [(JUMP_EQUAL, number, "", f"+{len(tests)}"), *tests]


def _assemble(code: _Code, otherwise: str) -> bytes:
    actions = {"allowed": ALLOW, "denied": ERRNO | EPERM, "absent": ERRNO | ENOSYS}
    # What no instruction has decided falls through to the first.
    order = sorted(actions, key=lambda label: label != otherwise)
    labels = {label: len(code) + place for place, label in enumerate(order)}
    whole = [*code, *((RETURN, actions[label], "", "") for label in order)]
    return b"".join(
        struct.pack("<HBBI", operation, _jump(then, at, labels), _jump(other, at, labels), value)
        for at, (operation, value, then, other) in enumerate(whole)
    )


def _jump(label: str, at: int, labels: dict[str, int]) -> int:
    if label.startswith("+"):
        return int(label)
    return labels[label] - at - 1 if label else 0
