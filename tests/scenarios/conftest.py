"""Packs, brokers and devices for the stories."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from agent.author.pack import Packed, pack
from agent.author.spec import Spec, TensorSpec
from agent.documents.manifest import Pipeline, Window
from tests.brokers import LocalBroker
from tests.scenarios.device import Device
from tests.scenarios.models import Affine, write_affine, write_sum, write_treacherous


@dataclass(frozen=True)
class Packs:
    """Packs made on demand, once per test run."""

    folder: Path
    _made: dict[str, Packed] = field(default_factory=dict)

    def affine(self, scale: float, offset: float = 0.0, *, name: str = "affine") -> Packed:
        """A pack whose model answers y = scale * x + offset, so that a prediction tells which."""
        return self._once(
            f"{name}-{scale:g}-{offset:g}",
            lambda model: write_affine(model, Affine(scale, offset)),
            Spec(name=name, version=f"{scale:g}.0"),
        )

    def treacherous(self, scale: float) -> Packed:
        """A pack that proves itself well, and whose input can make it hang, swell or give NaN."""
        inputs = (TensorSpec("x", low=0.0, high=1.0),)
        return self._once(
            f"treacherous-{scale:g}",
            lambda model: write_treacherous(model, scale),
            Spec(name="treacherous", version=f"{scale:g}.0", inputs=inputs),
        )

    def windowed(self, kind: Literal["sliding", "tumbling"], size: int) -> Packed:
        """A pack that adds up the readings of a window."""
        inputs = (TensorSpec("x", datatype="FP32", shape=(1,)),)
        return self._once(
            f"{kind}-{size}",
            lambda model: write_sum(model, size),
            Spec(name=kind, inputs=inputs, pipeline=Pipeline(window=Window(kind, size))),
        )

    def _once(self, key: str, write: Callable[[Path], None], spec: Spec) -> Packed:
        if key not in self._made:
            model = self.folder / f"{key}.onnx"
            write(model)
            self._made[key] = pack(model, self.folder / key, spec=spec)
        return self._made[key]


@pytest.fixture(scope="session")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Packs:
    return Packs(tmp_path_factory.mktemp("packs"))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[LocalBroker]:
    folder = tmp_path / "broker"
    folder.mkdir()
    started = LocalBroker(folder, persistent=True).start()
    yield started
    started.stop()


MakeDevice = Callable[..., Device]


@pytest.fixture
def make_device(tmp_path: Path, broker: LocalBroker, packs: Packs) -> Iterator[MakeDevice]:
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
