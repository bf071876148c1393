"""Packs by the fetch process: from a server and from a folder, over cuts, kills and restarts."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from agent.daemon.fetch import Fetcher
from agent.daemon.fetch_child import ChildSource
from agent.daemon.fetch_messages import Ask, Job
from agent.daemon.fetch_source import Wanted
from agent.documents.settings import FetchSettings, Settings, Trust
from agent.errors import DigestMismatch, FetchError, FetchPostponed, SourceRefused, Unsigned
from agent.store.files import Files
from agent.store.packs import PackStore
from tests.daemon.http_source import Answer, Asked, HttpSource, ranged
from tests.daemon.packs import Pack, assert_installed, digest_of
from tests.trust.signers import KEY, pem_of

BIG = random.Random(11).randbytes(3_000_000)


def settings_for(folder: Path, *roots: Path) -> Settings:
    fetch = FetchSettings(roots=tuple(map(str, roots)))
    return Settings(device_id="press-7", state_dir=str(folder / "state"), fetch=fetch)


def store_of(settings: Settings) -> PackStore:
    return PackStore(Files(), Path(settings.state_dir), settings.limits.store_mb << 20)


def fetcher_for(settings: Settings) -> Fetcher:
    return Fetcher(
        store_of(settings),
        settings,
        blocks=None,
        roots=lambda: (),
    )


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, timeout=30))


def fetch(settings: Settings, pack: Pack, source: str) -> list[tuple[int, int]]:
    seen: list[tuple[int, int]] = []

    async def story() -> None:
        await fetcher_for(settings).fetch(pack.id, source, lambda *now: seen.append(now))

    run(story())
    return seen


def serving(pack: Pack, cut: Callable[[Asked, Answer], Answer] | None = None) -> HttpSource:
    def play(asked: Asked) -> Answer:
        data = pack.content.get(asked.path.removeprefix("/"))
        answer = Answer(404) if data is None else ranged(data, asked, ETag='"v1"')
        return cut(asked, answer) if cut is not None else answer

    return HttpSource(play)


def test_a_pack_comes_from_a_server(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    pack = Pack({"model.onnx": BIG, "data/labels": b"a\n", "empty": b""})
    with serving(pack) as source:
        seen = fetch(settings, pack, source.url)
    assert_installed(store_of(settings), pack)
    assert seen[-1] == (len(BIG) + 2, len(BIG) + 2)
    paths = [asked.path for asked in source.asked]
    assert paths == ["/manifest.json", "/model.onnx", "/data/labels"]


def test_a_pack_that_is_here_waits_for_no_window_and_no_network(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    settings = replace(settings, fetch=FetchSettings(metered="refuse"))
    here, away = Pack({"model.onnx": BIG}), Pack({"model.onnx": BIG}, version="2")

    async def story(source: str) -> None:
        fetcher = fetcher_for(settings)
        await fetcher.fetch(here.id, source)
        fetcher.turns.metered(True)
        await fetcher.fetch(here.id, source)
        with pytest.raises(FetchPostponed, match="metered"):
            await fetcher.fetch(away.id, source)

    with serving(here) as source:
        run(story(source.url))
    assert_installed(store_of(settings), here)


def test_a_pack_comes_from_an_allowed_folder(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, tmp_path / "usb")
    pack = Pack({"model.onnx": BIG})
    folder = pack.write(tmp_path / "usb" / "pack")
    fetch(settings, pack, f"file://{folder}")
    assert_installed(store_of(settings), pack)


def test_a_folder_that_is_not_allowed_is_refused_with_what_to_configure(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    pack = Pack({"model.onnx": BIG})
    folder = pack.write(tmp_path / "usb" / "pack")
    with pytest.raises(SourceRefused, match=r"set \[fetch\] roots") as caught:
        fetch(settings, pack, f"file://{folder}")
    assert not caught.value.retryable


def test_a_source_that_is_away_is_worth_a_retry(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    pack = Pack({"model.onnx": BIG})
    with serving(Pack({"other": b""})) as source, pytest.raises(FetchError, match="404") as caught:
        fetch(settings, pack, f"{source.url}/missing")
    assert caught.value.retryable


def test_altered_bytes_never_reach_the_store(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    pack = Pack({"model.onnx": BIG})
    altered = Pack({"model.onnx": BIG[:-1] + b"x"})
    altered.manifest = pack.manifest
    with serving(altered) as source, pytest.raises(DigestMismatch):
        fetch(settings, pack, source.url)
    assert not store_of(settings).has_blob(digest_of(BIG))


def test_a_part_that_proves_stale_is_begun_again_once(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with store_of(settings).begin_part(digest_of(BIG), len(BIG), 65536) as part:
        part.write_block(0, bytes(65536))
        part.flush()
    pack = Pack({"model.onnx": BIG})
    with serving(pack) as source:
        fetch(settings, pack, source.url)
    assert_installed(store_of(settings), pack)
    ranges = [asked.headers.get("Range") for asked in source.asked[1:]]
    assert ranges == ["bytes=65536-", None]


def test_a_server_without_ranges_is_taken_from_the_beginning(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with store_of(settings).begin_part(digest_of(BIG), len(BIG), 65536) as part:
        part.write_block(0, BIG[:65536])
        part.flush()
    pack = Pack({"model.onnx": BIG})

    def whole(asked: Asked, answer: Answer) -> Answer:
        return Answer(200, pack.content[asked.path.removeprefix("/")])

    with serving(pack, whole) as source:
        fetch(settings, pack, source.url)
    assert_installed(store_of(settings), pack)
    assert len(source.asked) == 2


def test_a_cancelled_fetch_ends_its_process_and_keeps_what_came(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    pack = Pack({"model.onnx": BIG})
    asked_again = threading.Event()
    release = threading.Event()

    def stick(asked: Asked, answer: Answer) -> Answer:
        if asked.path != "/model.onnx":
            return answer
        if "Range" not in asked.headers:
            headers = {**answer.headers, "Content-Length": str(len(BIG))}
            return Answer(200, BIG[:1_000_000], headers)
        asked_again.set()
        release.wait(20)
        return answer

    async def story() -> None:
        fetcher = fetcher_for(settings)
        fetching = asyncio.ensure_future(fetcher.fetch(pack.id, source.url))
        await asyncio.to_thread(asked_again.wait, 20)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await fetcher.close()
        assert children_of(os.getpid()) == []
        # Another life goes on where this one ended.
        release.set()
        await fetcher_for(settings).fetch(pack.id, source.url)

    with serving(pack, stick) as source:
        run(story())
    assert_installed(store_of(settings), pack)
    # Whole blocks of 64 KiB of the first 1,000,000 bytes.
    assert source.asked[-1].headers["Range"] == f"bytes={1_000_000 // 65536 * 65536}-"


def test_a_killed_process_is_a_failure_worth_a_retry(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    pack = Pack({"model.onnx": BIG})
    reached, release = threading.Event(), threading.Event()

    def stick(asked: Asked, answer: Answer) -> Answer:
        if asked.path == "/model.onnx" and not reached.is_set():
            reached.set()
            release.wait(20)
        return answer

    async def story() -> None:
        fetcher = fetcher_for(settings)
        fetching = asyncio.ensure_future(fetcher.fetch(pack.id, source.url))
        await asyncio.to_thread(reached.wait, 20)
        (child,) = children_of(os.getpid())
        os.kill(child, signal.SIGKILL)
        with pytest.raises(FetchError, match="ended with status -9") as caught:
            await fetching
        assert caught.value.retryable
        release.set()
        await fetcher.fetch(pack.id, source.url)

    with serving(pack, stick) as source:
        run(story())
    assert_installed(store_of(settings), pack)


def test_no_secret_is_in_the_environment_or_the_arguments_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    settings = settings_for(tmp_path)
    pack = Pack({"model.onnx": BIG})
    seen: list[bytes] = []

    def look(asked: Asked, answer: Answer) -> Answer:
        for child in children_of(os.getpid()):
            seen.append(Path(f"/proc/{child}/environ").read_bytes())
            seen.append(Path(f"/proc/{child}/cmdline").read_bytes())
        return answer

    with serving(pack, look) as source:
        fetch(settings, pack, source.url)
    assert seen
    assert not any(b"secret" in text for text in seen)


PARENT = """
import subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-I", "-m", "agent.daemon.fetcher"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
)
import os
job = sys.argv[1].replace('"parent_pid":0', f'"parent_pid":{os.getpid()}')
child.stdin.write(job.encode() + b"\\n" + sys.argv[2].encode() + b"\\n")
child.stdin.flush()
print(child.pid, flush=True)
child.wait()
"""


def test_a_daemon_that_is_killed_takes_its_fetch_process_along(tmp_path: Path) -> None:
    reached, release = threading.Event(), threading.Event()

    def stick(asked: Asked) -> Answer:
        reached.set()
        release.wait(20)
        return Answer(404)

    with HttpSource(stick) as source:
        job = Job(source.url, str(tmp_path), 1 << 30, (), {}, parent_pid=0)
        lines = [msgspec.json.encode(one).decode() for one in (job, Ask("p", "manifest.json"))]
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, *lines], stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        assert reached.wait(20)
        parent.kill()
        ended, _, _ = select.select([child], [], [], 20)
        os.close(child)
        parent.stdout.close()
        parent.wait()
        release.set()
    assert ended


def test_without_its_parent_the_process_does_nothing() -> None:
    job = Job("http://127.0.0.1:1", "/nonexistent", 1, (), {}, parent_pid=1)
    done = subprocess.run(
        [sys.executable, "-I", "-m", "agent.daemon.fetcher"],
        input=msgspec.json.encode(job) + b"\n",
        capture_output=True,
        timeout=20,
    )
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_process_that_cannot_work_says_why_each_time_it_is_asked(tmp_path: Path) -> None:
    async def story() -> None:
        source = ChildSource("p", "file:///x", settings_for(tmp_path))
        for _ in range(2):
            with pytest.raises(SourceRefused):
                await source.file(Wanted("p", "n", digest_of(b""), 1), lambda here: None)
        await source.close()

    run(story())


def children_of(pid: int) -> list[int]:
    """The fetch processes of this one."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child)
        for child in listed
        if b"agent.daemon.fetcher" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def test_a_pack_that_cannot_come_over_the_link_is_refused_with_what_can(tmp_path: Path) -> None:
    fetcher = fetcher_for(settings_for(tmp_path))

    async def story() -> None:
        with pytest.raises(SourceRefused, match="packs cannot come over a link of kind") as refused:
            await fetcher.fetch("sha256:" + "0" * 64, "mqtt:")
        assert refused.value.hint == "give the slot a `from` with `file:` or `https:`"
        # What is told of the link and of blocks does no harm.
        fetcher.on_link(True)
        fetcher.on_message("edgeward/press-7/blocks/data", b"x")

    run(story())


def signed_settings(tmp_path: Path) -> Settings:
    """Those of a device that knows one key, and takes nothing else."""
    (tmp_path / "release.pub").write_bytes(pem_of(KEY))
    trust = Trust(keys=(str(tmp_path / "release.pub"),), unsigned="refuse")
    return replace(settings_for(tmp_path), trust=trust)


def test_a_signature_comes_from_a_server_before_any_file_and_is_kept(tmp_path: Path) -> None:
    settings, pack = signed_settings(tmp_path), Pack({"model.onnx": BIG})
    pack.sign(KEY)
    with serving(pack) as source:
        fetch(settings, pack, source.url)
        assert [asked.path for asked in source.asked] == [
            "/manifest.json",
            "/model.sig",
            "/model.onnx",
        ]
        fetch(settings, pack, source.url)  # the source is not asked for what is here
        assert len(source.asked) == 3
    assert store_of(settings).signature(pack.id) == pack.signature


@pytest.mark.parametrize("status", [404, 410, 403])
def test_a_pack_that_a_server_has_no_signature_of_is_refused_and_none_of_it_kept(
    tmp_path: Path, status: int
) -> None:
    settings, pack = signed_settings(tmp_path), Pack({"model.onnx": BIG})

    def without(asked: Asked, answer: Answer) -> Answer:
        return Answer(status) if asked.path.endswith("model.sig") else answer

    with serving(pack, without) as source, pytest.raises(Unsigned):
        fetch(settings, pack, source.url)
    assert store_of(settings).manifest(pack.id) is None
