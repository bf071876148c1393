"""What is measured: the agent, and the two scripts one would write by hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from agent.documents.deployment import Deployment, Input, Output, Rollout, Slot
from agent.errors import LinkError
from agent.links.local import ask
from bench.driver import OUTPUT_TOPIC
from bench.load import publish_once

REPOSITORY = Path(__file__).parent.parent
INPUT_FILTER = "bench/in/+"
SLOT = "bench"
DEVICE = "bench"
WITHIN_S = 60.0
# What brings a script back after its death: a supervisor such as systemd, which waits this long.
SCRIPT_RESTART_S = 0.1


class SystemFailed(Exception):
    """A system did not do what it was started for."""


@dataclass(frozen=True)
class Job:
    """One start of a system.

    Args:
        prepared: What `bench.prepare` has made.
        folder: An empty folder of this start.
        port: The broker's.
        model: `tab`, `kws` or `img`.
        qos: Of input and output.
    """

    prepared: Path
    folder: Path
    port: int
    model: str
    qos: int


class Running(Protocol):
    """A started system; `root` is the process at the top of its tree."""

    root: int

    def crash(self) -> float:
        """Kill what holds the model; returns when that was, on the monotonic clock."""

    def order_new(self) -> float:
        """Ask for version 2 of the model; returns when that was, on the monotonic clock."""

    def stop(self) -> None:
        """End it in order."""


@dataclass(frozen=True)
class System:
    """A system by name; `start` returns as soon as its process has been started."""

    name: str
    start: Callable[[Job], Running]


# -- the scripts ----------------------------------------------------------------------------------


class Script:
    """A running script of `examples/scripts`."""

    def __init__(self, file: str, job: Job) -> None:
        self._job = job
        self._link = job.folder / "model.onnx"
        self._point_at("1")
        self._command = [
            sys.executable,
            str(REPOSITORY / "examples" / "scripts" / file),
            str(self._link),
            f"127.0.0.1:{job.port}",
            INPUT_FILTER,
            OUTPUT_TOPIC,
            f"--qos={job.qos}",
            *(() if job.model == "tab" else ("--raw",)),
        ]
        self._start()

    def _start(self) -> None:
        self._process = spawn(self._command, self._job.folder / "log")
        self.root = self._process.pid

    def _point_at(self, version: str) -> None:
        new = self._link.with_name("new.onnx")
        new.symlink_to(self._job.prepared / "models" / f"{self._job.model}-{version}.onnx")
        new.replace(self._link)

    def crash(self) -> float:
        at = time.monotonic()
        self._process.kill()
        self._process.wait()
        time.sleep(SCRIPT_RESTART_S)
        self._start()
        return at

    def order_new(self) -> float:
        self._point_at("2")
        at = time.monotonic()
        self._process.send_signal(signal.SIGHUP)
        return at

    def stop(self) -> None:
        end(self._process)


# -- the agent ------------------------------------------------------------------------------------


class Agent:
    """A running `edgeward run`, whose state folder has the pack and knows that it was proven."""

    def __init__(self, job: Job, state: Path) -> None:
        self._job = job
        self._state = state
        config = job.folder / "agent.toml"
        config.write_text(
            f'device_id = "{DEVICE}"\n'
            f'state_dir = "{state}"\n'
            f'[link]\nurl = "mqtt://127.0.0.1:{job.port}"\n'
            f'[fetch]\nroots = ["{job.prepared / "packs"}"]\n'
        )
        command = [sys.executable, "-m", "agent", "run", "--config", str(config)]
        self._process = spawn(command, job.folder / "log")
        self.root = self._process.pid

    def status(self) -> dict[str, Any]:
        """What the local socket says; empty while nothing listens there."""
        try:
            return ask(self._state / "agent.sock", {"command": "status"})
        except LinkError:
            return {}

    def deploy(self, version: str) -> float:
        """Publish a deployment of our slot, as `edgeward deploy` would."""
        packs = msgspec.json.decode((self._job.prepared / "prepared.json").read_bytes())["packs"]
        name = f"{self._job.model}-{version}"
        slot = Slot(
            pack=packs[name],
            input=Input(INPUT_FILTER, qos=1 if self._job.qos else 0),
            output=Output(OUTPUT_TOPIC, qos=1 if self._job.qos else 0),
            source=f"file://{self._job.prepared / 'packs' / name}",
            rollout=Rollout(probation_s=0),
        )
        document = Deployment(schema=1, deployment=name, slots={SLOT: slot})
        at = time.monotonic()
        publish_once(
            self._job.port, f"edgeward/{DEVICE}/desired", msgspec.json.encode(document), retain=True
        )
        return at

    def wait_until(self, what: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask until the status is as wanted.

        Raises:
            SystemFailed: It does not get there, with the last status.
        """
        deadline = time.monotonic() + WITHIN_S
        while not holds(status := self.status()):
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                log = (self._job.folder / "log").read_text(errors="replace")[-2000:]
                why = "it has ended" if ended else f"its status is {status}"
                raise SystemFailed(f"the agent is not {what}: {why}\n{log}")
            time.sleep(0.02)
        return status

    def crash(self) -> float:
        pid = self.status()["slots"][SLOT]["worker_pid"]
        at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return at

    def order_new(self) -> float:
        return self.deploy("2")

    def stop(self) -> None:
        end(self._process)


class Agents:
    """Starts agents whose pack is in the store; brings it there the first time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self, job: Job) -> Agent:
        proven = self._folder / f"{job.model}-qos{job.qos}"
        if not proven.is_dir():
            raise SystemFailed(f"{proven.name} was not deployed before")
        # Blobs and packs are hard links of each other.
        subprocess.run(["cp", "-a", str(proven), str(job.folder / "state")], check=True)
        return Agent(job, job.folder / "state")

    def bring_pack(self, job: Job) -> None:
        """Deploy a pack to an agent of its own and keep the state folder that it leaves."""
        state = self._folder / f"{job.model}-qos{job.qos}"
        if state.is_dir():
            return
        agent = Agent(job, state)
        try:
            agent.wait_until("there", bool)
            _deploy(job)
        finally:
            agent.stop()

    def start_idle(self, job: Job) -> Agent:
        """An agent that serves nothing."""
        agent = Agent(job, job.folder / "state")
        agent.wait_until("there", bool)
        return agent


def _deploy(job: Job) -> None:
    """Give version 1 to the agent, over the broker, as a person does.

    Raises:
        SystemFailed: The device did not take it; says what it said.
    """
    command = [
        *(sys.executable, "-m", "agent", "deploy", str(job.prepared / "packs" / f"{job.model}-1")),
        *("--slot", SLOT, "--device", DEVICE, "--broker", f"mqtt://127.0.0.1:{job.port}"),
        *("--input-topic", INPUT_FILTER, "--output-topic", OUTPUT_TOPIC),
        *("--qos", str(job.qos), "--probation", "0", "--timeout", str(WITHIN_S)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    if done.returncode != 0:
        raise SystemFailed(f"{job.model} could not be deployed: {done.stdout}{done.stderr}")


# -- processes ------------------------------------------------------------------------------------


def spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a system; what it prints goes to `log`."""
    environment = dict(os.environ)
    # An installed program finds its modules compiled.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with log.open("ab") as out:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=REPOSITORY,
            env=environment,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and make it."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def all_systems(agents: Agents) -> dict[str, System]:
    """The systems in the order in which they take their turns."""
    return {
        "agent": System("agent", agents.start),
        "expert": System("expert", lambda job: Script("expert.py", job)),
        "plain": System("plain", lambda job: Script("plain.py", job)),
    }
