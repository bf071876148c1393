"""The local socket's answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.daemon.local_api import LocalApi
from agent.links.local import ask


async def status(request: dict[str, Any]) -> Mapping[str, Any]:
    return {"device": "press-7"}


def test_a_request_is_answered_and_the_socket_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"

    async def story() -> dict[str, Any]:
        api = LocalApi(path, {"status": status})
        await api.start()
        assert path.stat().st_mode & 0o777 == 0o600
        answer = await asyncio.to_thread(ask, path, {"command": "status"})
        await api.stop()
        return answer

    assert asyncio.run(story()) == {"device": "press-7"}
    assert not path.exists()


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"\xff", b'{"command": ' + b"[" * 50_000, b'{"command": "no"}', b""]
)
def test_a_request_that_makes_no_sense_is_answered_with_an_error(line: bytes) -> None:
    answer = asyncio.run(LocalApi(Path("unused"), {"status": status}).answer(line))
    assert answer["error"]["code"] == "usage"


def test_where_no_socket_can_be_made_the_agent_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        api = LocalApi(tmp_path / "absent" / "agent.sock", {})
        await api.start()
        await api.stop()

    asyncio.run(story())
    assert "nobody can ask at" in caplog.text


def test_what_only_a_person_on_the_device_may_ask_is_not_answered_over_the_link(
    tmp_path: Path,
) -> None:
    path = tmp_path / "agent.sock"

    async def story() -> None:
        api = LocalApi(path, {}, here={"status": status})
        await api.start()
        here = await asyncio.to_thread(ask, path, {"command": "status"})
        afar = await api.answer(b'{"command": "status"}')
        await api.stop()
        assert here == {"device": "press-7"}
        assert afar["error"]["code"] == "usage"

    asyncio.run(story())
