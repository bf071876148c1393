"""The examples run as they stand, and each file among them is run by a test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from tests.brokers import LocalBroker
from tests.repository.commands import REPOSITORY
from tests.scenarios.device import Device, until

EXAMPLES = REPOSITORY / "examples"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[LocalBroker]:
    (tmp_path / "broker").mkdir()
    started = LocalBroker(tmp_path / "broker").start()
    yield started
    started.stop()


class ExampleDevice(Device):
    """An agent with the example's configuration; only the broker's port is the test's."""

    def write_config(self) -> None:
        text = (EXAMPLES / "agent.toml").read_text()
        assert '"mqtt://127.0.0.1:1883"' in text
        assert 'state_dir = "state"' in text
        text = text.replace("mqtt://127.0.0.1:1883", self.broker_url)
        self.config.write_text(text.replace('"state"', f'"{self.state_dir}"'))


@pytest.fixture
def device(tmp_path: Path, broker: LocalBroker) -> Iterator[Device]:
    device = ExampleDevice(tmp_path / "device", broker.url).start()
    yield device
    device.stop()


def edgeward(*arguments: str) -> str:
    """Run a command; everything it says where it fails."""
    command = [sys.executable, "-m", "agent", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pack_mean(folder: Path) -> Path:
    """The pack of README.md: the mean of four readings."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["readings"], ["mean"], axes=[1], keepdims=1)],
        "mean",
        [helper.make_tensor_value_info("readings", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, 1])],
    )
    opset = helper.make_opsetid("", 17)
    save(helper.make_model(graph, ir_version=8, opset_imports=[opset]), str(folder / "mean.onnx"))
    edgeward("pack", str(folder / "mean.onnx"), "--out", str(folder / "mean"))
    return folder / "mean"


def test_the_sensor_gets_an_answer_to_every_reading(
    device: Device, broker: LocalBroker, tmp_path: Path
) -> None:
    topics = ("--input-topic", "sensors/+/accel", "--output-topic", "predictions/{slot}/{1}")
    place = ("--slot", "mean", "--device", "press-7", "--broker", broker.url, "--probation", "0.2")
    edgeward("deploy", str(pack_mean(tmp_path)), *topics, *place)
    address = broker.url.removeprefix("mqtt://")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "sensor.py"), "--broker", address, "--count", "40"],
        capture_output=True,
        text=True,
        timeout=40,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("40 sent, 40 answered in ")
    assert "\n0 refused, 0 repeats; the last: [{" in done.stdout
    assert until(lambda: device.slot("mean").get("sent") == 40, "all are counted")


def test_the_configuration_is_right_as_it_stands(tmp_path: Path) -> None:
    said = edgeward("run", "--check", "--config", str(EXAMPLES / "agent.toml"))
    assert said.startswith("ok: device press-7, link mqtt://127.0.0.1:1883")


def test_an_example_stays_short() -> None:
    assert len((EXAMPLES / "sensor.py").read_text().splitlines()) < 80
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert files == {"agent.toml", "sensor.py"}, "give the new one a test here"
