"""The scripts to beat answer as they should, over a real broker."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from bench import driver, prepare
from bench.broker import Broker
from bench.driver import OUTPUT_TOPIC, Driver
from bench.models import build_models
from bench.systems import Job, Script
from tests.brokers import need

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and messages; no packs, which scripts do not know."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in ("models", "messages"):
        (folder / name).mkdir()
    for name, model in build_models(folder).items():
        for version in prepare.VERSIONS[name]:
            target = folder / "models" / f"{name}-{version}.onnx"
            target.write_bytes(model.file.read_bytes())
        prepare.write_messages(folder / "messages" / f"{name}.bin", model)
    return folder


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    need("settings")
    with Broker(tmp_path, no_delay=True) as running:
        yield running


@pytest.mark.parametrize("file", ["plain.py", "expert.py"])
@pytest.mark.parametrize(("model", "qos"), [("tab", 0), ("tab", 1), ("kws", 1), ("img", 0)])
def test_every_answer_of_a_script_is_right(
    prepared: Path, broker: Broker, tmp_path: Path, file: str, model: str, qos: int
) -> None:
    load = Driver(driver.build(tmp_path), broker.port, qos, prepared / "messages" / f"{model}.bin")
    probing = load.start_first(100, 3000)
    script = Script(file, Job(prepared, tmp_path, broker.port, model, qos))
    try:
        assert load.finish(probing).answered
        load.window(1, 20)
        report = load.window(8, 64)
    finally:
        script.stop()
    assert (report.answered, report.wrong, report.duplicates) == (64, 0, 0)


@pytest.mark.parametrize("file", ["plain.py", "expert.py"])
def test_a_script_changes_its_model_while_it_serves(
    prepared: Path, broker: Broker, tmp_path: Path, file: str
) -> None:
    versions: list[str] = []
    changed = threading.Event()

    def on_message(client: Any, userdata: Any, message: Any) -> None:
        versions.append(json.loads(message.payload)["model_version"])
        if versions[-1] == "2":
            changed.set()

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_message = on_message
    client.connect("127.0.0.1", broker.port)
    client.subscribe(OUTPUT_TOPIC)
    client.loop_start()
    load = Driver(driver.build(tmp_path), broker.port, 0, prepared / "messages" / "tab.bin")
    probing = load.start_first(100, 3000)
    script = Script(file, Job(prepared, tmp_path, broker.port, "tab", 0))
    try:
        load.finish(probing)
        sending = load.start_rate(200, 2000, drain_ms=100)
        script.order_new()
        assert changed.wait(20)
        sending.terminate()
        sending.communicate()
    finally:
        script.stop()
        client.disconnect()
        client.loop_stop()
    assert versions == sorted(versions)
    assert versions[0] == "1"


def test_the_tuned_script_outlives_a_bad_message(
    prepared: Path, broker: Broker, tmp_path: Path
) -> None:
    load = Driver(driver.build(tmp_path), broker.port, 0, prepared / "messages" / "kws.bin")
    tab = Driver(load.command, broker.port, 0, prepared / "messages" / "tab.bin")
    probing = tab.start_first(100, 3000)
    script = Script("expert.py", Job(prepared, tmp_path, broker.port, "tab", 0))
    try:
        tab.finish(probing)
        assert load.window(1, 2, drain_ms=200).answered == 0
        assert tab.window(1, 5).answered == 5
    finally:
        script.stop()
