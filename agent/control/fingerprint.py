"""What a measurement, or an artefact compiled on a device, holds for.

Both are the same on two boards of one kind: nothing in them tells one from the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from agent.control.versions import release
from agent.documents.device import Device

# Raised where what is measured, or how, changes so that old results do not compare.
BENCHMARK = 1
_GRAIN_BYTES = 256 * 1024 * 1024


class Ran(msgspec.Struct, frozen=True):
    """What ran, as far as it decides on speed.

    Attributes:
        model: Digest of the model's file.
        external: Digests of the files that it refers to.
        runtime: The adapter.
        version: Of its library, exactly.
        package: The distribution that the library came from.
        provider: What it computed on; nothing: its CPU kernels.
        provider_version: The provider's or delegate's own, or the digest of its library.
        threads: That it might use.
        options: For the provider.
    """

    model: str
    external: tuple[str, ...] = ()
    runtime: str = ""
    version: str = ""
    package: str = ""
    provider: str = ""
    provider_version: str = ""
    threads: int = 1
    options: dict[str, str] = {}


def fingerprint(device: Device, power_mode: str = "") -> str:
    """The kind and state of a device: where it differs, speed may differ.

    Args:
        device: Its facts.
        power_mode: In place of the one among the facts, where it was read since.

    Returns:
        `sha256:` and a digest.
    """
    jetson = device.jetson
    return _digest(
        {
            "board": next(iter(device.board.compatible), "") or device.board.model,
            "soc": device.board.soc or device.cpu.model,
            "features": sorted(device.cpu.features),
            "architecture": device.system.architecture,
            "memory": round(device.memory.total_bytes / _GRAIN_BYTES),
            "accelerators": sorted(
                (found.kind, found.bus, found.driver, found.driver_version)
                for found in device.accelerators
            ),
            "l4t": jetson.l4t if jetson else "",
            "power_mode": power_mode or (jetson.power_mode if jetson else ""),
            "kernel": release(device.system.kernel)[:2],
        }
    )


def cache_key(ran: Ran, device: str, cpus: float) -> str:
    """The name under which what was measured, or compiled, is kept.

    Args:
        ran: What ran.
        device: The device's fingerprint.
        cpus: How many processors may be used, by affinity and quota.

    Returns:
        64 hexadecimal digits, fit for a file's name.
    """
    parts = {
        **msgspec.structs.asdict(ran),
        "external": sorted(ran.external),
        "options": sorted(ran.options.items()),
        "device": device,
        "cpus": round(cpus, 3),
        "benchmark": BENCHMARK,
    }
    return _digest(parts).partition(":")[2]


def _digest(parts: Mapping[str, object | Sequence[object]]) -> str:
    text = msgspec.json.encode(sorted(parts.items()))
    return f"sha256:{hashlib.sha256(text).hexdigest()}"
