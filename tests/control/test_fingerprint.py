"""A device's fingerprint, and the key of what was measured on it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.control.fingerprint import Ran, cache_key, fingerprint
from agent.documents.device import Accelerator, Board, Cpu, Device, Jetson, Memory, System

GIB = 1024**3
USB = Accelerator("edgetpu", "usb", driver="usb", ready=True)
DEVICE = Device(
    schema=1,
    board=Board(
        "NVIDIA Jetson", compatible=("nvidia,p3767", "nvidia,tegra234"), soc="nvidia,tegra234"
    ),
    system=System("aarch64", "aarch64", "5.15.148-tegra"),
    cpu=Cpu(cores=("cortex-a78ae",), count=6, usable=6.0, features=("asimd", "asimddp")),
    memory=Memory(total_bytes=7 * GIB + 600 * 1024**2),
    accelerators=(Accelerator("cuda", "soc", driver="nvgpu"), USB),
    jetson=Jetson("orin", "36.4.3", "6.2", "8.7", "15W"),
)
RAN = Ran(
    "sha256:" + "1" * 64,
    runtime="onnx",
    version="1.32.0",
    package="onnxruntime",
    provider="CUDAExecutionProvider",
    options={"a": "1", "b": "2"},
)


@pytest.mark.parametrize(
    "changed",
    [
        {"board": replace(DEVICE.board, compatible=("nvidia,p3768", "nvidia,tegra234"))},
        {"board": replace(DEVICE.board, soc="nvidia,tegra264")},
        {"cpu": replace(DEVICE.cpu, features=("asimd",))},
        {"system": replace(DEVICE.system, architecture="armv7l")},
        {"system": replace(DEVICE.system, kernel="5.16.0")},
        {"memory": Memory(total_bytes=4 * GIB)},
        {"accelerators": DEVICE.accelerators[:1]},
        {"accelerators": (replace(DEVICE.accelerators[0], driver_version="2"), USB)},
        {"jetson": replace(DEVICE.jetson or Jetson(), l4t="36.4.4")},
        {"jetson": replace(DEVICE.jetson or Jetson(), power_mode="MAXN")},
    ],
)
def test_what_decides_on_speed_changes_the_fingerprint(changed: dict[str, Any]) -> None:
    assert fingerprint(replace(DEVICE, **changed)) != fingerprint(DEVICE)


@pytest.mark.parametrize(
    "changed",
    [
        {"system": replace(DEVICE.system, kernel="5.15.999-other")},
        {"memory": replace(DEVICE.memory, total_bytes=DEVICE.memory.total_bytes - 1024**2)},
        {"memory": replace(DEVICE.memory, available_bytes=1)},
        {"accelerators": DEVICE.accelerators[::-1]},
        {"accelerators": (DEVICE.accelerators[0], replace(USB, why="slow", node="/dev/x"))},
        {"cpu": replace(DEVICE.cpu, features=("asimddp", "asimd"))},
        {"refused": ("/sys/x: no",)},
    ],
)
def test_what_does_not_leaves_it_alone(changed: dict[str, Any]) -> None:
    assert fingerprint(replace(DEVICE, **changed)) == fingerprint(DEVICE)


def test_a_power_mode_read_since_takes_the_place_of_the_recorded_one() -> None:
    assert fingerprint(DEVICE, "15W") == fingerprint(DEVICE)
    assert fingerprint(DEVICE, "MAXN") != fingerprint(DEVICE)


def test_a_device_of_which_nothing_is_known_has_a_fingerprint() -> None:
    assert fingerprint(Device(schema=1)).startswith("sha256:")


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "sha256:" + "2" * 64},
        {"external": ("sha256:" + "3" * 64,)},
        {"version": "1.32.1"},
        {"package": "onnxruntime-gpu"},
        {"provider": ""},
        {"provider_version": "10.3"},
        {"threads": 2},
        {"options": {"a": "1"}},
    ],
)
def test_each_part_of_what_ran_changes_the_key(changed: dict[str, Any]) -> None:
    assert cache_key(replace(RAN, **changed), "sha256:d", 4) != cache_key(RAN, "sha256:d", 4)


def test_the_device_and_its_quota_change_the_key() -> None:
    key = cache_key(RAN, "sha256:d", 4)
    assert key != cache_key(RAN, "sha256:e", 4)
    assert key != cache_key(RAN, "sha256:d", 1.5)
    assert len(key) == 64


@settings(max_examples=50, deadline=None)
@given(st.permutations(["a", "b", "c"]), st.permutations(["x", "y"]))
def test_the_order_of_options_and_files_is_nothing(options: list[str], files: list[str]) -> None:
    one = replace(RAN, options=dict.fromkeys(options, "1"), external=tuple(files))
    other = replace(RAN, options=dict.fromkeys("abc", "1"), external=("x", "y"))
    assert cache_key(one, "sha256:d", 1) == cache_key(other, "sha256:d", 1)
