"""The processors: their kinds, their instruction sets, and how many of them we may use."""

from __future__ import annotations

import re

from agent.device import cpuinfo
from agent.device.cgroup import Limits
from agent.device.machine import Machine
from agent.device.tree import Tree, short
from agent.documents.device import Cpu

# What inference libraries choose kernels by, of x86 and of Arm (names of /proc/cpuinfo).
FEATURES = frozenset(
    {
        *("sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni"),
        *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
        *("neon", "vfpv4", "asimd", "asimdhp", "fphp", "asimddp", "i8mm", "bf16"),
        *("sve", "sve2", "sme"),
    }
)
# Implementer and part of an Arm core ("CPU part", the main ID register) → what people call it.
_CORES = {
    ("0x41", "0xb76"): "arm1176",
    ("0x41", "0xc05"): "cortex-a5",
    ("0x41", "0xc07"): "cortex-a7",
    ("0x41", "0xc08"): "cortex-a8",
    ("0x41", "0xc09"): "cortex-a9",
    ("0x41", "0xc0f"): "cortex-a15",
    ("0x41", "0xd03"): "cortex-a53",
    ("0x41", "0xd04"): "cortex-a35",
    ("0x41", "0xd05"): "cortex-a55",
    ("0x41", "0xd07"): "cortex-a57",
    ("0x41", "0xd08"): "cortex-a72",
    ("0x41", "0xd09"): "cortex-a73",
    ("0x41", "0xd0a"): "cortex-a75",
    ("0x41", "0xd0b"): "cortex-a76",
    ("0x41", "0xd0c"): "neoverse-n1",
    ("0x41", "0xd0d"): "cortex-a77",
    ("0x41", "0xd40"): "neoverse-v1",
    ("0x41", "0xd41"): "cortex-a78",
    ("0x41", "0xd42"): "cortex-a78ae",
    ("0x41", "0xd46"): "cortex-a510",
    ("0x41", "0xd47"): "cortex-a710",
    ("0x41", "0xd49"): "neoverse-n2",
    ("0x41", "0xd4f"): "neoverse-v2",
    ("0x41", "0xd80"): "cortex-a520",
    ("0x41", "0xd81"): "cortex-a720",
    ("0x41", "0xd83"): "neoverse-v3ae",
    ("0x4e", "0x003"): "denver2",
    ("0x4e", "0x004"): "carmel",
}
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_MAX_COUNT = 65536


def probe(tree: Tree, machine: Machine, limits: Limits) -> Cpu:
    """Say what computes."""
    count = _listed(tree.text("/sys/devices/system/cpu/online")) or cpuinfo.count(tree)
    allowed = [machine.cpus_allowed or count, limits.cpus]
    return Cpu(
        model=short(cpuinfo.value(tree, "model name")),
        cores=_cores(tree),
        count=count,
        usable=float(min(value for value in allowed if value is not None)),
        features=_features(tree),
    )


def _features(tree: Tree) -> tuple[str, ...]:
    told = [*cpuinfo.values(tree, "flags"), *cpuinfo.values(tree, "Features")]
    # Of cores of different kinds a thread may meet each: only what all have counts.
    common = set.intersection(*(set(line.split()) for line in told)) if told else set()
    return tuple(sorted(common & FEATURES))


def _cores(tree: Tree) -> tuple[str, ...]:
    found: dict[str, None] = {}
    implementer = ""
    for line in tree.text("/proc/cpuinfo").splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "CPU implementer":
            implementer = value.lower()
        elif name == "CPU part":
            part = value.lower()
            found[_CORES.get((implementer, part), short(f"{implementer}:{part}"))] = None
    return tuple(found)[:16]


def _listed(text: str) -> int:
    """How many numbers a list such as `0-3,6` names."""
    count = 0
    for part in text.split(",")[:_MAX_COUNT]:
        found = _RANGE.fullmatch(part.strip())
        if found:
            first, last = int(found[1]), int(found[2] or found[1])
            count += max(0, last - first + 1)
    return min(count, _MAX_COUNT)
