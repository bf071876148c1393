"""The demo's device and console: the real agent in a process of its own, and who deploys to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.author import publish
from agent.author.broker import Broker, BrokerOptions
from agent.author.offer import open_pack
from agent.demo.brokers import end
from agent.documents.deployment import Input, Output, Rollout, Slot
from agent.errors import AgentError, WorkerTimedOut
from agent.links.local import ask

DEVICE = "demo-1"
PREFIX = f"edgeward/{DEVICE}/"
WITHIN_S = 30.0


@dataclass
class DemoDevice:
    """`edgeward run` with its files below one folder."""

    folder: Path
    port: int
    version: str = "auto"
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        config = self.folder / "agent.toml"
        config.write_text(
            f'device_id = "{DEVICE}"\nstate_dir = "{self.folder / "state"}"\n'
            f'[link]\nurl = "mqtt://127.0.0.1:{self.port}"\nkeep_alive_s = 10\n'
            f'version = "{self.version}"\n'
        )
        with (self.folder / "agent.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent", "run", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: self.status() is not None, "the agent answers")

    def status(self) -> dict[str, Any] | None:
        try:
            return ask(self.folder / "state" / "agent.sock", {"command": "status"}, 2.0)
        except AgentError:
            return None

    def connected(self) -> bool:
        status = self.status() or {}
        buses = [slot.get("bus", {}) for slot in status.get("slots", {}).values()]
        return all(each.get("state") == "connected" for each in (status.get("link", {}), *buses))

    def worker_pid(self, slot: str) -> int | None:
        status = self.status() or {}
        pid = status.get("slots", {}).get(slot, {}).get("worker_pid")
        return int(pid) if pid else None

    def kill_worker(self, slot: str) -> bool:
        """Kill the slot's worker as the kernel would; True when another took its place."""
        before = self.worker_pid(slot)
        if before is None:
            return False
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: self.worker_pid(slot) not in (None, before), "another worker serves")
        return True

    def stop(self) -> None:
        if self.process is not None:
            end(self.process, within_s=15)


@dataclass
class Console:
    """Deploys packs over the broker, as `edgeward deploy` does."""

    port: int
    on_event: Callable[[publish.Event], None]
    verdicts: list[publish.Verdict] = field(default_factory=list)

    def deploy(self, directory: Path, slot: str, source: str, *, check: bool = True) -> str:
        """Deploy a pack to a slot and return how it ended."""
        offer = open_pack(directory, check=check)
        target = Slot(
            pack=offer.id,
            source="mqtt:",
            input=Input(f"sensors/+/{source}", qos=1),
            output=Output("predictions/{slot}/{1}", qos=1),
            rollout=Rollout(probation_s=2.0),
        )
        order = publish.Order(
            device=DEVICE,
            prefix=PREFIX,
            slot=slot,
            target=target,
            deployment=publish.new_deployment_id(slot, offer),
            timeout_s=WITHIN_S,
        )
        options = BrokerOptions(url=f"mqtt://127.0.0.1:{self.port}")
        with Broker(options) as broker:
            for event in publish.deploy(broker, offer, order):
                self.on_event(event)
                if isinstance(event, publish.Verdict):
                    self.verdicts.append(event)
        return self.verdicts[-1].state


def wait_until(condition: Callable[[], Any], what: str, within_s: float = WITHIN_S) -> None:
    """Ask again and again until something in another process is so.

    Raises:
        WorkerTimedOut: It was not within the time.
    """
    deadline = time.monotonic() + within_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise WorkerTimedOut(f"the demo waited {within_s:g} s until {what}")
        pause.wait(0.05)
