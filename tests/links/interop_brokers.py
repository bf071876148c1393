"""Every broker that this machine has, each started alone in an empty folder on free ports.

Besides mosquitto and amqtt: `apt-get install rabbitmq-server ejabberd`, and aedes by
`npm install aedes` in a folder that EDGEWARD_AEDES names.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.links.dialing import TlsFiles
from tests.brokers import MOSQUITTO, LocalBroker, free_port, wait_for_port
from tests.certificates import make_certificates

START_WITHIN_S = 40.0
_RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_EJABBERD = Path("/usr/sbin/ejabberdctl")


class Absent(Exception):
    """This machine does not have the broker."""


@dataclass(frozen=True)
class Access:
    """How a broker is reached.

    Args:
        release: Its version.
        url: For the link.
        port: Plain MQTT, for the witness.
        link: More `LinkOptions`.
        session: More `ConnectOptions`.
        speaks_5: The witness may use MQTT 5.
    """

    release: str
    url: str
    port: int
    link: dict[str, Any] = field(default_factory=dict)
    session: dict[str, Any] = field(default_factory=dict)
    speaks_5: bool = True


@contextmanager
def _mosquitto(
    folder: Path,
    kind: str = "url",
    version: int = 5,
    mutual: bool = False,
) -> Iterator[Access]:
    if MOSQUITTO is None:
        raise Absent("mosquitto is not installed")
    certificates = folder / "certificates"
    certificates.mkdir()
    make_certificates(certificates)
    broker = LocalBroker(
        folder,
        tls=certificates if kind == "tls_url" else None,
        mutual_tls=mutual,
        websockets=kind == "ws_url",
    ).start()
    files = TlsFiles(ca=certificates / "ca.pem")
    if mutual:
        files = TlsFiles(files.ca, certificates / "client.pem", certificates / "client.key")
    try:
        yield Access(
            _first_line([MOSQUITTO, "-h"]).split()[-1],
            getattr(broker, kind),
            broker.port,
            {"tls": files},
            {"version": version},
        )
    finally:
        broker.stop()


@contextmanager
def _amqtt(folder: Path) -> Iterator[Access]:
    if importlib.util.find_spec("amqtt") is None:
        raise Absent("amqtt is not installed")
    port = free_port()
    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    (folder / "amqtt.json").write_text(json.dumps(config))  # JSON is YAML
    script = "from amqtt.scripts.broker_script import main; main()"
    command = [sys.executable, "-c", script, "-c", str(folder / "amqtt.json")]
    with _running(command, folder, port):
        release = importlib.metadata.version("amqtt")
        yield Access(release, f"mqtt://127.0.0.1:{port}", port, speaks_5=False)


_AEDES = """
const { Aedes } = require('aedes');
const net = require('net');
Aedes.createBroker().then((broker) => {
  net.createServer(broker.handle).listen(Number(process.argv[2]), '127.0.0.1');
});
"""


@contextmanager
def _aedes(folder: Path) -> Iterator[Access]:
    home = Path(os.environ.get("EDGEWARD_AEDES", "/nonexistent")) / "node_modules"
    node = shutil.which("node")
    if node is None or not (home / "aedes").is_dir():
        raise Absent("no aedes in the folder that EDGEWARD_AEDES names")
    port = free_port()
    script = folder / "broker.js"
    script.write_text(_AEDES)
    with _running([node, str(script), str(port)], folder, port, NODE_PATH=str(home)):
        release = json.loads((home / "aedes" / "package.json").read_text())["version"]
        yield Access(release, f"mqtt://127.0.0.1:{port}", port, speaks_5=False)


@contextmanager
def _rabbitmq(folder: Path) -> Iterator[Access]:
    if not _RABBITMQ.exists():
        raise Absent("rabbitmq-server is not installed")
    port, epmd = free_port(), free_port()
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{free_port()}\n"
        f"mqtt.listeners.tcp.1 = 127.0.0.1:{port}\n"
        "mqtt.allow_anonymous = true\n"
    )
    (folder / "enabled_plugins").write_text("[rabbitmq_mqtt].\n")
    settings = {
        "NODENAME": "interop@localhost",
        "CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "MNESIA_BASE": str(folder / "mnesia"),
        "LOG_BASE": str(folder / "log"),
        "LOGS": "-",
        "DIST_PORT": str(free_port()),
        "PID_FILE": str(folder / "pid"),
    }
    variables = {f"RABBITMQ_{name}": value for name, value in settings.items()}
    variables["ERL_EPMD_PORT"] = str(epmd)
    with (
        _running(["epmd", "-port", str(epmd)], folder, epmd),
        _running([str(_RABBITMQ)], folder, port, **variables),
    ):
        release = _debian_release("rabbitmq-server")
        yield Access(release, f"mqtt://127.0.0.1:{port}", port, speaks_5=False)


@contextmanager
def _ejabberd(folder: Path) -> Iterator[Access]:
    if not _EJABBERD.exists():
        raise Absent("ejabberd is not installed")
    port = free_port()
    config = {
        "hosts": ["localhost"],
        "auth_method": ["anonymous"],
        "anonymous_protocol": "both",
        "allow_multiple_connections": True,
        "listen": [{"port": port, "ip": "127.0.0.1", "module": "mod_mqtt"}],
        "modules": {"mod_mqtt": {}},
    }
    (folder / "ejabberd.yml").write_text(json.dumps(config))
    command = ["erl", "-noinput", "-mnesia", "dir", f'"{folder}/mnesia"', "-s", "ejabberd"]
    variables = {
        "EJABBERD_CONFIG_PATH": str(folder / "ejabberd.yml"),
        "EJABBERD_LOG_PATH": str(folder / "ejabberd.log"),
        "ERL_LIBS": ":".join(map(str, Path("/usr/lib").glob("*-linux-gnu"))),
    }
    with _running(command, folder, port, **variables):
        # It wants a user at a host, whoever that is.
        session = {"username": "device@localhost", "password": b"any"}
        release = _debian_release("ejabberd")
        yield Access(release, f"mqtt://127.0.0.1:{port}", port, session=session)


@contextmanager
def _running(command: list[str], folder: Path, port: int, **variables: str) -> Iterator[None]:
    environment = os.environ | {"HOME": str(folder)} | variables
    with (folder / "output.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, cwd=folder
        )
    try:
        wait_for_port(port, process, START_WITHIN_S)
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=START_WITHIN_S)
        process.kill()
        process.wait()


def _first_line(command: list[str]) -> str:
    output = subprocess.run(command, capture_output=True, text=True, check=False)
    return (output.stdout + output.stderr).splitlines()[0]


def _debian_release(package: str) -> str:
    return _first_line(["dpkg-query", "-W", "-f", "${Version}", package])


Starter = Callable[[Path], AbstractContextManager[Access]]

BROKERS: Mapping[str, Starter] = {
    "mosquitto, MQTT 3.1.1": lambda folder: _mosquitto(folder, version=4),
    "mosquitto, MQTT 5": _mosquitto,
    "mosquitto, TLS": lambda folder: _mosquitto(folder, "tls_url"),
    "mosquitto, mutual TLS": lambda folder: _mosquitto(folder, "tls_url", mutual=True),
    "mosquitto, WebSocket": lambda folder: _mosquitto(folder, "ws_url"),
    "RabbitMQ": _rabbitmq,
    "ejabberd": _ejabberd,
    "aedes": _aedes,
    "amqtt": _amqtt,
}
