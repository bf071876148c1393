"""A small device that speaks the real protocol over a real broker, and a pack to give it."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from agent.author.broker import Broker, BrokerOptions, Received
from agent.documents.deployment import Deployment
from agent.documents.manifest import Manifest, PackFile, Tensor, Tolerance, Variant
from agent.documents.report import Failure, Report, SlotPhase, SlotReport
from agent.wire import blocks

CONTENT = bytes(range(256)) * 1024


def write_pack(folder: Path, content: bytes = CONTENT) -> Path:
    tensor = Tensor("x", "FP32", (1,))
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    manifest = Manifest(
        schema=1,
        name="model",
        version="1.2",
        inputs=(tensor,),
        outputs=(tensor,),
        variants=(Variant("a", "model.onnx", "onnx", (tensor,), (tensor,), Tolerance(0)),),
        files={"model.onnx": PackFile(digest, len(content))},
    )
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return folder


@dataclass
class Device:
    """A device as far as a deployment sees it: takes the document, pulls the pack, reports."""

    url: str
    name: str
    # What it says of the slot once it has the pack, in this order.
    answers: list[tuple[SlotPhase, Failure | None]] = field(
        default_factory=lambda: [("verifying", None), ("probation", None), ("active", None)]
    )
    refuses: Failure | None = None
    on_desired: Callable[[Device, Deployment], None] = lambda device, desired: None
    deployments: list[Deployment] = field(default_factory=list)
    waiting: list[Deployment] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    packs: set[str] = field(default_factory=set)

    def __enter__(self) -> Device:
        self.prefix = f"edgeward/{self.name}/"
        self.broker = Broker(BrokerOptions(self.url)).__enter__()
        topics = ("desired", blocks.DATA, blocks.REFUSED)
        self.broker.subscribe([(self.prefix + topic, 1) for topic in topics])
        self.broker.publish(f"{self.prefix}status", b"online", retain=True, wait=True)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._live)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join(timeout=10)
        self.broker.close()

    def _live(self) -> None:
        while not self.stopped.is_set():
            self._hear()
            if self.waiting:
                self._obey(self.waiting.pop(0))

    def _hear(self) -> Received | None:
        message = self.broker.next(0.05)
        if message is not None and message.topic == f"{self.prefix}desired":
            self.waiting.append(msgspec.json.decode(message.payload, type=Deployment))
            return None
        return message

    def _obey(self, desired: Deployment) -> None:
        self.deployments.append(desired)
        self.on_desired(self, desired)
        if self.refuses is not None:
            self.report(Report(1, "1", self.name, refused=self.refuses))
            return
        for name, slot in desired.slots.items():
            if slot.source == "mqtt:" and slot.pack not in self.packs:
                self._say(desired, name, slot.pack, "fetching", None)
                manifest = self._fetch(slot.pack, "manifest.json", slot.pack)
                if not manifest:
                    return
                self.packs.add(slot.pack)
                for file, kept in msgspec.json.decode(manifest, type=Manifest).files.items():
                    self.files[file] = self._fetch(slot.pack, file, kept.digest)
        for name, slot in desired.slots.items():
            for state, error in self.answers:
                self._say(desired, name, slot.pack, state, error)

    def _say(
        self, desired: Deployment, slot: str, pack: str, state: SlotPhase, error: Failure | None
    ) -> None:
        told = SlotReport(state=state, wanted=pack, error=error)
        slots = {name: told if name == slot else SlotReport("active") for name in desired.slots}
        self.report(Report(1, "1", self.name, deployment=desired.deployment, slots=slots))

    def report(self, report: Report) -> None:
        self.broker.publish(
            f"{self.prefix}reported", msgspec.json.encode(report), retain=True, wait=True
        )

    def _fetch(self, pack: str, file: str, digest: str) -> bytes:
        transfer = blocks.Transfer(
            pack=pack, file=file, digest=digest, size=None, max_bytes=10**7, now=time.monotonic()
        )
        received: dict[int, bytes] = {}
        while not transfer.complete and not self.stopped.is_set():
            request = transfer.next_request(time.monotonic())
            if request is not None:
                data = blocks.encode_request(request)
                self.broker.publish(self.prefix + blocks.REQUEST, data)
            message = self._hear()
            if message is not None and message.topic == self.prefix + blocks.DATA:
                block = blocks.decode_block(message.payload)
                if transfer.received(block, time.monotonic()):
                    received[block.number] = bytes(block.data)
        return b"".join(received[number] for number in sorted(received))
