"""The evidence on disk: what was acknowledged stays, in one chain, whatever the power does."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from agent.control.evidence import Entry, Head, digest_of, end_line, read_line, verify
from agent.errors import NoSpace, StoreError
from agent.store.evidence import EvidenceLog
from agent.store.files import Files
from tests.store.recorder import FailingFiles, QuickFiles, RecordingFiles

AT = "2026-11-24T10:00:00.000Z"
# Three lines a file.
FILE_BYTES = 900


def log_at(folder: Path, files: Files | None = None) -> EvidenceLog:
    return EvidenceLog(files or QuickFiles(), folder, FILE_BYTES, files_max=2)


def entry(number: int) -> Entry:
    return Entry("activated", f"slot-{number}", "sha256:" + "a" * 64)


def slots(log: EvidenceLog) -> list[str]:
    found = [read_line(line) for line in log.lines()]
    return [line.what.slot for line in found if line is not None]


def is_whole(log: EvidenceLog) -> bool:
    lines = list(log.lines())
    head, first = Head(), 0
    for data in lines:
        line = read_line(data)
        assert line is not None
        first = first or line.n
        head = Head(line.n, digest_of(data))
    return verify([line + b"\n" for line in (*lines, end_line(first, head))]).ok


def test_lines_go_on_over_starts_and_files_in_one_chain(tmp_path: Path) -> None:
    for number in range(5):
        head = log_at(tmp_path).append([entry(number)], AT)
    assert head.n == 5
    assert slots(log_at(tmp_path)) == [f"slot-{number}" for number in range(5)]
    assert is_whole(log_at(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def test_it_stays_small_by_giving_up_the_oldest_and_the_chain_still_holds(tmp_path: Path) -> None:
    log = log_at(tmp_path)
    log.append([entry(number) for number in range(40)], AT)
    assert len(list(tmp_path.iterdir())) == 2
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * FILE_BYTES
    assert slots(log)[-1] == "slot-39"
    assert is_whole(log)
    assert log_at(tmp_path).append([entry(40)], AT).n == 41


def test_no_power_cut_loses_or_tears_an_acknowledged_line(tmp_path: Path) -> None:
    recorder = RecordingFiles(tmp_path / "live")
    log = log_at(tmp_path / "live" / "evidence", recorder)
    for number in range(8):
        log.append([entry(number)], AT)
        recorder.mark(number)
    total = 0
    for crash in recorder.crashes(combinations=200):
        total += 1
        crash.restore(tmp_path / "crash")
        again = log_at(tmp_path / "crash" / "evidence")
        again.append([Entry("started")], AT)
        found = slots(again)
        assert found.pop() == ""
        if crash.marks:
            assert f"slot-{crash.marks[-1]}" in found[-2:]
        assert is_whole(again)
    assert total > 30


@pytest.mark.parametrize("tail", [b'{"n":4,"prev":"ab', b"\0" * 200, b'{"n":4,\0\0\0\0\0\0}\n'])
def test_a_torn_last_line_is_cut_off_and_nothing_else(tmp_path: Path, tail: bytes) -> None:
    log_at(tmp_path).append([entry(0), entry(1)], AT)
    path = tmp_path / "00000001.jsonl"
    path.write_bytes(path.read_bytes() + tail)
    assert slots(log_at(tmp_path)) == ["slot-0", "slot-1"]
    log_at(tmp_path).append([entry(2)], AT)
    assert slots(log_at(tmp_path)) == ["slot-0", "slot-1", "slot-2"]
    assert is_whole(log_at(tmp_path))


def test_a_line_altered_on_disk_stays_and_the_chain_tells_of_it(tmp_path: Path) -> None:
    log_at(tmp_path).append([entry(0), entry(1)], AT)
    path = tmp_path / "00000001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"slot-1", b"\xff!"))
    assert log_at(tmp_path).append([entry(2)], AT).n == 3
    lines = [line + b"\n" for line in log_at(tmp_path).lines()]
    assert len(lines) == 3
    assert verify(lines).broken_line == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, 0])
@pytest.mark.parametrize("done", [False, True])
def test_an_error_at_any_call_leaves_a_chain_that_goes_on(
    tmp_path: Path, code: int, done: bool
) -> None:
    at, calls = 0, 1
    while at < calls:
        at += 1
        folder = tmp_path / f"{at}"
        files = FailingFiles(at, code, done=done)
        log = log_at(folder, files)
        for number in range(8):
            try:
                log.append([entry(number)], AT)
            except StoreError:
                files.recover()
                log.append([entry(number)], AT)
        calls = files.count
        assert is_whole(log)
        assert slots(log)[-1] == "slot-7"


def test_a_full_disk_is_told_and_ends_with_the_fault(tmp_path: Path) -> None:
    files = FailingFiles(0)
    log = log_at(tmp_path, files)
    log.append([entry(0)], AT)
    files.fail_next("write", errno.ENOSPC)
    with pytest.raises(NoSpace):
        log.append([entry(1)], AT)
    assert log.append([entry(1)], AT).n == 2
