"""What a device is: the facts that probes read, and from which profiles, plans and choices follow.

No serial number, host name, address or other identifier is among them: a device's facts can be
shown to anybody, and two boards of one kind have the same.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from agent.documents.names import Natural, ShortText, Text

MAX_DEVICE_BYTES = 256 * 1024

Words = Annotated[tuple[ShortText, ...], msgspec.Meta(max_length=256)]


class Board(msgspec.Struct, frozen=True, omit_defaults=True):
    """The machine, as its firmware names it.

    Attributes:
        model: The device tree's model, or the vendor's product name.
        vendor: The vendor, where the firmware names it apart.
        compatible: Of the device tree, the most specific first; empty on a PC.
        soc: The last of `compatible`, which names the chip.
        module: The module that the board carries, such as `p3767` of a Jetson Orin Nano.
    """

    model: ShortText = ""
    vendor: ShortText = ""
    compatible: Words = ()
    soc: ShortText = ""
    module: ShortText = ""


class System(msgspec.Struct, frozen=True, omit_defaults=True):
    """The operating system.

    Attributes:
        architecture: Of user space, which decides on wheels: `x86_64`, `aarch64`, `armv7l` …
        kernel_architecture: Of the kernel; it may be wider.
        kernel: Its release.
        os: Of os-release, such as `debian 12`.
        libc: `glibc 2.36`, `musl` …
        python: The interpreter's version.
        page_bytes: Of memory pages.
        container: What the agent runs in: `docker`, `podman`, `lxc`, …; nothing: the machine.
    """

    architecture: ShortText = ""
    kernel_architecture: ShortText = ""
    kernel: ShortText = ""
    os: ShortText = ""
    libc: ShortText = ""
    python: ShortText = ""
    page_bytes: Natural = 0
    container: ShortText = ""


class Cpu(msgspec.Struct, frozen=True, omit_defaults=True):
    """The processors.

    Attributes:
        model: As the vendor calls them.
        cores: Kind of each kind of core, such as `cortex-a76`.
        count: How many there are.
        usable: How many may be used: the least of affinity and the cgroup's quota.
        features: Instruction sets that runtimes look for, such as `avx2`, `asimddp`.
    """

    model: ShortText = ""
    cores: Words = ()
    count: Natural = 0
    usable: float = 0.0
    features: Words = ()


class Memory(msgspec.Struct, frozen=True, omit_defaults=True):
    """Memory.

    Attributes:
        total_bytes: Of the machine.
        available_bytes: Without swapping, when this was read.
        limit_bytes: What the cgroup allows, where that is less.
        can_be_limited: The kernel's memory controller is there; without it no cgroup limit holds.
    """

    total_bytes: Natural = 0
    available_bytes: Natural = 0
    limit_bytes: Natural | None = None
    can_be_limited: bool = False


class Storage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the state directory lies on.

    Attributes:
        device: Of the kernel, such as `mmcblk0`.
        kind: `sd`, `emmc`, `nvme`, `ssd`, `hdd`, `usb`, `memory` or `unknown`.
        free_bytes: Free for us.
        free_inodes: The same.
        read_only: The file system takes nothing: after an error, the end of many a memory card.
        life_used_percent: As the device estimates it, rounded up to tens.
        wear: The device's own warning, such as `urgent`.
        written_bytes: Written since the machine booted.
    """

    device: ShortText = ""
    kind: Literal["sd", "emmc", "nvme", "ssd", "hdd", "usb", "memory", "unknown"] = "unknown"
    free_bytes: Natural = 0
    free_inodes: Natural = 0
    read_only: bool = False
    life_used_percent: Natural | None = None
    wear: ShortText = ""
    written_bytes: Natural | None = None


class Accelerator(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that computes beside the CPU.

    Attributes:
        kind: `edgetpu`, `cuda`, `rknpu`, `hailo`, `intel_npu`, `intel_gpu`, `ethosu`, `vsi_npu` …
        bus: `usb`, `pci` or `soc`.
        name: For people.
        node: The device file, where there is one that keeps its name.
        driver: The kernel's driver.
        driver_version: Its version.
        ready: It can be used now.
        why: Why not, and what to do.
    """

    kind: ShortText
    bus: Literal["usb", "pci", "soc"]
    name: ShortText = ""
    node: ShortText = ""
    driver: ShortText = ""
    driver_version: ShortText = ""
    ready: bool = False
    why: Text = ""


class Sensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that tells of heat, power or clocks.

    Attributes:
        kind: What it tells.
        name: As the driver calls it.
        source: Where it is read.
        value: When this was read; absent where it was refused.
        unit: Of `value`: `Cel`, `W`, `Hz`, `1` for a share or a flag.
    """

    kind: Literal["temperature", "power", "clock", "throttle", "undervoltage", "load"]
    name: ShortText = ""
    source: ShortText = ""
    value: float | None = None
    unit: ShortText = ""


class Jetson(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is particular about NVIDIA's boards.

    Attributes:
        family: `nano`, `tx2`, `xavier`, `orin`, `thor`.
        l4t: Version of Linux for Tegra.
        jetpack: The JetPack that has this very L4T; nothing where that is not known.
        compute_capability: Of the GPU.
        power_mode: As `nvpmodel` names it.
    """

    family: ShortText = ""
    l4t: ShortText = ""
    jetpack: ShortText = ""
    compute_capability: ShortText = ""
    power_mode: ShortText = ""


class RuntimeFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """One runtime, as a process of its own found it by importing it.

    Attributes:
        name: The adapter's: `onnx`, `tflite` …
        usable: It was imported and can load models.
        version: The library's.
        package: The distribution that it came from, such as `onnxruntime-gpu`.
        formats: Of model files that it loads.
        providers: What its build can compute on. Whether they work is shown by a session only.
        driver: Version of what it drives an accelerator with, as that says itself.
        opset: The newest ONNX operator set that it knows.
        ir_version: The newest ONNX file layout that it knows.
        operators: All that it knows, where it knows only some; nothing: ask it.
        compiles: The providers for which it compiles a model into files that a later start is
            spared the work by; and for each the version of what compiles, where that is another
            than the library's.
        why: Why it is not usable.
        hint: What to do about that.
    """

    name: ShortText
    usable: bool = False
    version: ShortText = ""
    package: ShortText = ""
    formats: Words = ()
    providers: Words = ()
    driver: ShortText = ""
    opset: Natural | None = None
    ir_version: Natural | None = None
    operators: Words = ()
    compiles: Annotated[dict[ShortText, ShortText], msgspec.Meta(max_length=32)] = {}
    why: Text = ""
    hint: Text = ""


class Device(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device's facts, as `edgeward detect --json` prints them under `device`.

    Attributes:
        schema: The version of this format.
        board: The machine.
        system: The operating system.
        cpu: The processors.
        memory: Memory.
        storage: What the state directory lies on.
        accelerators: What computes beside the CPU.
        sensors: What tells of heat, power and clocks.
        jetson: On NVIDIA's boards only.
        runtimes: Every runtime that an installed package declares.
        refused: Files that exist and could not be read, with the reason.
    """

    schema: Literal[1]
    board: Board = Board()
    system: System = System()
    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    storage: Storage = Storage()
    accelerators: Annotated[tuple[Accelerator, ...], msgspec.Meta(max_length=64)] = ()
    sensors: Annotated[tuple[Sensor, ...], msgspec.Meta(max_length=256)] = ()
    jetson: Jetson | None = None
    runtimes: Annotated[tuple[RuntimeFacts, ...], msgspec.Meta(max_length=64)] = ()
    refused: Annotated[tuple[Text, ...], msgspec.Meta(max_length=64)] = ()

    def runtime(self, name: str) -> RuntimeFacts | None:
        """The facts of one runtime, or None where nothing declares it."""
        return next((runtime for runtime in self.runtimes if runtime.name == name), None)

    def has(self, kind: str) -> bool:
        """Whether an accelerator of a kind is there and ready."""
        return any(found.kind == kind and found.ready for found in self.accelerators)
