"""A pack from a stick into the store, by the word of a person on the device."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from agent.daemon import loading
from agent.daemon.fetch import Fetcher
from agent.daemon.loading import Loading
from agent.documents.settings import Settings
from agent.errors import AgentError, DigestMismatch, FetchError, SourceRefused, UsageError
from agent.store.files import Files
from agent.store.packs import PackStore
from tests.daemon.packs import Pack, assert_installed

BIG = os.urandom(1_000_000)


class Device:
    """A store that packs may come into, and no folder that a deployment may name."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(device_id="press-7", state_dir=str(folder / "state"))
        self.store = PackStore(Files(), Path(self.settings.state_dir), 1 << 30)
        self.fetcher = Fetcher(self.store, self.settings, blocks=None, roots=lambda: ())
        self.loading = Loading(self.fetcher, self.settings)

    async def loaded(self, path: Path) -> dict[str, Any]:
        while True:
            told = await self.loading.load({"command": "load", "path": str(path)})
            if told["state"] != "loading":
                return told
            await asyncio.sleep(0.01)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, timeout=30))


def test_a_loaded_pack_needs_no_source_any_more(tmp_path: Path) -> None:
    pack = Pack({"model.onnx": BIG, "data/labels": b"a\n"})
    stick = pack.write(tmp_path / "usb" / "pack é #1")
    device = Device(tmp_path)

    async def story() -> None:
        told = await device.loaded(stick)
        assert told["pack"] == pack.id
        assert told["progress"] == {"done_bytes": len(BIG) + 2, "total_bytes": len(BIG) + 2}
        assert told["path"] == str(stick)
        for file in sorted(stick.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        await device.fetcher.fetch(pack.id, "")

    run(story())
    assert_installed(device.store, pack)


def test_loading_again_is_done_at_once_and_a_failure_may_be_tried_again(tmp_path: Path) -> None:
    pack = Pack({"model.onnx": BIG})
    stick = tmp_path / "usb"
    device = Device(tmp_path)

    async def story() -> None:
        with pytest.raises(FetchError, match="is the medium there"):
            await device.loaded(stick)
        pack.write(stick)
        assert (await device.loaded(stick))["pack"] == pack.id
        assert (await device.loaded(stick))["pack"] == pack.id

    run(story())


def test_altered_bytes_are_not_loaded(tmp_path: Path) -> None:
    pack = Pack({"model.onnx": BIG})
    stick = pack.write(tmp_path / "usb")
    (stick / "model.onnx").write_bytes(BIG[:-1] + b"x" if BIG[-1:] != b"x" else BIG[:-1] + b"y")
    device = Device(tmp_path)

    async def story() -> None:
        with pytest.raises(DigestMismatch):
            await device.loaded(stick)

    run(story())
    assert not device.store.has(pack.id)


def test_no_link_on_the_stick_is_followed(tmp_path: Path) -> None:
    pack = Pack({"data/labels": BIG})
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "labels").write_bytes(BIG)
    stick = tmp_path / "usb"
    stick.mkdir()
    (stick / "manifest.json").write_bytes(pack.manifest)
    (stick / "data").symlink_to(secret)
    device = Device(tmp_path)

    async def story() -> None:
        with pytest.raises(SourceRefused, match="labels") as caught:
            await device.loaded(stick)
        assert "symbolic links are not followed" in caught.value.hint

    run(story())


@pytest.mark.parametrize(
    "path", [None, 7, "", "usb", "./usb", "/media/../etc", "/a\0b", "/" * 5000]
)
def test_what_is_no_path_is_refused(tmp_path: Path, path: object) -> None:
    async def story() -> None:
        with pytest.raises(UsageError):
            await Device(tmp_path).loading.load({"path": path})

    run(story())


def test_loads_are_bounded_and_those_that_ended_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "MAX_LOADS", 2)
    device = Device(tmp_path)

    async def story() -> None:
        for name in ("a", "b"):
            assert (await device.loading.load({"path": f"/{name}-absent"}))["state"] == "loading"
        with pytest.raises(UsageError, match="2 folders are being loaded"):
            await device.loading.load({"path": "/c-absent"})
        with pytest.raises(AgentError):
            await device.loaded(Path("/a-absent"))
        await device.loading.load({"path": "/c-absent"})
        await device.loading.close()
        await device.fetcher.close()

    run(story())


def test_a_deployment_cannot_name_what_only_a_person_may(tmp_path: Path) -> None:
    pack = Pack({"model.onnx": BIG})
    stick = pack.write(tmp_path / "usb")
    device = Device(tmp_path)

    async def story() -> None:
        with pytest.raises(SourceRefused, match="cannot fetch from 'load' sources"):
            await device.fetcher.fetch(pack.id, f"load:{stick}")

    run(story())
