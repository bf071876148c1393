"""The segment log: what was appended comes back, whatever happened to the rest."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import StoreError
from agent.store.files import Files
from agent.store.journal import HEADER, Journal, JournalReader, Record, encode, scan
from tests.store.recorder import FailingFiles, QuickFiles, RecordingFiles

SEGMENT = 4096


def journal_at(folder: Path, files: Files | None = None) -> tuple[Journal, list[Record]]:
    """A journal, and what it recovers."""
    (files or QuickFiles()).make_folder(folder)
    journal = Journal(files or QuickFiles(), folder, "a-", SEGMENT)
    return journal, list(journal.recover())


def fill(journal: Journal, sequences: range, size: int = 100) -> list[Record]:
    records = [Record(sequence, bytes([sequence % 251 + 1]) * size) for sequence in sequences]
    for record in records:
        if not journal.fits(len(record.payload)):
            journal.commit()
            journal.start_segment()
        journal.append(record.sequence, record.payload)
    journal.commit()
    return records


@given(
    payloads=st.lists(st.binary(min_size=1, max_size=50), max_size=20), padding=st.integers(0, 99)
)
@settings(max_examples=100, deadline=None)
def test_records_round_trip_and_zeros_end_them(payloads: list[bytes], padding: int) -> None:
    records = [Record(number * 3 + 1, payload) for number, payload in enumerate(payloads)]
    data = b"".join(encode(record.sequence, record.payload) for record in records)
    assert [record for _, record in scan(data + bytes(padding), 0)] == records
    assert [record for _, record in scan(data, 4)] == [r for r in records if r.sequence > 4]


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_damage_costs_only_the_records_it_touches(data: st.DataObject) -> None:
    payloads = data.draw(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=12))
    records = [Record(number + 1, payload) for number, payload in enumerate(payloads)]
    stored = [encode(record.sequence, record.payload) for record in records]
    whole = bytearray(b"".join(stored) + bytes(64))
    start = data.draw(st.integers(0, len(whole) - 65))
    damage = data.draw(st.binary(min_size=1, max_size=30))
    before = bytes(whole)
    whole[start : start + len(damage)] = damage
    found = [record for _, record in scan(bytes(whole), 0)]
    at, untouched = 0, []
    for record, piece in zip(records, stored, strict=True):
        if whole[at : at + len(piece)] == before[at : at + len(piece)]:
            untouched.append(record)
        at += len(piece)
    assert set(untouched) <= set(found) <= set(records)


@given(data=st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_scanned_without_an_error(data: bytes) -> None:
    assert all(record.payload for _, record in scan(data, 0))


def test_records_come_back_over_segments_and_restarts(tmp_path: Path) -> None:
    journal, _ = journal_at(tmp_path)
    records = fill(journal, range(1, 200))
    again, found = journal_at(tmp_path)
    assert found == records
    assert len(again.segments) == 6
    assert again.damaged_segments == 0
    records += fill(again, range(200, 210))
    assert journal_at(tmp_path)[1] == records


def test_segments_are_filled_with_zeros_ahead(tmp_path: Path) -> None:
    journal, _ = journal_at(tmp_path)
    fill(journal, range(1, 3))
    path = tmp_path / "a-00000001.log"
    assert path.stat().st_size == SEGMENT
    assert path.stat().st_blocks * 512 >= SEGMENT
    assert path.read_bytes().endswith(bytes(1000))


@pytest.mark.parametrize("cut", range(1, 130, 9))
def test_a_torn_tail_is_cut_off_and_written_over(tmp_path: Path, cut: int) -> None:
    journal, _ = journal_at(tmp_path)
    records = fill(journal, range(1, 5))
    path = tmp_path / "a-00000001.log"
    data = path.read_bytes()
    torn = encode(5, b"e" * 150)[:cut] + b"\xff" * 20 + encode(6, b"old")[: cut // 8]
    end = journal.segments[-1].end
    path.write_bytes(data[:end] + torn + data[end + len(torn) :])
    again, found = journal_at(tmp_path)
    assert found == records
    records += fill(again, range(5, 6), size=8)
    assert path.read_bytes()[again.segments[-1].end :].strip(b"\0") == b""
    assert journal_at(tmp_path)[1] == records


def test_a_segment_shorter_than_planned_is_filled_up(tmp_path: Path) -> None:
    journal, _ = journal_at(tmp_path)
    records = fill(journal, range(1, 3))
    path = tmp_path / "a-00000001.log"
    path.write_bytes(path.read_bytes()[: journal.segments[0].end])
    again, _ = journal_at(tmp_path)
    records += fill(again, range(3, 4))
    assert path.stat().st_size == SEGMENT
    assert journal_at(tmp_path)[1] == records


def test_a_damaged_record_in_an_older_segment_is_passed_over_and_counted(tmp_path: Path) -> None:
    journal, _ = journal_at(tmp_path)
    records = fill(journal, range(1, 100))
    path = tmp_path / "a-00000002.log"
    data = bytearray(path.read_bytes())
    data[HEADER.size + 3] ^= 1
    path.write_bytes(data)
    again, found = journal_at(tmp_path)
    assert found == [record for record in records if record.sequence != 35]
    assert again.damaged_segments == 1


def test_a_segment_that_is_gone_or_unreadable_costs_only_itself(tmp_path: Path) -> None:
    class Unreadable(QuickFiles):
        def read_range(self, path: Path, offset: int, size: int) -> bytes | None:
            if path.name == "a-00000002.log":
                raise StoreError("input/output error")
            return super().read_range(path, offset, size)

    journal, _ = journal_at(tmp_path)
    records = fill(journal, range(1, 100))
    kept = [record for record in records if not 35 <= record.sequence <= 68]
    again, found = journal_at(tmp_path, Unreadable())
    assert found == kept
    assert again.damaged_segments == 1
    (tmp_path / "a-00000002.log").unlink()
    assert journal_at(tmp_path)[1] == kept


def test_names_of_others_are_left_alone(tmp_path: Path) -> None:
    for name in ("b-00000001.log", "a-1.log", "ledger"):
        (tmp_path / name).write_bytes(encode(1, b"other"))
    assert journal_at(tmp_path)[1] == []


def test_a_recycled_segment_holds_nothing_of_its_past(tmp_path: Path) -> None:
    journal, _ = journal_at(tmp_path)
    fill(journal, range(1, 60))
    oldest = journal.detach(journal.segments[0])
    journal.start_segment(oldest)
    assert journal_at(tmp_path)[1][-1].sequence == 59
    fill(journal, range(60, 61))
    again, found = journal_at(tmp_path)
    assert [segment.number for segment in again.segments] == [2, 3]
    assert [record.sequence for record in found] == list(range(35, 61))


def test_a_reader_follows_what_is_committed_and_only_that(tmp_path: Path) -> None:
    journal, _ = journal_at(tmp_path)
    reader = JournalReader(journal, 2)
    assert reader.next() is None
    fill(journal, range(1, 5))
    assert [record.sequence for record in iter(reader.next, None)] == [3, 4]
    journal.append(5, b"e")
    assert reader.next() is None
    journal.commit()
    assert reader.next() == Record(5, b"e")
    fill(journal, range(6, 200))
    for _ in range(3):
        gone = journal.segments[0].last
        journal.remove(journal.segments[0])
    assert [record.sequence for record in iter(reader.next, None)] == list(range(gone + 1, 200))


def test_a_failed_flush_gives_the_segment_up(tmp_path: Path) -> None:
    files = FailingFiles(0)
    journal, _ = journal_at(tmp_path, files)
    records = fill(journal, range(1, 3))
    journal.append(3, b"lost")
    files.fail_next("sync_data", errno.EIO)
    with pytest.raises(StoreError):
        journal.commit()
    assert not journal.fits(1)
    assert list(journal.records(journal.segments[0])) == records
    journal.start_segment()
    journal.append(3, b"again")
    journal.commit()
    assert list(iter(JournalReader(journal, 2).next, None)) == [Record(3, b"again")]


def test_committed_records_survive_a_power_cut_at_any_point(tmp_path: Path) -> None:
    recorder = RecordingFiles(tmp_path / "live")
    journal, _ = journal_at(tmp_path / "live", recorder)
    for sequence in range(1, 13):
        record = Record(sequence, bytes([sequence]) * 700)
        if not journal.fits(700):
            journal.commit()
            if len(journal.segments) == 2:
                recorder.mark(("dropped", journal.segments[0].last))
            recycled = journal.detach(journal.segments[0]) if len(journal.segments) > 1 else None
            journal.start_segment(recycled)
        journal.append(sequence, record.payload)
        if sequence % 2 == 0:
            journal.commit()
            recorder.mark(("committed", sequence))
    total = 0
    for crash in recorder.crashes(combinations=500):
        crash.restore(tmp_path / "crash")
        total += 1
        marks = [mark for mark in crash.marks if isinstance(mark, tuple)]
        dropped = max((at for what, at in marks if what == "dropped"), default=0)
        committed = max((at for what, at in marks if what == "committed"), default=0)
        again, found = journal_at(tmp_path / "crash")
        sequences = [record.sequence for record in found]
        assert set(sequences) >= set(range(dropped + 1, committed + 1))
        assert all(record.payload == bytes([record.sequence]) * 700 for record in found)
        more = fill(again, range(100, 110))
        assert journal_at(tmp_path / "crash")[1] == found + more
    assert total > 60
