"""What a tree of processes used is read whole, also of those that have ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from bench import processes

ROLLUP = """\
5570-7ffc ---p 00000000 00:00 0   [rollup]
Rss:               30852 kB
Pss:               20480 kB
Pss_Anon:          18928 kB
"""
SMAPS = """\
55d0c000-55d0e000 r-xp 00002000 fe:00 1234       /usr/bin/some python
Size:                  8 kB
Rss:                   8 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me dw
55d0e000-55d10000 rw-p 00004000 fe:00 1234       /usr/bin/some python
Rss:                   8 kB
Anonymous:             4 kB
7ff00000-7ff90000 rw-p 00000000 00:00 0
Rss:                 400 kB
Anonymous:           400 kB
"""
# Burns CPU in a child that ends, then waits.
PARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "import time\\nend = time.process_time() + 0.3\\n"
    "while time.process_time() < end: pass"])
print("ended", flush=True)
sys.stdin.read()
"""


def test_a_process_name_may_hold_anything() -> None:
    tick = 1 / os.sysconf("SC_CLK_TCK")
    fields = " ".join(str(number) for number in range(3, 53))
    reaped = processes.parse_reaped(f"42 (a) b (c d)) {fields}\n")
    assert reaped == pytest.approx((16 + 17) * tick)


def test_sums_of_memory_are_read_by_name() -> None:
    assert processes.parse_rollup(ROLLUP) == {"Rss": 30852, "Pss": 20480, "Pss_Anon": 18928}


def test_pages_of_files_are_read_without_those_that_were_written() -> None:
    assert processes.parse_files(SMAPS) == {
        ("00002000", "fe:00", "1234", "8192"): 8,
        ("00004000", "fe:00", "1234", "8192"): 4,
    }


def _waiting() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "print(flush=True); input()"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_two_processes_of_one_file_count_it_once() -> None:
    with _waiting() as one, _waiting() as two:
        for process in (one, two):
            assert process.stdout is not None
            process.stdout.readline()
        each = [processes.alone_mb([process.pid]) for process in (one, two)]
        both = processes.alone_mb([one.pid, two.pid])
        assert max(each) < both < sum(each) - 1
        assert processes.pss_mb([one.pid]) <= each[0] + 0.5
        for process in (one, two):
            process.communicate(b"\n")


def test_the_time_of_a_child_that_has_ended_is_not_lost() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        parent.stdout.readline()
        assert processes.tree(parent.pid) == [parent.pid]
        assert processes.cpu_s([parent.pid]) >= 0.3
        parent.stdin.close()


def test_what_runs_now_is_counted_between_two_ticks() -> None:
    before = processes.cpu_s([os.getpid()])
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass
    assert processes.cpu_s([os.getpid()]) - before >= 0.015


def test_a_tree_that_has_ended_is_empty() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert processes.tree(ended.pid) == []
    assert processes.cpu_s([ended.pid]) == 0
