"""Graphics processors that inference libraries compute on: NVIDIA's and Intel's."""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.device.surroundings import Surroundings
from agent.documents.device import Accelerator

_NVIDIA, _INTEL = 0x10DE, 0x8086
_DISPLAY = 0x03
_DRIVER_VERSION = re.compile(r"\b\d{3}\.\d{1,3}(?:\.\d{1,3})?\b")
# Of Jetsons with kernel drivers of L4T; Thor's are those of a PC.
_JETSON_NODES = ("/dev/nvhost-gpu", "/dev/nvgpu/igpu0/power", "/dev/nvmap", "/dev/nvidia0")


def nvidia(around: Surroundings) -> Iterator[Accelerator]:
    """Find GPUs with CUDA: in slots, and inside Jetsons."""
    tree = around.tree
    version = _nvidia_version(around)
    cards = [p for p in around.pci if p.vendor == _NVIDIA and p.kind == _DISPLAY]
    for index, card in enumerate(cards):
        why = ""
        if not tree.has("/dev/nvidiactl"):
            why = (
                "NVIDIA's driver is not loaded, or the container was not given the GPU"
                if card.driver != "nvidia"
                else "there is no /dev/nvidiactl: run nvidia-modprobe, or give the container it"
            )
        elif not tree.may_use("/dev/nvidiactl"):
            why = "we may not use /dev/nvidiactl"
        yield Accelerator(
            kind="cuda",
            bus="pci",
            name="NVIDIA GPU",
            node=f"/dev/nvidia{index}",
            driver=card.driver,
            driver_version=version,
            ready=not why,
            why=why,
        )
    if not cards and any(entry.startswith("nvidia,tegra") for entry in around.board.compatible):
        yield _jetson(around, version)


def _jetson(around: Surroundings, version: str) -> Accelerator:
    there = [node for node in _JETSON_NODES if around.tree.has(node)]
    usable = [node for node in there if around.tree.may_use(node)]
    if usable:
        why = ""
    elif there:
        why = f"we may not use {there[0]}: add the agent's user to the groups video and render"
    else:
        why = "its nodes in /dev are absent: give the container the GPU (NVIDIA's runtime)"
    return Accelerator(
        kind="cuda",
        bus="soc",
        name="NVIDIA integrated GPU",
        node=next(iter(there), ""),
        driver="nvgpu" if "/dev/nvidia0" not in there else "nvidia",
        driver_version=version,
        ready=bool(usable),
        why=why,
    )


def _nvidia_version(around: Surroundings) -> str:
    told = around.tree.line("/proc/driver/nvidia/version")
    found = _DRIVER_VERSION.search(told)
    return found[0] if found else around.module_version("nvidia")


def intel(around: Surroundings) -> Iterator[Accelerator]:
    """Find Intel's GPUs; OpenVINO computes on them with Intel's compute runtime."""
    tree = around.tree
    for name in tree.names("/sys/class/drm", r"renderD\d{1,4}", most=16):
        base = f"/sys/class/drm/{name}/device"
        if tree.number(f"{base}/vendor") != _INTEL:
            continue
        node = f"/dev/dri/{name}"
        found = re.search(r"^DRIVER=(\w{1,32})$", tree.text(f"{base}/uevent"), re.MULTILINE)
        ready = tree.may_use(node)
        yield Accelerator(
            kind="intel_gpu",
            bus="pci",
            name="Intel GPU",
            node=node,
            driver=found[1] if found else "",
            ready=ready,
            why="" if ready else f"we may not use {node}: add the agent's user to the group render",
        )
