"""Stories of how a pack comes: from a stick, by an address that expires, over a metered network."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from agent.cli import exits
from agent.cli.main import run
from agent.store.parts import FLUSH_BYTES
from tests.brokers import LocalBroker
from tests.daemon.http_source import Answer, Asked, HttpSource, ranged
from tests.scenarios import long_download
from tests.scenarios.conftest import MakeDevice, Packs
from tests.scenarios.device import client, until
from tests.scenarios.test_deployments import DESIRED, REPORTED, deploy, slot

SECRET = "s3cr3t-signature"


class SignedServer:
    """A folder on a server whose links are good for one signature at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.good = f"{SECRET}-1"
        self.expires_in = 1 << 40
        self.got: list[tuple[str, int]] = []
        self._lock = threading.Lock()

    def play(self, asked: Asked) -> Answer:
        path, _, query = asked.path.partition("?")
        if query != f"sig={self.good}" or self.expires_in <= 0:
            return Answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        answer = ranged((self.folder / path.lstrip("/")).read_bytes(), asked, ETag='"1"')
        with self._lock:
            cut, self.expires_in = self.expires_in, self.expires_in - len(answer.body)
        length = {**answer.headers, "Content-Length": str(len(answer.body))}
        sent = answer.body[: max(0, cut)]
        self.got.append((path.lstrip("/"), len(sent)))
        return Answer(answer.status, sent, length)

    def url(self, source: HttpSource) -> str:
        return f"{source.url}/?sig={self.good}"


def test_a_pack_from_a_stick_is_deployed_later_without_a_source(
    make_device: MakeDevice,
    broker: LocalBroker,
    packs: Packs,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, device = packs.affine(1), make_device().start()
    config = ["--config", str(device.config)]
    assert run(["load", str(one.directory / "absent"), "--json", *config]) == exits.FAILED
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "source_missing"
    assert run(["load", str(one.directory), "--json", *config]) == exits.DONE
    told = json.loads(capsys.readouterr().out)
    assert (told["pack"], told["state"]) == (one.pack, "loaded")
    assert told["progress"]["done_bytes"] == told["progress"]["total_bytes"] > 0
    assert run(["load", str(one.directory), *config]) == exits.DONE
    assert one.pack in capsys.readouterr().out
    with client(broker.url) as user:
        deploy(user, "one", vib=slot(one.directory, one.pack, **{"from": ""}))
        device.wait_for("vib", "active", one.pack)


def test_an_expired_address_is_renewed_by_a_deployment_and_no_secret_is_told(
    make_device: MakeDevice, broker: LocalBroker, packs: Packs, tmp_path: Path
) -> None:
    one, device = packs.affine(1, name="expires"), make_device().start()
    server = SignedServer(one.directory)
    with client(broker.url) as user, HttpSource(server.play) as source:
        user.subscribe("edgeward/#")
        server.expires_in = (one.directory / "manifest.json").stat().st_size + 100
        deploy(user, "one", vib=slot(tmp_path, one.pack, **{"from": server.url(source)}))

        def expired() -> bool:
            return (device.slot("vib").get("error") or {}).get("code") == "source_expired"

        until(expired, "the slot says that its address has expired", log=device)
        found = device.slot("vib")
        assert found["state"] == "fetching"
        assert found["error"]["retryable"]
        assert "deploy again with a fresh URL" in found["error"]["hint"]
        server.good, server.expires_in = f"{SECRET}-2", 1 << 40
        deploy(user, "two", vib=slot(tmp_path, one.pack, **{"from": server.url(source)}))
        device.wait_for("vib", "active", one.pack)
        heard = [m.payload for m in user.received if m.topic != DESIRED]
    assert [name for name, _ in server.got].count("manifest.json") == 1
    assert SECRET not in device.log
    assert SECRET not in json.dumps(device.status())
    assert not any(SECRET.encode() in payload for payload in heard)
    for path in (device.state_dir / "log").iterdir():
        assert SECRET not in path.read_text(errors="replace")


def test_a_metered_network_holds_a_fetch_until_it_is_no_longer(
    make_device: MakeDevice, broker: LocalBroker, packs: Packs, tmp_path: Path
) -> None:
    one = packs.affine(1, name="metered")
    server = SignedServer(one.directory)
    with client(broker.url) as user, HttpSource(server.play) as source:
        user.subscribe(REPORTED)
        user.publish("edgeward/press-7/metered", "true", retain=True)
        deploy(user, "one", vib=slot(tmp_path, one.pack, **{"from": server.url(source)}))
        device = make_device(extra='metered = "refuse"').start()

        def held() -> bool:
            return (device.slot("vib").get("error") or {}).get("code") == "fetch_postponed"

        until(held, "the slot says that it waits", log=device)
        assert device.slot("vib")["state"] == "fetching"
        asked = len(source.asked)
        user.publish("edgeward/press-7/metered", "", retain=True)
        # A new name is what makes it try at once; by itself it looks within a minute.
        deploy(user, "two", vib=slot(tmp_path, one.pack, **{"from": server.url(source)}))
        device.wait_for("vib", "active", one.pack)
        assert len(source.asked) > asked


@pytest.mark.slow
def test_a_pack_comes_over_a_line_that_drops_and_past_an_expired_address_and_a_kill(
    capsys: pytest.CaptureFixture[str],
) -> None:
    drops = ["--mib-s", "16", "--drops-after-s", "0.3", "0.6", "--away-s", "0.1"]
    assert long_download.main(["--mib", "30", "--kills", "1", *drops]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cuts"] >= 1
    assert told["refused_as_expired"] >= 1
    # A flush unit for the kill, and blocks that were not whole.
    assert told["fetched_again_bytes"] <= FLUSH_BYTES + (told["cuts"] + 2) * 65_536
    assert told["fetcher_peak_mib"] < 64
