"""A large pack over a link that drops every few seconds, is throttled, and has its address expire.

`python -m tests.scenarios.long_download --mib 200` serves a pack of that size to a real agent. Each
connection is slow and is cut after some seconds, the server is then away for a moment, and half-way
the address expires; a deployment with a fresh one follows once the agent says so. The agent is then
killed twice. Prints one JSON object: how long it took, what was sent beyond the pack, and the most
memory of daemon and fetcher.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.documents.manifest import Manifest, PackFile
from tests.brokers import LocalBroker
from tests.daemon.http_source import Answer, Asked, HttpSource, ranged
from tests.scenarios.conftest import Packs
from tests.scenarios.device import Device, client, desired, until

PIECE_BYTES = 64 * 1024
WITHIN_S = 3600.0


def large_pack(packs: Packs, mib: int) -> tuple[str, Path]:
    """A small model and a file of that many MiB beside it; its id and folder."""
    folder = packs.affine(1, name="large").directory
    with (folder / "weights.bin").open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    digest = hashlib.sha256((folder / "weights.bin").read_bytes()).hexdigest()
    path = folder / "manifest.json"
    manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    added = PackFile(f"sha256:{digest}", mib << 20)
    manifest = msgspec.structs.replace(manifest, files={**manifest.files, "weights.bin": added})
    path.write_bytes(msgspec.json.encode(manifest))
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}", folder


class Link:
    """A server behind a bad line.

    Args:
        folder: What it serves.
        mib_s: What one connection carries in a second.
        drops_after_s: Between which times a connection is cut; the server is then away for as long
            as `away_s` says.
        expires_after: So many bytes are sent before the address expires.
    """

    def __init__(
        self,
        folder: Path,
        mib_s: float,
        drops_after_s: tuple[float, float],
        away_s: float,
        expires_after: int,
    ) -> None:
        files = [path for path in folder.rglob("*") if path.is_file()]
        self._files = {str(path.relative_to(folder)): path.read_bytes() for path in files}
        self._mib_s = mib_s
        self._drops_after_s = drops_after_s
        self._away_s = away_s
        self._chance = random.Random(6)
        self._away_until = 0.0
        self._lock = threading.Lock()
        self.expires_after = expires_after
        self.good = 1
        self.sent_bytes = self.cuts = self.refused = 0

    def play(self, asked: Asked) -> Answer:
        path, _, query = asked.path.partition("?")
        if time.monotonic() < self._away_until:
            return Answer(503)
        if query != f"sig={self.good}" or (self.good == 1 and self.sent_bytes > self.expires_after):
            self.refused += 1
            return Answer(403)
        answer = ranged(self._files[path.lstrip("/")], asked, ETag='"1"')
        body, answer.body = answer.body, b""
        answer.headers = {**answer.headers, "Content-Length": str(len(body))}
        answer.more = self._slowly(body)
        return answer

    def _slowly(self, body: bytes) -> Iterator[bytes]:
        began = time.monotonic()
        cut_at = began + self._chance.uniform(*self._drops_after_s)
        pause = threading.Event()
        for at in range(0, len(body), PIECE_BYTES):
            now = time.monotonic()
            if now >= cut_at:
                self.cuts += 1
                self._away_until = now + self._away_s
                return
            if self.good == 1 and self.sent_bytes > self.expires_after:
                return
            pause.wait(max(0.0, began + at / (self._mib_s * (1 << 20)) - now))
            piece = body[at : at + PIECE_BYTES]
            with self._lock:
                self.sent_bytes += len(piece)
            yield piece


class Memory:
    """The most that a process and its fetchers have had resident, in MiB."""

    def __init__(self, pid: int) -> None:
        self.daemon_mib = self.fetcher_mib = 0.0
        self.pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            pid = self.pid
            self.daemon_mib = max(self.daemon_mib, _peak_mib(pid))
            with contextlib.suppress(OSError):
                listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                for child in listed:
                    if b"agent.daemon.fetcher" in Path(f"/proc/{child}/cmdline").read_bytes():
                        self.fetcher_mib = max(self.fetcher_mib, _peak_mib(int(child)))


def _peak_mib(pid: int) -> float:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024
    return 0.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios.long_download")
    parser.add_argument("--mib", type=int, default=200)
    parser.add_argument("--mib-s", type=float, default=4.0, help="of each connection")
    parser.add_argument("--drops-after-s", type=float, nargs=2, default=(2.0, 6.0))
    parser.add_argument("--away-s", type=float, default=1.0)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--kills", type=int, default=2)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        for part in ("packs", "broker"):
            (folder / part).mkdir()
        pack, directory = large_pack(Packs(folder / "packs"), options.mib)
        broker = LocalBroker(folder / "broker", persistent=True).start()
        stack.callback(broker.stop)
        extra = f"[fetch]\nconnections = {options.connections}\n[limits]\nworker_memory_mb = 1024\n"
        device = Device(folder / "device", broker.url, extra=extra).start()
        stack.callback(device.stop)
        half = (options.mib << 20) // 2
        drops = (options.drops_after_s[0], options.drops_after_s[1])
        link = Link(directory, options.mib_s, drops, options.away_s, half)
        source = stack.enter_context(HttpSource(link.play))
        user = stack.enter_context(client(broker.url))

        def deploy(deployment: str) -> None:
            slot = {
                "pack": pack,
                "from": f"{source.url}/?sig={link.good}",
                "input": {"topic": "in/+"},
                "output": {"topic": "out/{1}"},
                "rollout": {"probation_s": 0},
            }
            document = desired(deployment, vib=slot)
            user.publish("edgeward/press-7/desired", document, retain=True)

        def expired() -> bool:
            return (device.slot("vib").get("error") or {}).get("code") == "source_expired"

        def kill_at(here_mib: float) -> None:
            def far_enough() -> bool:
                progress = device.slot("vib").get("progress") or {}
                return bool(progress.get("done_bytes", 0) >= here_mib * (1 << 20))

            until(far_enough, f"{here_mib} MiB are here", within_s=WITHIN_S, log=device)
            device.kill()
            device.start()
            assert device.process is not None
            memory.pid = device.process.pid

        assert device.process is not None
        memory, began = Memory(device.process.pid), time.monotonic()
        stack.callback(memory.stop)
        idle_mib = _peak_mib(device.process.pid)
        deploy("one")
        until(expired, "the address has expired", within_s=WITHIN_S, log=device)
        at_expiry = device.slot("vib")["progress"]
        link.good = 2
        deploy("two")
        for number in range(1, options.kills + 1):
            kill_at(options.mib * (0.5 + 0.5 * number / (options.kills + 1)))
        until(
            lambda: device.slot("vib").get("state") == "active",
            "the pack serves",
            within_s=WITHIN_S,
            log=device,
        )
        took_s = time.monotonic() - began
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        print(
            json.dumps(
                {
                    "pack_mib": round(size / (1 << 20), 1),
                    "connections": options.connections,
                    "seconds": round(took_s, 1),
                    "cuts": link.cuts,
                    "kills": options.kills,
                    "refused_as_expired": link.refused,
                    "here_at_expiry_mib": round(at_expiry["done_bytes"] / (1 << 20), 1),
                    "fetched_again_bytes": link.sent_bytes - size,
                    "daemon_idle_mib": round(idle_mib, 1),
                    "daemon_peak_mib": round(memory.daemon_mib, 1),
                    "fetcher_peak_mib": round(memory.fetcher_mib, 1),
                }
            )
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
