"""Packs, brokers and devices for the stories."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from agent.author.pack import Packed, pack
from agent.author.spec import Spec, TensorSpec
from agent.documents.manifest import Pipeline, Window
from tests.brokers import Mosquitto
from tests.scenarios.device import Device
from tests.scenarios.models import Affine, write_affine, write_sum, write_treacherous


@dataclass(frozen=True)
class Packs:
    """Packs made on demand, once per test run."""

    folder: Path

    def affine(self, scale: float, offset: float = 0.0, *, name: str = "affine") -> Packed:
        """A pack whose model answers y = scale * x + offset, so that a prediction tells which."""
        out = self.folder / f"{name}-{scale:g}-{offset:g}"
        model = self.folder / f"{name}-{scale:g}-{offset:g}.onnx"
        if not model.exists():
            write_affine(model, Affine(scale, offset))
        return pack(model, out, name=name, version=f"{scale:g}.0", force=True)

    def treacherous(self, scale: float) -> Packed:
        """A pack that proves itself well, and whose input can make it hang, swell or give NaN."""
        out, model = self.folder / f"treacherous-{scale:g}", self.folder / "treacherous.onnx"
        write_treacherous(model, scale)
        spec = Spec(inputs=(TensorSpec("x", low=0.0, high=1.0),))
        return pack(model, out, name="treacherous", version=f"{scale:g}.0", spec=spec, force=True)

    def windowed(self, kind: Literal["sliding", "tumbling"], size: int) -> Packed:
        """A pack that adds up the readings of a window."""
        out, model = self.folder / f"{kind}-{size}", self.folder / f"sum-{size}.onnx"
        write_sum(model, size)
        spec = Spec(
            inputs=(TensorSpec("x", datatype="FP32", shape=(1,)),),
            pipeline=Pipeline(window=Window(kind, size)),
        )
        return pack(model, out, name=kind, version="1", spec=spec, force=True)


@pytest.fixture(scope="session")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Packs:
    return Packs(tmp_path_factory.mktemp("packs"))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    folder = tmp_path / "broker"
    folder.mkdir()
    started = Mosquitto(folder, persistent=True, settings=("max_queued_messages 100000",)).start()
    yield started
    started.stop()


MakeDevice = Callable[..., Device]


@pytest.fixture
def make_device(tmp_path: Path, broker: Mosquitto, packs: Packs) -> Iterator[MakeDevice]:
    made: list[Device] = []

    def make(**fields: object) -> Device:
        name = str(fields.pop("device_id", "press-7"))
        extra = f'[fetch]\nroots = ["{packs.folder}", "{tmp_path}"]\n{fields.pop("extra", "")}'
        device = Device(tmp_path / name, broker.url, name, extra, **fields)  # type: ignore[arg-type]
        made.append(device)
        return device

    yield make
    for device in made:
        device.stop()


@pytest.fixture
def device(make_device: MakeDevice) -> Device:
    return make_device().start()
