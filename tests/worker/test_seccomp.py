"""The filter as bytes: what it decides on each machine, and that its numbers are the kernel's."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest

from agent.worker import seccomp

ALLOW = seccomp.ALLOW
EPERM = seccomp.ERRNO | seccomp.EPERM
ENOSYS = seccomp.ERRNO | seccomp.ENOSYS
PID = 4711
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    # The table that aarch64 uses as it is.
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def decide(
    machine: str,
    number: int,
    *arguments: int,
    audit: int | None = None,
    permitted: tuple[str, ...] = (),
    loaded: bool = False,
) -> int:
    """Run the filter as the kernel would; return the action.

    Args:
        machine: Of `ARCHITECTURES`.
        number: Of the call.
        arguments: Of the call, from the first.
        audit: In place of the machine's own.
        permitted: What a policy permits.
        loaded: Run the filter for the time after the load.
    """
    architecture = seccomp.ARCHITECTURES[machine]
    if loaded:
        program = seccomp.compile_allow_list(architecture)
    else:
        program = seccomp.compile_deny_list(architecture, PID, permitted)
    code = list(struct.iter_unpack("<HBBI", program))
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, audit or architecture.audit, 0, *padded)
    accumulator = at = 0
    while True:
        operation, then, other, value = code[at]
        at += 1
        if operation == seccomp.RETURN:
            return int(value)
        if operation == seccomp.LOAD:
            (accumulator,) = struct.unpack_from("<I", data, value)
            continue
        if operation == seccomp.AND:
            accumulator &= value
            continue
        holds = {
            seccomp.JUMP_EQUAL: accumulator == value,
            seccomp.JUMP_GREATER_EQUAL: accumulator >= value,
        }[operation]
        at += then if holds else other


def number(machine: str, name: str) -> int | None:
    column = seccomp.ARCHITECTURES[machine].column
    condition = seccomp.CONDITIONS.get(name)
    listed = seccomp.DENIED | seccomp.ABSENT | seccomp.ALLOWED
    return (condition.numbers if condition else listed[name])[column]


@pytest.fixture(params=seccomp.ARCHITECTURES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_listed_call_fails(machine: str) -> None:
    for name in seccomp.DENIED:
        listed = number(machine, name)
        if listed is not None:
            assert decide(machine, listed) == EPERM, name


def test_what_hides_its_arguments_is_not_there(machine: str) -> None:
    for name in seccomp.ABSENT:
        listed = number(machine, name)
        assert listed is not None
        assert decide(machine, listed) == ENOSYS


@pytest.mark.parametrize(
    ("machine", "number"),
    # read write close mmap futex recvfrom sendto exit_group
    [("x86_64", n) for n in (0, 1, 3, 9, 202, 45, 44, 231)]
    + [("aarch64", n) for n in (63, 64, 57, 222, 98, 207, 206, 94)],
)
def test_what_a_run_needs_passes(machine: str, number: int) -> None:
    assert decide(machine, number) == ALLOW


def test_after_the_load_only_what_is_listed_passes(machine: str) -> None:
    column = seccomp.ARCHITECTURES[machine].column
    listed = {numbers[column] for numbers in seccomp.ALLOWED.values()}
    absent = {numbers[column] for numbers in seccomp.ABSENT.values()}
    for call in range(600):
        wanted = ALLOW if call in listed else ENOSYS if call in absent else EPERM
        assert decide(machine, call, loaded=True) == wanted, call
    assert decide(machine, 0, audit=0x40000003, loaded=True) == EPERM


def test_nothing_is_both_needed_and_denied() -> None:
    assert seccomp.ALLOWED.keys().isdisjoint(seccomp.DENIED)
    for name in seccomp.ALLOWED.keys() & seccomp.CONDITIONS.keys():
        assert seccomp.ALLOWED[name] == seccomp.CONDITIONS[name].numbers


def test_a_policy_lifts_single_denials(machine: str) -> None:
    openat, memfd = number(machine, "openat"), number(machine, "memfd_create")
    assert openat is not None
    assert memfd is not None
    assert decide(machine, openat, 0, 0, os.O_RDWR, permitted=("openat",)) == ALLOW
    assert decide(machine, memfd, permitted=("memfd_create",)) == ALLOW
    assert decide(machine, memfd, permitted=("openat",)) == EPERM


def test_a_netlink_socket_may_be_permitted_without_the_others(machine: str) -> None:
    call = number(machine, "socket")
    assert call is not None
    assert decide(machine, call, 16) == EPERM
    assert decide(machine, call, 16, permitted=(seccomp.NETLINK,)) == ALLOW
    assert decide(machine, call, 2, permitted=(seccomp.NETLINK,)) == EPERM


def test_memory_that_no_limit_counts_cannot_be_mapped(machine: str) -> None:
    call = number(machine, "mmap")
    assert call is not None
    private, shared, anonymous, grows, stack = 0x02, 0x01, 0x20, 0x100, 0x20000
    for flags in (private, private | anonymous, shared, private | anonymous | stack):
        assert decide(machine, call, 0, 4096, 3, flags) == ALLOW
    for flags in (shared | anonymous, 3 | anonymous, private | anonymous | grows):
        assert decide(machine, call, 0, 4096, 3, flags) == EPERM


def test_of_its_attributes_a_process_sets_names_only(machine: str) -> None:
    call = number(machine, "prctl")
    assert call is not None
    assert decide(machine, call, 15) == ALLOW
    for option in (1, 4, 8, 22, 36):
        assert decide(machine, call, option) == EPERM


def test_files_open_for_reading_only(machine: str) -> None:
    openat = number(machine, "openat")
    assert openat is not None
    assert decide(machine, openat, 0, 0, os.O_RDONLY | os.O_CLOEXEC) == ALLOW
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        assert decide(machine, openat, 0, 0, flags) == EPERM


def test_clone_makes_threads_only(machine: str) -> None:
    clone = number(machine, "clone")
    assert clone is not None
    assert decide(machine, clone, 0x003D0F00) == ALLOW  # what pthread_create asks for
    assert decide(machine, clone, 0x01200011) == EPERM  # what fork asks for


def test_a_signal_goes_to_the_process_itself_only(machine: str) -> None:
    tgkill = number(machine, "tgkill")
    assert tgkill is not None
    assert decide(machine, tgkill, PID, PID, 6) == ALLOW
    assert decide(machine, tgkill, PID + 1, PID + 1, 6) == EPERM


@pytest.mark.parametrize("call", ["prlimit64", "sched_setaffinity"])
def test_limits_and_processors_are_those_of_the_process_itself(machine: str, call: str) -> None:
    numbered = number(machine, call)
    assert numbered is not None
    assert decide(machine, numbered, 0) == ALLOW
    assert decide(machine, numbered, PID + 1) == EPERM


def test_calls_of_another_architecture_fail(machine: str) -> None:
    assert decide(machine, 0, audit=0x40000003) == EPERM


def test_the_x32_numbers_of_the_same_calls_fail() -> None:
    assert decide("x86_64", 0x40000000 + 45) == EPERM


def test_the_numbers_are_the_kernels(machine: str) -> None:
    header = HEADERS[machine]
    if not header.is_file():
        pytest.skip(f"{header} is not here (package linux-libc-dev)")
    defined = {
        name: int(value)
        for name, value in re.findall(
            r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)", header.read_text(encoding="utf-8")
        )
    }
    defined |= {"newfstatat": defined.get("fstatat", defined.get("newfstatat", 0))}
    for name in (*seccomp.DENIED, *seccomp.ABSENT, *seccomp.CONDITIONS, *seccomp.ALLOWED):
        if name in defined:
            assert number(machine, name) == defined[name], name
        else:
            # Absent there, or newer than the header.
            assert number(machine, name) in (None, 443, 447, 448, 452), name
