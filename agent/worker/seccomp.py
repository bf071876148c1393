"""A seccomp filter for a process that holds a model: what it never needs fails with EPERM.

A deny list, so that a runtime's next version still loads; threads work, processes do not. Numbers
are of the kernel's tables `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/
unistd.h` (aarch64); from 424 on they are the same everywhere.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import NamedTuple

EPERM, ENOSYS = 1, 38
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000
_SET_MODE_FILTER, _TSYNC = 1, 1
_CLONE_THREAD = 0x00010000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# struct seccomp_data: i32 nr, u32 arch, u64 instruction pointer, u64 args[6].
_NUMBER, _ARCH = 0, 4
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# The x32 calls of x86_64 are the same calls under other numbers.
_X32_BIT = 0x40000000

# pidfd_send_signal, io_uring_{setup,enter,register}, open_tree, move_mount, fsopen, fsconfig,
# fsmount, fspick, pidfd_open, pidfd_getfd, mount_setattr, quotactl_fd, fchmodat2.
_COMMON = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 438, 442, 443, 452)
_CLONE3, _OPENAT2 = 435, 437


class Architecture(NamedTuple):
    """The system calls of one kind of machine. `denied` fail always; of the others, clone may make
    threads only, open and openat read only, tgkill signals this process only."""

    audit: int
    seccomp: int
    denied: tuple[int, ...]
    clone: int
    openat: int
    tgkill: int
    open: int | None = None


# socket socketpair connect bind listen accept accept4 · execve execveat fork vfork · ptrace
# process_vm_readv process_vm_writev kill tkill rt_sigqueueinfo rt_tgsigqueueinfo · unshare setns
# mount umount2 pivot_root chroot · bpf perf_event_open userfaultfd · add_key request_key keyctl ·
# shmget semget msgget mq_open memfd_create open_by_handle_at · truncate creat and everything that
# makes, renames, links, removes, owns, dates or labels a file · modules, kexec, reboot, swap,
# clocks, names, quotas, accounting, personality, port I/O.
ARCHITECTURES = {
    "x86_64": Architecture(
        audit=0xC000003E,
        seccomp=317,
        denied=(
            *(41, 53, 42, 49, 50, 43, 288),
            *(59, 322, 57, 58),
            *(101, 310, 311, 62, 200, 129, 297),
            *(272, 308, 165, 166, 155, 161),
            *(321, 298, 323),
            *(248, 249, 250),
            *(29, 64, 68, 240, 319, 304),
            *(76, 85, 82, 264, 316, 83, 258, 84, 87, 263, 86, 265, 88, 266, 133, 259),
            *(90, 91, 268, 92, 93, 94, 260, 132, 235, 261, 280),
            *(188, 189, 190, 197, 198, 199),
            *(175, 313, 176, 246, 320, 169, 167, 168, 164, 227, 159, 305, 170, 171, 179, 163),
            *(135, 172, 173),
        ),
        clone=56,
        openat=257,
        tgkill=234,
        open=2,
    ),
    "aarch64": Architecture(
        audit=0xC00000B7,
        seccomp=277,
        denied=(
            *(198, 199, 203, 200, 201, 202, 242),
            *(221, 281),
            *(117, 270, 271, 129, 130, 138, 240),
            *(97, 268, 40, 39, 41, 51),
            *(280, 241, 282),
            *(217, 218, 219),
            *(194, 190, 186, 180, 279, 265),
            *(45, 38, 276, 34, 35, 37, 36, 33),
            *(52, 53, 55, 54, 88),
            *(5, 6, 7, 14, 15, 16),
            *(105, 273, 106, 104, 294, 142, 224, 225, 170, 112, 171, 266, 161, 162, 60, 89),
            92,
        ),
        clone=220,
        openat=56,
        tgkill=131,
    ),
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
    """Return the filter as classic BPF, 8 bytes an instruction."""
    body: list[tuple[int, int, str, str]] = []

    def when(number: int, then: str) -> None:
        body.append((_JUMP_EQUAL, number, then, ""))

    def examine(number: int, argument: int, test: int, value: int, then: str, other: str) -> None:
        # Two instructions that only this call reaches: its argument, and what follows from it.
        body.append((_JUMP_EQUAL, number, "", "+2"))
        body.append((_LOAD, 16 + 8 * argument, "", ""))
        body.append((test, value, then, other))

    body.append((_LOAD, _ARCH, "", ""))
    body.append((_JUMP_EQUAL, architecture.audit, "", "denied"))
    body.append((_LOAD, _NUMBER, "", ""))
    body.append((_JUMP_GREATER_EQUAL, _X32_BIT, "denied", ""))
    examine(architecture.openat, 2, _JUMP_SET, _WRITING, "denied", "allowed")
    if architecture.open is not None:
        examine(architecture.open, 1, _JUMP_SET, _WRITING, "denied", "allowed")
    examine(architecture.clone, 0, _JUMP_SET, _CLONE_THREAD, "allowed", "denied")
    examine(architecture.tgkill, 0, _JUMP_EQUAL, own_pid, "allowed", "denied")
    # glibc falls back from these to clone and openat, whose arguments a filter can see.
    when(_CLONE3, "absent")
    when(_OPENAT2, "absent")
    for number in sorted((*architecture.denied, *_COMMON)):
        when(number, "denied")
    body.append((_RETURN, _ALLOW, "", ""))
    labels = {"allowed": len(body) - 1, "denied": len(body), "absent": len(body) + 1}
    body.append((_RETURN, _ERRNO | EPERM, "", ""))
    body.append((_RETURN, _ERRNO | ENOSYS, "", ""))
    return b"".join(
        struct.pack("<HBBI", code, _offset(then, at, labels), _offset(other, at, labels), value)
        for at, (code, value, then, other) in enumerate(body)
    )


def _offset(label: str, at: int, labels: dict[str, int]) -> int:
    if label.startswith("+"):
        return int(label)
    return labels[label] - at - 1 if label else 0
