"""`deploy`, `status` and `rollback` as a person or a program calls them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.author import publish
from agent.cli import exits
from agent.cli.main import run
from agent.documents.report import Failure, SlotPhase
from tests.author.peer import CONTENT, Device, write_pack
from tests.brokers import LocalBroker, free_port
from tests.links.test_local import answering


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    broker = LocalBroker(tmp_path_factory.mktemp("mosquitto")).start()
    yield broker
    broker.stop()


@pytest.fixture(autouse=True)
def quick_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "QUIET_S", 0.2)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return write_pack(tmp_path / "pack")


def deploy(pack: Path, url: str, device: str, *more: str) -> int:
    topics = ["--input-topic", "sensors/+", "--output-topic", "p/{1}"]
    return run(
        ["deploy", str(pack), "--slot", "s", *topics, "--broker", url, "--device", device, *more]
    )


def test_deploy_delivers_the_pack_and_tells_a_program_the_verdict(
    mosquitto: LocalBroker, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("--setting", "threshold=0.5", "--setting", "mode=fast", "--setting", "on=true")
    with Device(mosquitto.url, "one") as device:
        code = deploy(pack, mosquitto.url, "one", "--json", "--probation", "3", *settings)
    assert code == exits.DONE
    assert device.files == {"model.onnx": CONTENT}
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert (told["state"], told["slot"], told["device"]) == ("active", "s", "one")
    assert told["error"] is None
    assert captured.err == ""
    slot = device.deployments[-1].slots["s"]
    assert slot.settings == {"threshold": 0.5, "mode": "fast", "on": True}
    assert slot.rollout.probation_s == 3


def test_deploy_tells_a_person_what_happens(
    mosquitto: LocalBroker, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Device(mosquitto.url, "person"):
        assert deploy(pack, mosquitto.url, "person") == exits.DONE
    captured = capsys.readouterr()
    assert captured.out == ""
    words = re.findall(r"^\s*(fetching|verifying|probation|active)", captured.err, re.MULTILINE)
    assert words == ["fetching", "verifying", "probation", "active"]


@pytest.mark.parametrize(
    ("state", "code"), [("failed", exits.REFUSED_BY_DEVICE), ("rolled_back", exits.ROLLED_BACK)]
)
def test_the_devices_verdict_is_the_exit_code(
    mosquitto: LocalBroker,
    pack: Path,
    capsys: pytest.CaptureFixture[str],
    state: SlotPhase,
    code: int,
) -> None:
    why = Failure(code="self_test_failed", message="[y] differs", hint="train it again")
    with Device(mosquitto.url, state, answers=[(state, why)]):
        assert deploy(pack, mosquitto.url, state) == code
    told = capsys.readouterr().err
    assert f"{state}: [y] differs (train it again) [self_test_failed]\n" in told


def test_a_slot_that_is_active_but_gets_no_messages_is_no_success(
    mosquitto: LocalBroker, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    why = Failure(code="link_failed", message="the broker refused to subscribe to 'in/+'")
    with Device(mosquitto.url, "deaf", answers=[("active", why)]):
        assert deploy(pack, mosquitto.url, "deaf") == exits.FAILED
    told = capsys.readouterr().err
    assert "active, but: the broker refused to subscribe to 'in/+' [link_failed]\n" in told


def test_a_device_that_is_not_there_is_told_at_once_and_is_a_timeout(
    mosquitto: LocalBroker, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy(pack, mosquitto.url, "nobody", "--timeout", "0.05") == exits.TIMED_OUT
    told = capsys.readouterr().err
    assert "the broker has never seen nobody below edgeward/nobody/" in told
    assert "only this command has the pack" in told


def test_whoever_interrupts_a_deployment_is_told_what_goes_on(
    mosquitto: LocalBroker,
    pack: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> Iterator[publish.Event]:
        yield publish.Published("d-1")
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "deploy", interrupted)
    assert deploy(pack, mosquitto.url, "left") == exits.INTERRUPTED
    told = capsys.readouterr().err
    assert "the deployment stays at the broker" in told
    assert told.endswith("edgeward: stopped\n")


def test_a_password_without_a_name_is_a_mistake(
    pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy(pack, "mqtt://127.0.0.1:1", "d", "--password-file", "p") == exits.USAGE
    assert "--password-file needs --username" in capsys.readouterr().err


def test_with_a_url_and_without_waiting_deploy_ends_at_once(
    mosquitto: LocalBroker, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "https://models.example/vibration/"
    assert deploy(pack, mosquitto.url, "late", "--no-wait", "--from", url, "--json") == exits.DONE
    assert json.loads(capsys.readouterr().out)["state"] == "published"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--setting", "nonsense"], "--setting 'nonsense' is not NAME=VALUE"),
        (["--input-topic", "a/#/b"], "desired.slots.s.input.topic: expected"),
        (["--output-topic", "p/{3}"], "desired.slots.s.output.topic: expected"),
        (["--broker", "ftp://x"], "is not the URL of a broker"),
        (["--slot", "Not Good"], "desired.slots key 'Not Good'"),
    ],
)
def test_a_mistake_is_a_sentence_and_a_usage_error(
    mosquitto: LocalBroker,
    pack: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    said: str,
) -> None:
    assert deploy(pack, mosquitto.url, "never", *more) == exits.USAGE
    assert said in capsys.readouterr().err


def test_an_altered_pack_is_not_deployed(
    mosquitto: LocalBroker, pack: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pack / "model.onnx").write_bytes(b"other")
    assert deploy(pack, mosquitto.url, "never") == exits.BAD_PACK
    assert "is not the file that the manifest lists" in capsys.readouterr().err


def test_no_broker_has_its_own_exit_code(pack: Path) -> None:
    assert deploy(pack, f"mqtt://127.0.0.1:{free_port()}", "d") == exits.LINK


STATUS = (
    b'{"agent":"1","device":"press-7","deployment":"d-1","link":{"state":"connected","error":""},'
    b'"slots":{"vib[1]":{"state":"active","name":"vibration","version":"1.2","runtime":"onnx",'
    b'"provider":"CPU","p50_ms":0.25,"worker_pid":77,"predictions":1234,"dropped":0,'
    b'"isolation":{"level":"strong","policy":"gpu","missing":{"landlock":"why"}}},'
    b'"cam":{"state":"failed","rejected":3,"worker_restarts":0,"waiting":64,'
    b'"error":{"code":"x","message":"why it failed"}},"far":{"state":"fetching",'
    b'"progress":{"done_bytes":1,"total_bytes":4}}}}\n'
)


def test_status_on_the_device_is_a_table_or_the_agents_own_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEWARD_SOCKET", str(tmp_path / "s"))
    with answering(tmp_path / "s", STATUS):
        assert run(["status"]) == exits.DONE
    text = capsys.readouterr().out
    for word in ("press-7", "connected", "vib[1]", "vibration 1.2", "onnx CPU", "0.25", "1234"):
        assert word in text
    assert "cam: why it failed [x]\n" in text
    assert "cam: rejected 3, waiting now 64\n" in text
    assert "vib[1]: isolation strong, policy gpu, without landlock\n" in text
    assert "fetching 25%" in text
    (tmp_path / "s").unlink()
    with answering(tmp_path / "s", STATUS):
        assert run(["status", "--json"]) == exits.DONE
    assert json.loads(capsys.readouterr().out) == json.loads(STATUS)


def test_rollback_names_the_pack_that_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEWARD_SOCKET", str(tmp_path / "s"))
    with answering(tmp_path / "s", b'{"slot":"vib","to":"sha256:ab"}\n') as asked:
        assert run(["rollback", "vib"]) == exits.DONE
    assert json.loads(asked[0]) == {"command": "rollback", "slot": "vib"}
    assert capsys.readouterr().out == "slot vib goes back to pack sha256:ab\n"


def test_what_the_agent_refuses_is_told_as_its_own_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEWARD_SOCKET", str(tmp_path / "s"))
    no = b'{"error":{"code":"usage","message":"no slot \'x\'","hint":"slots: vib"}}\n'
    with answering(tmp_path / "s", no):
        assert run(["rollback", "x"]) == exits.USAGE
    assert capsys.readouterr().err == "edgeward: no slot 'x' (slots: vib)\n"


def test_from_afar_needs_both_a_broker_and_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--broker", "mqtt://x"]) == exits.USAGE
    assert "--broker and --device belong together" in capsys.readouterr().err


def test_status_from_afar_shows_what_the_broker_keeps(
    mosquitto: LocalBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    with Device(mosquitto.url, "far") as device:
        device.broker.publish(f"{device.prefix}status", b"offline", retain=True, wait=True)
    assert run(["status", "--broker", mosquitto.url, "--device", "far", "--json"]) == exits.DONE
    assert json.loads(capsys.readouterr().out)["link"] == {"state": "offline"}
