"""How much a worker is allowed: `strict`, and named weaker policies for accelerators.

A weaker one names what an accelerator's library needs beyond computing: its device files, what it
reads of the machine, calls that `strict` denies. Everything else stays as it is. A worker gets the
one that `Load.policy` names.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from agent.wire.worker import COMPILES_AS

STRICT = "strict"
_OPENS_TO_WRITE = frozenset({"open", "openat"})
# What a library calls to put files into its one folder.
_KEEPS_FILES = _OPENS_TO_WRITE | {
    *("creat", "rename", "renameat", "renameat2", "unlink", "unlinkat")
}


class Policy(msgspec.Struct, frozen=True):
    """What a worker may do.

    Attributes:
        devices: Patterns of device files and of folders of them, to read, write and control.
        reads: Patterns of further files and folders to read.
        calls: System calls that are not denied; see `agent.worker.seccomp`.
        allow_list: After the load only calls that are known to be needed pass. False: whatever is
            not denied.
        compiles: It may write into the one folder that it is given for what it compiles, and
            stands back behind every other process.
    """

    devices: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    calls: frozenset[str] = frozenset()
    allow_list: bool = True
    compiles: bool = False


POLICIES = {
    STRICT: Policy(),
    # libusb looks for the device in sysfs and by udev, and listens for changes on a netlink socket.
    "edgetpu-usb": Policy(
        devices=("/dev/bus/usb",),
        reads=("/sys/bus/usb", "/sys/class/usb*", "/sys/devices", "/run/udev/data"),
        calls=_OPENS_TO_WRITE | {"socket (netlink)", "bind"},
        allow_list=False,
    ),
    "edgetpu-pci": Policy(
        devices=("/dev/apex_*",),
        reads=("/sys/class/apex", "/sys/devices"),
        calls=_OPENS_TO_WRITE,
        allow_list=False,
    ),
    # CUDA, TensorRT, OpenVINO and the like: shared mappings, memory files, the driver's own tree.
    "gpu": Policy(
        devices=("/dev/nvidia*", "/dev/nvhost*", "/dev/nvmap", "/dev/nvgpu", "/dev/dri"),
        reads=(
            *("/sys/class", "/sys/devices", "/sys/bus/pci", "/sys/module/nvidia*"),
            *("/proc/driver/nvidia", "/proc/devices", "/proc/modules", "/proc/sys/vm"),
            *("/etc/nv_tegra_release", "/etc/OpenCL", "/etc/nvidia*"),
            *("/usr/local/cuda*", "/usr/lib/aarch64-linux-gnu/tegra*", "/opt/intel"),
        ),
        calls=_OPENS_TO_WRITE | {"mmap", "memfd_create", "sched_setaffinity", "mknod", "mknodat"},
        allow_list=False,
    ),
}
# For the process that only compiles a model, never for one that serves.
POLICIES |= {
    name: replace(
        POLICIES[of], calls=POLICIES[of].calls | _KEEPS_FILES, allow_list=False, compiles=True
    )
    for of, name in COMPILES_AS.items()
}
# Runtimes that were seen to work with the allow-list; another's needs are not known.
STAND_ALLOW_LIST = frozenset({"onnx", "tflite", "reference"})
