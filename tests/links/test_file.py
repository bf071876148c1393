"""A folder as a link: whatever somebody places there, and whatever the disk does."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.documents.deployment import MAX_DEPLOYMENT_BYTES
from agent.documents.settings import Settings, settings_from
from agent.errors import DocumentError, LinkError
from agent.links import registry
from agent.links.file import FileSettings
from agent.links.file_folder import open_folder, read_inside
from agent.links.file_link import FileLink, Pace
from agent.store.files import Files, Kind
from tests.links.heard import WITHIN_S, Heard

QUICK = Pace(look=0.01, settle=0.01, patience=0.05, report=0.0, lines=0.0, retry=0.01)
# A half written file is never taken for one that will not be finished.
PATIENT = Pace(look=0.01, settle=0.01, patience=3600.0, report=0.0, lines=0.0, retry=0.01)
DOCUMENT = b'{"schema": 1, "deployment": "line-7", "slots": {}}'
LIMIT = MAX_DEPLOYMENT_BYTES


class Moody(Files):
    """A disk that refuses some changes."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses: Callable[[Kind, Path], int] = lambda op, path: 0

    def before(self, op: Kind, path: Path) -> None:
        number = self.refuses(op, path)
        if number:
            raise OSError(number, os.strerror(number))


@asynccontextmanager
async def linked(
    folder: Path,
    *,
    pace: Pace = QUICK,
    disk: Files | None = None,
    report_folder: Path | None = None,
    lines_bytes: int = 1 << 20,
) -> AsyncIterator[tuple[FileLink, Heard]]:
    heard = Heard()
    link = FileLink(
        heard.owner,
        disk or Files(),
        device="press-7",
        folder=folder,
        report_folder=report_folder or folder,
        lines_bytes=lines_bytes,
        pace=pace,
    )
    running = asyncio.ensure_future(link.run())
    try:
        yield link, heard
    finally:
        await asyncio.wait_for(link.stop(), WITHIN_S)
        await asyncio.wait_for(running, WITHIN_S)


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 2 * WITHIN_S))


# -- what is desired ------------------------------------------------------------------------------


def test_a_file_that_is_written_in_place_is_taken_when_it_is_whole(tmp_path: Path) -> None:
    async def story() -> None:
        place = tmp_path / "desired.json"
        with place.open("wb", buffering=0) as file:
            file.write(DOCUMENT[:20])
            async with linked(tmp_path, pace=PATIENT) as (link, heard):
                await heard.phase("connected")
                for _ in range(20):
                    assert not await link._look()
                assert heard.desired == []
                file.write(DOCUMENT[20:])
                await heard.until(lambda: heard.desired == [DOCUMENT])

    play(story)


def test_a_beginning_that_nobody_finishes_is_told_and_what_comes_later_as_well(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        place = tmp_path / "desired.json"
        place.write_bytes(DOCUMENT[:20])
        async with linked(tmp_path) as (_, heard):
            await heard.until(lambda: heard.desired == [DOCUMENT[:20]])
            place.write_bytes(DOCUMENT)
            await heard.until(lambda: heard.desired == [DOCUMENT[:20], DOCUMENT])

    play(story)


def test_a_config_map_is_followed_from_version_to_version(tmp_path: Path) -> None:
    def version(name: str, document: bytes) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "desired.json").write_bytes(document)
        fresh = tmp_path / "..data_tmp"
        fresh.symlink_to(name)
        fresh.replace(tmp_path / "..data")

    async def story() -> None:
        version("..2026_01", b"{}")
        (tmp_path / "desired.json").symlink_to("..data/desired.json")
        async with linked(tmp_path) as (_, heard):
            await heard.until(lambda: heard.desired == [b"{}"])
            version("..2026_02", DOCUMENT)
            await heard.until(lambda: heard.desired == [b"{}", DOCUMENT])
        assert heard.troubles == []

    play(story)


def outside(folder: Path) -> None:
    (folder.parent / "secret").write_text("x")
    (folder / "desired.json").symlink_to("../secret")


def far_away(folder: Path) -> None:
    (folder / "desired.json").symlink_to("/etc/hostname")


def through_a_link(folder: Path) -> None:
    (folder / "way").symlink_to("/etc")
    (folder / "desired.json").symlink_to("way/hostname")


def loop(folder: Path) -> None:
    (folder / "desired.json").symlink_to("other")
    (folder / "other").symlink_to("desired.json")


BAD: list[tuple[Callable[[Path], object], str]] = [
    (outside, "leads out of its folder, to '../secret'"),
    (far_away, "leads out of its folder, to '/etc/hostname'"),
    (through_a_link, "leads out of its folder, to '/etc'"),
    (loop, "more than 8 symbolic links"),
    (lambda f: (f / "desired.json").symlink_to("nothing"), "is a symbolic link to nothing"),
    (lambda f: os.mkfifo(f / "desired.json"), "is no regular file"),
    (lambda f: (f / "desired.json").mkdir(), "is no regular file"),
    (
        lambda f: (f / "desired.json").write_bytes(b" " * (LIMIT + 1)),
        "has 8,193 bytes; a deployment has at most 8,192",
    ),
    (lambda f: f.chmod(0o777), "any user of this device may write to"),
    (lambda f: f.rmdir(), "there is no folder"),
]


@pytest.mark.parametrize(("spoil", "says"), BAD)
def test_what_is_no_file_of_the_folder_is_told_and_does_no_harm(
    tmp_path: Path, spoil: Callable[[Path], object], says: str
) -> None:
    folder = tmp_path / "link"
    folder.mkdir()

    async def story() -> None:
        spoil(folder)
        async with linked(folder) as (_, heard):
            await heard.until(lambda: heard.troubles)
            assert says in str(heard.troubles[0])
            if folder.exists():
                folder.rename(tmp_path / "spoilt")
            folder.mkdir(0o755)
            (folder / "desired.json").write_bytes(DOCUMENT)
            await heard.until(lambda: heard.desired == [DOCUMENT])
            assert heard.troubles[-1] is None
            await heard.phase("connected")

    play(story)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_the_agent_may_not_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "desired.json").write_bytes(DOCUMENT)
    (tmp_path / "desired.json").chmod(0)
    with pytest.raises(LinkError, match="cannot be read: Permission denied"):
        read_inside(tmp_path, "desired.json", LIMIT)


def test_looking_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number, (spoil, _) in enumerate(BAD):
        folder = tmp_path / str(number) / "link"
        folder.mkdir(parents=True)
        spoil(folder)
        with pytest.raises(LinkError):
            read_inside(folder, "desired.json", LIMIT)
    assert read_inside(tmp_path, "desired.json", LIMIT) is None
    os.close(open_folder(tmp_path))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# -- what is written ------------------------------------------------------------------------------


def test_files_of_lines_begin_anew_before_they_grow_too_large(tmp_path: Path) -> None:
    async def story() -> None:
        async with linked(tmp_path, lines_bytes=1000) as (link, heard):
            for number in range(200):
                link.send("events", b'{"n":%d}' % number, heard.on_done(number))
                await heard.until(lambda: len(heard.done) == number + 1)  # noqa: B023

    play(story)
    present, before = tmp_path / "events.jsonl", tmp_path / "events.jsonl.1"
    assert sorted(p.name for p in tmp_path.glob("events*")) == [present.name, before.name]
    assert 0 < present.stat().st_size <= 1000
    assert 900 < before.stat().st_size <= 1000
    told = [json.loads(line)["n"] for line in (before.read_text() + present.read_text()).split()]
    assert told == list(range(told[0], 200))


def test_a_torn_line_spoils_only_itself(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"n":1}\n{"n":')

    async def story() -> None:
        async with linked(tmp_path) as (link, heard):
            link.send("events", b'{"n":3}', heard.on_done(3))
            await heard.until(lambda: heard.done)

    play(story)
    assert (tmp_path / "events.jsonl").read_bytes() == b'{"n":1}\n{"n":\n{"n":3}\n'


def test_a_document_above_the_bound_of_a_file_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with linked(tmp_path, lines_bytes=1000) as (link, heard):
            with pytest.raises(LinkError, match="1,000 bytes is above the 1,000 bytes of tele"):
                link.send("telemetry", b"x" * 1000, heard.on_done(1))
            assert heard.done == []

    play(story)


def test_a_full_disk_is_waited_for_and_costs_no_document_and_no_repeat(tmp_path: Path) -> None:
    disk = Moody()

    async def story() -> None:
        async with linked(tmp_path, disk=disk) as (link, heard):
            await heard.phase("connected")
            # Events still fit, telemetry does not.
            disk.refuses = lambda op, path: errno.ENOSPC if "telemetry" in path.name else 0
            link.report(b"{}", heard.on_done("report"))
            link.send("telemetry", b'{"n":2}', heard.on_done("telemetry"))
            link.send("events", b'{"n":1}', heard.on_done("event"))
            state = await heard.phase("waiting")
            assert state.last_error is not None
            assert "the disk is full" in state.last_error
            assert {what for what, ok, _ in heard.done if ok} == {"report", "event"}
            disk.refuses = lambda op, path: 0
            await heard.phase("connected")
            await heard.until(lambda: len(heard.done) == 3)

    play(story)
    assert (tmp_path / "events.jsonl").read_bytes() == b'{"n":1}\n'
    assert (tmp_path / "telemetry.jsonl").read_bytes() == b'{"n":2}\n'


def test_a_newer_report_takes_the_place_of_one_that_could_not_be_written(tmp_path: Path) -> None:
    disk = Moody()
    disk.refuses = lambda op, path: errno.EIO if "reported" in path.name else 0

    async def story() -> None:
        async with linked(tmp_path, disk=disk) as (link, heard):
            link.report(b'{"n":1}', heard.on_done(1))
            await heard.phase("waiting")
            link.report(b'{"n":2}', heard.on_done(2))
            disk.refuses = lambda op, path: 0
            await heard.until(lambda: len(heard.done) == 2)
            assert heard.done == [(1, True, ""), (2, True, "")]

    play(story)
    assert (tmp_path / "reported.json").read_bytes() == b'{"n":2}'


def test_reports_are_written_at_most_so_often(tmp_path: Path) -> None:
    disk, renamed = Moody(), []

    def count(op: Kind, path: Path) -> int:
        if op == "rename" and "reported" in path.name:
            renamed.append(path)
        return 0

    disk.refuses = count
    pace = Pace(look=3600.0, report=3600.0, lines=0.0)

    async def story() -> None:
        async with linked(tmp_path, disk=disk, pace=pace) as (link, heard):
            link.report(b"1", heard.on_done(1))
            await heard.until(lambda: heard.done)
            for number in range(2, 50):
                link.report(b"%d" % number, heard.on_done(number))
                link.send("events", b"{}", heard.on_done("event"))
                await heard.until(lambda: heard.done[-1][0] == "event")
                heard.done.append(("", True, ""))
            assert len(renamed) == 1

    play(story)
    # The last one is not lost by the end.
    assert (tmp_path / "reported.json").read_bytes() == b"49"


def test_a_file_system_without_modes_is_written_to(tmp_path: Path) -> None:
    disk = Moody()
    disk.refuses = lambda op, path: errno.EPERM if op == "chmod" else 0

    async def story() -> None:
        async with linked(tmp_path, disk=disk) as (_, heard):
            await heard.phase("connected")

    play(story)
    assert json.loads((tmp_path / "status.json").read_bytes())["status"] == "offline"


def test_a_deployment_is_taken_from_where_nothing_can_be_written(tmp_path: Path) -> None:
    disk = Moody()
    disk.refuses = lambda op, path: errno.EROFS
    (tmp_path / "desired.json").write_bytes(DOCUMENT)

    async def story() -> None:
        async with linked(tmp_path, disk=disk) as (_, heard):
            await heard.until(lambda: heard.desired == [DOCUMENT])
            assert "read-only" in str((await heard.phase("waiting")).last_error)

    play(story)


def test_reports_can_go_to_another_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()

    async def story() -> None:
        async with linked(tmp_path / "in", report_folder=tmp_path / "out") as (_, heard):
            await heard.phase("connected")

    play(story)
    assert [p.name for p in tmp_path.glob("*/*")] == ["status.json"]
    assert (tmp_path / "out/status.json").stat().st_mode & 0o777 == 0o640


def test_what_a_killed_agent_left_half_done_is_removed_and_what_others_write_is_not(
    tmp_path: Path,
) -> None:
    theirs = tmp_path / ".desired.json.abc123.tmp"
    ours = tmp_path / ".reported.json.abc123.tmp"
    theirs.touch()
    ours.touch()

    async def story() -> None:
        async with linked(tmp_path) as (_, heard):
            await heard.phase("connected")

    play(story)
    assert theirs.exists()
    assert not ours.exists()


def test_the_status_says_how_old_it_may_become(tmp_path: Path) -> None:
    async def story() -> None:
        async with linked(tmp_path) as (_, heard):
            await heard.phase("connected")
            told = json.loads((tmp_path / "status.json").read_bytes())
            assert (told["status"], told["device"], told["every_s"]) == ("online", "press-7", 60.0)
            assert told["ts"].endswith("Z")

    play(story)


# -- the settings ---------------------------------------------------------------------------------


def settings(raw: dict[str, Any], **environment: str) -> Settings:
    return settings_from(raw, environment, name="agent.toml", kinds=registry.settings_of)


def test_a_kind_has_keys_of_its_own_in_the_file_and_in_the_environment() -> None:
    read = settings({"link": {"kind": "file", "directory": "/a"}}, EDGEWARD_LINK_KEEP_MB="7")
    assert read.link == FileSettings(directory="/a", keep_mb=7)
    by_environment = settings(
        {"link": {"report_directory": "/b"}},
        EDGEWARD_LINK_KIND="file",
        EDGEWARD_LINK_DIRECTORY="/a",
    )
    assert by_environment.link == FileSettings(directory="/a", report_directory="/b")


@pytest.mark.parametrize(
    ("link", "says"),
    [
        ({"kind": "carrier-pigeon"}, r"agent.toml.link.kind: expected one of file, mqtt, got 'car"),
        ({"kind": 7}, r"agent.toml.link.kind: expected one of file, mqtt"),
        ({"kind": "file", "url": "mqtt://x"}, r"agent.toml.link.url: .*unknown key 'url'"),
        ({"kind": "file", "keep_mb": 0}, r"agent.toml.link.keep_mb: expected int >= 1"),
        ({"directory": "/a"}, r"agent.toml.link.directory: .*unknown key"),
    ],
)
def test_what_a_kind_does_not_know_is_refused(link: dict[str, Any], says: str) -> None:
    with pytest.raises(DocumentError, match=says):
        settings({"link": link})


def test_a_variable_of_another_kind_is_refused() -> None:
    with pytest.raises(DocumentError, match="EDGEWARD_LINK_URL"):
        settings({"link": {"kind": "file"}}, EDGEWARD_LINK_URL="mqtt://x")


def test_the_folder_lies_in_the_state_unless_it_is_named(tmp_path: Path) -> None:
    kind = registry.find("file")
    own = settings({"state_dir": str(tmp_path), "link": {"kind": "file"}})
    assert kind.address(own) == str(tmp_path / "link")
    assert list(kind.problems(own)) == []

    async def story() -> None:
        heard = Heard()
        link = kind.make(own, heard.owner, Files())
        running = asyncio.ensure_future(link.run())
        await heard.phase("connected")
        await link.stop()
        await running
        assert heard.troubles == []

    play(story)
    assert (tmp_path / "link").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("directory", "link", "'link' is not absolute"),
        ("directory", "/none/there", "there is no folder /none/there"),
        ("report_directory", "/none/there", "there is no folder /none/there"),
    ],
)
def test_folders_that_will_not_do_are_named(key: str, value: str, says: str) -> None:
    found = list(registry.find("file").problems(settings({"link": {"kind": "file", key: value}})))
    assert [problem.where for problem in found] == [f"link.{key}"]
    assert says in found[0].wrong
