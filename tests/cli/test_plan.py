"""`edgeward plan` as a person or a program calls it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.cli import exits
from agent.cli.main import run
from agent.control.profiles import typical_of
from agent.device.profiles import load
from agent.documents.manifest import Needs
from tests.control.packs import pack, variant

PACK = pack(
    variant("fp32", needs=Needs(ir_version=8, opsets={"ai.onnx": 17}, operators=("Conv",))),
    variant("int8", "tflite", Needs(schema_version=3), integers=True),
    variant("tpu", "tflite", Needs(edgetpu=True, custom_operators=("edgetpu-custom-op",))),
)
ONLY_TPU = pack(PACK.variants[2])
BYTES = msgspec.json.encode(PACK)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pack"
    place.mkdir()
    (place / "manifest.json").write_bytes(BYTES)
    return place


def plan(*arguments: object) -> int:
    return run(["plan", *map(str, arguments), "--profiles", "/nonexistent"])


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_program_is_told_everything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(folder, "--profile", "raspberry-pi-5", "--json") == exits.DONE
    document = told(capsys)
    assert document["profile"] == "raspberry-pi-5"
    assert document["runs"] is True
    assert document["typical"] is True
    assert {one["name"]: one["runs"] for one in document["variants"]} == {
        "fp32": True,
        "int8": True,
        "tpu": False,
    }
    tpu = document["variants"][2]
    assert tpu["reason"]["code"] == "accelerator_absent"
    assert tpu["ways"][0]["runtime"] == "edgetpu"
    assert document["fetch"] == ["int8", "fp32"]
    assert set(document["files"]) == {"int8.tflite", "fp32.onnx", "case-0.json"}
    assert document["candidates"][0]["variant"] == "int8"
    assert document["pack"].startswith("sha256:")
    assert all(fault["link"] for fault in document["faults"])


def test_a_person_is_told_why_and_what_to_do(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(folder, "--profile", "raspberry-pi-3") == exits.DONE
    text = capsys.readouterr().out
    assert "pump 1 on Raspberry Pi 3 Model B Plus Rev 1.3 (armv7l, debian 12" in text
    assert "the device tree says raspberrypi,3-model-b-plus" in text
    assert "no fp32 onnx, 1 MB" in text
    assert "onnxruntime has no wheel for 32-bit ARM (armv7l)" in text
    assert "yes int8 tflite" in text
    assert "fetched: int8; measured, in this order:" in text
    assert "known here: The kernel's memory controller is off" in text


def test_an_add_on_can_be_given_with_its_board(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        plan(folder, "--profile", "jetson-nano", "--profile", "coral-usb", "--json") == exits.DONE
    )
    document = told(capsys)
    assert document["profile"] == "jetson-nano+coral-usb"
    assert document["fetch"] == ["tpu", "int8"]


def test_where_nothing_runs_the_exit_code_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "manifest.json"
    file.write_bytes(msgspec.json.encode(ONLY_TPU))
    assert plan(file, "--profile", "raspberry-pi-5") == exits.WILL_NOT_RUN
    assert "Nothing of this pack runs there." in capsys.readouterr().out


def test_a_recorded_device_is_planned_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = load(None).named("coral-dev-board")
    assert board is not None
    device = typical_of(board)
    documents: tuple[object, ...] = (device, {"device": device, "profile": {}})
    for number, document in enumerate(documents):
        file = tmp_path / f"{number}.json"
        file.write_bytes(msgspec.json.encode(document))
        assert plan(folder, "--device", file, "--json") == exits.DONE
        found = told(capsys)
        assert found["profile"] == "coral-dev-board+coral-pcie"
        assert found["typical"] is False


def test_this_device_is_planned_for_where_nothing_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(folder, "--json") in (exits.DONE, exits.WILL_NOT_RUN)
    assert told(capsys)["name"] == "pump"


class _Web(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path != "/pump/1/manifest.json?sig=a":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BYTES)))
        self.end_headers()
        self.wfile.write(BYTES)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Web)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.mark.parametrize("path", ["/pump/1/?sig=a", "/pump/1/manifest.json?sig=a"])
def test_a_manifest_on_a_server_is_all_that_is_fetched(
    web: str, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(web + path, "--profile", "raspberry-pi-5", "--json") == exits.DONE
    assert told(capsys)["name"] == "pump"


def test_a_server_that_does_not_have_it_is_told(
    web: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(f"{web}/other/", "--profile", "raspberry-pi-5") == exits.FAILED
    assert "404" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--profile", "toaster"), "there is no profile called 'toaster' (known here: coral-dev"),
        (("--profile", "coral-usb"), "of coral-usb none are boards"),
        (("--profile", "imx93", "--profile", "hailo", "--profile", "jetson-nano"), "2 are boards"),
        (("--profile", "raspberry-pi"), "does not say how such a device usually comes"),
        (("--profile", "imx93", "--device", "x.json"), "exclude each other"),
        (("--device", "/nonexistent.json"), "there is no such file"),
        (("--device", "/dev/zero"), "there is no such file"),
    ],
)
def test_what_cannot_be_planned_is_told_in_a_sentence(
    folder: Path, arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(folder, *arguments) == exits.USAGE
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 9}', '{"device": 3}', "\x00\xff"])
def test_what_is_no_device_and_no_manifest_is_told(
    folder: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "what.json"
    file.write_text(text)
    assert plan(folder, "--device", file) == exits.USAGE
    assert plan(file, "--profile", "imx93") == exits.USAGE
    error = capsys.readouterr().err
    assert "edgeward detect --json" in error or "does not know that schema" in error
    assert error.count("\n") == 2


def test_the_user_s_profiles_and_the_trouble_with_them_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "profiles"
    own.mkdir()
    (own / "mine.toml").write_text(
        'schema = 1\nname = "mine"\ntitle = "Mine"\n[match]\n'
        'compatible = ["raspberrypi,5-model-b"]\narchitecture = ["aarch64"]\n'
    )
    (own / "bad.toml").write_text("schema = ")
    arguments = ["plan", str(folder), "--profile", "raspberry-pi-5", "--profiles", str(own)]
    assert run([*arguments, "--json"]) == exits.DONE
    document = told(capsys)
    assert document["profile"] == "mine"
    assert "bad.toml" in document["troubles"][0]
    assert run(arguments) == exits.DONE
    assert "bad.toml" in capsys.readouterr().err
