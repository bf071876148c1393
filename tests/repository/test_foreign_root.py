"""From a fresh system to a running, managed device: by the script, and by the page that says how.

The page's own commands are run, in a fresh root file system of another Debian release. Only systemd
is played, since nothing boots there: a stand-in starts the agent as the unit says.
"""

from __future__ import annotations

import contextlib
import json
import queue
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from onnx import TensorProto, helper
from paho.mqtt import publish

from tests.brokers import LocalBroker
from tests.repository import foreign_root
from tests.repository.commands import REPOSITORY
from tests.repository.foreign_root import ForeignRoot
from tests.repository.markdown import read

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

DEVICE = "press-7"
# What systemd does for the service before it starts it, and the start itself.
AS_THE_SERVICE = """
install -d -m 0755 -o edgeward -g edgeward /run/edgeward
install -d -m 0700 -o edgeward -g edgeward /var/lib/edgeward
command=$(sed -n 's/^ExecStart=//p' /etc/systemd/system/edgeward.service)
exec setpriv --reuid edgeward --regid edgeward --clear-groups --no-new-privs \\
    env -i PATH=/usr/bin:/bin RUNTIME_DIRECTORY=/run/edgeward STATE_DIRECTORY=/var/lib/edgeward \\
    $command
"""
# The page's commands need these three; each does what it would on a device, as far as can be here.
STAND_INS = {
    "sudo": '[ "$1" != -u ] || { user=$2; shift 2; exec runuser -u "$user" -- "$@"; }\nexec "$@"',
    "nano": (
        f'exec sed -i -e "s|^url = .*|url = \\"$BROKER\\"|" '
        f'-e "s|^#device_id.*|device_id = \\"{DEVICE}\\"|" "$1"'
    ),
    # `enable` is the real one; starting is for the test, which then sees what systemd would see.
    "systemctl": "case $1 in enable) exec /usr/bin/systemctl enable edgeward ;; esac",
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForeignRoot]:
    root = foreign_root.bootstrap(tmp_path_factory.mktemp("fresh") / "root")
    yield root
    shutil.rmtree(root.path)


@pytest.fixture
def device(fresh: ForeignRoot, dist: Path, tmp_path: Path) -> Iterator[ForeignRoot]:
    """A fresh device with the bundle unpacked in its /tmp."""
    root = fresh.copy(tmp_path / "root")
    (bundle,) = dist.glob("*-device.tar.gz")
    with tarfile.open(bundle) as archive:
        archive.extractall(root.path / "tmp", filter="data")
    (folder,) = (root.path / "tmp").glob("edgeward-*-device")
    folder.rename(root.path / "tmp/bundle")
    yield root
    shutil.rmtree(root.path)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[LocalBroker]:
    folder = tmp_path / "broker"
    folder.mkdir()
    running = LocalBroker(folder).start()
    yield running
    running.stop()


@contextlib.contextmanager
def _watching(broker: LocalBroker, topic: str) -> Iterator[queue.Queue[str]]:
    """The payloads that arrive on one topic."""
    heard: queue.Queue[str] = queue.Queue()
    granted = threading.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_subscribe = lambda *_: granted.set()
    client.on_message = lambda _client, _data, message: heard.put(message.payload.decode())
    client.on_connect = lambda c, *_: c.subscribe(topic, qos=1)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    try:
        assert granted.wait(20), f"the broker never granted {topic}"
        yield heard
    finally:
        client.disconnect()
        client.loop_stop()


@contextlib.contextmanager
def _service(device: ForeignRoot) -> Iterator[subprocess.Popen[str]]:
    """The agent, started as the unit starts it."""
    process = subprocess.Popen(
        device.command("sh", "-c", AS_THE_SERVICE),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def _until(heard: queue.Queue[str], wanted: str, process: subprocess.Popen[str]) -> None:
    """Wait for a status; say what the agent said where it does not come."""
    try:
        while heard.get(timeout=30) != wanted:
            pass
    except queue.Empty:
        process.kill()
        said, _ = process.communicate(timeout=20)
        pytest.fail(f"the device was never {wanted}; it said:\n{said[-3000:]}")


def _edgeward(*arguments: str) -> None:
    """The command, on this machine, which is the workstation of the story."""
    command = [sys.executable, "-m", "agent", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that doubles its input, packed."""
    folder = tmp_path_factory.mktemp("twice")
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in ("x", "y")]
    node = helper.make_node("Add", ["x", "x"], ["y"])
    graph = helper.make_graph([node], "twice", tensors[:1], tensors[1:])
    opset = [helper.make_opsetid("", 15)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    (folder / "twice.onnx").write_bytes(model.SerializeToString())
    _edgeward("pack", str(folder / "twice.onnx"), "--out", str(folder / "pack"))
    return folder / "pack"


def _predicts(broker: LocalBroker, pack: Path) -> None:
    """A pack given to the device from afar answers a sensor's message."""
    topics = ("--input-topic", "sensors/+", "--output-topic", "predictions/{1}")
    where = ("--broker", broker.url, "--device", DEVICE)
    _edgeward("deploy", str(pack), "--slot", "twice", *topics, *where, "--timeout", "50")
    with _watching(broker, "predictions/7") as heard:
        tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, -2.0]}
        message = json.dumps({"id": "a", "inputs": [tensor]})
        publish.single("sensors/7", message, qos=1, hostname="127.0.0.1", port=broker.port)
        answer = json.loads(heard.get(timeout=30))
    assert (answer["id"], answer["outputs"][0]["data"]) == ("a", [3.0, -4.0])


def _serves(device: ForeignRoot, broker: LocalBroker, pack: Path) -> None:
    """The agent runs as the service would, can be reached, serves, and answers on the device."""
    with _watching(broker, f"edgeward/{DEVICE}/status") as heard, _service(device) as process:
        _until(heard, "online", process)
        _predicts(broker, pack)
        status = json.loads(device.check("edgeward", "status", "--json"))
        assert status["slots"]["twice"]["state"] == "active", status


def _left_behind(device: ForeignRoot) -> list[str]:
    # /run is empty after a boot, which does not happen here.
    places = ("etc", "opt", "usr", "var/lib", "home", "root")
    found = [
        path
        for place in places
        for path in (device.path / place).rglob("*")
        if "edgeward" in path.name
    ]
    return [str(path.relative_to(device.path)) for path in found]


def test_the_script_makes_a_fresh_system_a_device_and_leaves_nothing_when_undone(
    device: ForeignRoot, broker: LocalBroker, pack: Path
) -> None:
    install = ["sh", "/tmp/bundle/install.sh"]
    options = ["--extras", "onnx,cli", "--device-id", DEVICE, "--broker", broker.url]
    device.check(*install, *options, within_s=240)
    assert device.check("id", "-un", "edgeward").strip() == "edgeward"
    wanted = device.path / "etc/systemd/system/multi-user.target.wants/edgeward.service"
    assert wanted.is_symlink()
    checked = device.run("systemd-analyze", "verify", "--man=no", "edgeward.service")
    assert "edgeward" not in checked.stdout + checked.stderr
    _serves(device, broker, pack)

    again = device.check(*install, *options)
    assert again.count("already there") + again.count("Already there") == 3, again
    _serves(device, broker, pack)

    device.check(*install, "--uninstall")
    assert sorted(_left_behind(device)) == [
        "etc/edgeward",
        "etc/sysusers.d/edgeward.conf",
        "var/lib/edgeward",
    ]
    device.check(*install, "--purge")
    assert _left_behind(device) == []
    assert device.run("id", "edgeward").returncode != 0


def test_the_page_makes_a_fresh_system_a_device(
    device: ForeignRoot, broker: LocalBroker, pack: Path
) -> None:
    for name, body in STAND_INS.items():
        program = device.path / "usr/local/sbin" / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    # Where a person would type Y.
    (device.path / "etc/apt/apt.conf.d/yes").write_text('APT::Get::Assume-Yes "true";\n')
    page = read(REPOSITORY / "docs/install.md", "docs/install.md")
    blocks = [b.text for b in page.blocks if b.section == "By hand" and b.language == "sh"]
    assert len(blocks) == 5
    # The last line asks the running agent, which `_serves` does.
    script = "".join(blocks).replace("sudo edgeward status\n", "")
    shell = f"set -eux; cd /tmp/bundle; BROKER={shlex.quote(broker.url)}; export BROKER\n{script}"
    device.check("sh", "-c", shell, within_s=300)
    _serves(device, broker, pack)
