"""Trees of files as devices have them, written in short.

Each `trees/NAME.toml` is rebuilt from public facts (kernel sources and documentation, the vendors'
pages, public detectors); none is a recording of a real board. Keys:

    about     what it is; `rebuilt from public facts` stands in it
    parts     names of PARTS, files that many devices have alike
    machine   what no file says: fields of `agent.device.machine.Machine`
    memory_mb /proc/meminfo
    arm       kinds of Arm cores: implementer, part, features, count
    x86       model, flags, count
    strings   NUL-separated lists, as the device tree has them: path = [entries]
    pci, usb  devices on the buses
    nodes     files of /dev; a plain file stands for each
    refused   path = reason
    links     path = target
    files     path = content
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from agent.device.detect import detect
from agent.device.recording import ABOUT, Opened, open_root
from agent.device.tree import Tree
from agent.documents.device import Device

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).with_name("trees")
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))

_STAT = "4000 10 90000 800 9000 100 2000000 9999 0 500 10799\n"
PARTS: dict[str, dict[str, str]] = {
    "sd": {
        "/sys/dev/block/179:2/uevent": "MAJOR=179\nMINOR=2\nDEVNAME=mmcblk0p2\nDEVTYPE=partition\n",
        "/sys/block/mmcblk0/mmcblk0p2/partition": "2\n",
        "/sys/block/mmcblk0/device/type": "SD\n",
        "/sys/block/mmcblk0/stat": _STAT,
    },
    "emmc": {
        "/sys/dev/block/179:2/uevent": "MAJOR=179\nMINOR=2\nDEVNAME=mmcblk0p2\nDEVTYPE=partition\n",
        "/sys/block/mmcblk0/mmcblk0p2/partition": "2\n",
        "/sys/block/mmcblk0/device/type": "MMC\n",
        "/sys/block/mmcblk0/device/life_time": "0x02 0x01\n",
        "/sys/block/mmcblk0/device/pre_eol_info": "0x01\n",
        "/sys/block/mmcblk0/stat": _STAT,
    },
    "nvme": {
        "/sys/dev/block/259:2/uevent": "MAJOR=259\nMINOR=2\nDEVNAME=nvme0n1p2\nDEVTYPE=partition\n",
        "/sys/block/nvme0n1/nvme0n1p2/partition": "2\n",
        "/sys/block/nvme0n1/stat": _STAT,
    },
    "ssd": {
        "/sys/dev/block/8:2/uevent": "MAJOR=8\nMINOR=2\nDEVNAME=sda2\nDEVTYPE=partition\n",
        "/sys/block/sda/sda2/partition": "2\n",
        "/sys/block/sda/queue/rotational": "0\n",
        "/sys/block/sda/stat": _STAT,
    },
    "cgroup2": {
        "/proc/self/cgroup": "0::/system.slice/edgeward.service\n",
        "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
        "/sys/fs/cgroup/system.slice/edgeward.service/memory.max": "max\n",
        "/sys/fs/cgroup/system.slice/edgeward.service/memory.high": "max\n",
        "/sys/fs/cgroup/system.slice/edgeward.service/cpu.max": "max 100000\n",
    },
    # Raspberry Pi OS as it comes: the memory controller is switched off.
    "cgroup2-without-memory": {
        "/proc/self/cgroup": "0::/system.slice/edgeward.service\n",
        "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n",
        "/sys/fs/cgroup/system.slice/edgeward.service/cpu.max": "max 100000\n",
        "/proc/cgroups": "#subsys_name hierarchy num_cgroups enabled\ncpu 0 60 1\nmemory 0 60 0\n",
    },
    "cgroup1": {
        "/proc/self/cgroup": "5:memory:/\n4:cpu,cpuacct:/\n1:name=systemd:/\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    },
    "thermal": {
        "/sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "/sys/class/thermal/thermal_zone0/temp": "47200\n",
    },
    "x86-thermal": {
        "/sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
        "/sys/class/thermal/thermal_zone0/temp": "45000\n",
        "/sys/class/hwmon/hwmon0/name": "coretemp\n",
        "/sys/class/hwmon/hwmon0/temp1_input": "46000\n",
        "/sys/class/hwmon/hwmon0/temp1_label": "Package id 0\n",
    },
    "pi-volt": {
        "/sys/class/hwmon/hwmon1/name": "rpi_volt\n",
        "/sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0\n",
    },
    "ina3221": {
        "/sys/class/hwmon/hwmon2/name": "ina3221\n",
        "/sys/class/hwmon/hwmon2/in1_label": "VDD_IN\n",
        "/sys/class/hwmon/hwmon2/in1_input": "5040\n",
        "/sys/class/hwmon/hwmon2/curr1_input": "1000\n",
        "/sys/class/hwmon/hwmon2/in4_label": "sum of shunt voltages\n",
        "/sys/class/hwmon/hwmon2/in4_input": "12\n",
        "/sys/class/hwmon/hwmon2/curr4_input": "3\n",
    },
    "debian-12": {"/etc/os-release": 'PRETTY_NAME="Debian"\nID=debian\nVERSION_ID="12"\n'},
    "ubuntu-22.04": {"/etc/os-release": 'NAME="Ubuntu"\nVERSION_ID="22.04"\nID=ubuntu\n'},
    "ubuntu-24.04": {"/etc/os-release": 'NAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\n'},
}
_DISKS = {"sd": "179:2", "emmc": "179:2", "nvme": "259:2", "ssd": "8:2"}


def read(name: str) -> dict[str, Any]:
    """One tree's description."""
    told: dict[str, Any] = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    return told


def build(name: str, folder: Path) -> Path:
    """Make the tree of files below a folder, and return that folder."""
    return build_from(read(name), folder)


def build_from(told: dict[str, Any], folder: Path) -> Path:
    """The same for a description at hand."""
    parts = told.get("parts", [])
    files: dict[str, str] = {}
    for part in parts:
        files.update(PARTS[part])
    files.update(_processors(told))
    files.update(_buses(told))
    files.update({path: "\0".join([*texts, ""]) for path, texts in told.get("strings", {}).items()})
    files.update(told.get("files", {}))
    if "memory_mb" in told:
        total = told["memory_mb"] * 1024
        files["/proc/meminfo"] = f"MemTotal: {total} kB\nMemAvailable: {total * 3 // 4} kB\n"
    for path, content in (files | dict.fromkeys(told.get("nodes", []), "")).items():
        place = folder / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode())
    folder.mkdir(exist_ok=True)
    machine = told.get("machine", {})
    disk = next((_DISKS[part] for part in parts if part in _DISKS), None)
    if machine and disk and "disk" not in machine:
        machine["disk"] = {"device": disk, "kind": "ext4"} | {
            "free_bytes": 8 * 1024**3,
            "free_inodes": 100_000,
        }
    about = {"schema": 1, "machine": machine} | {
        key: told[key] for key in ("refused", "links") if key in told
    }
    (folder / ABOUT).write_text(json.dumps(about))
    return folder


def device_of(name: str, folder: Path) -> Device:
    """The facts that detection finds on one tree."""
    return detected(open_root(build(name, folder)))


def detected(opened: Opened) -> Device:
    """The facts that detection finds in a folder or a recording."""
    return detect(Tree(opened.source), opened.machine, opened.runtimes)


def _processors(told: dict[str, Any]) -> dict[str, str]:
    blocks: list[str] = []
    for core in told.get("arm", []):
        for _ in range(core["count"]):
            model = f"model name\t: {core['model']}\n" if "model" in core else ""
            blocks.append(
                f"processor\t: {len(blocks)}\n{model}BogoMIPS\t: 108.00\n"
                f"Features\t: {core['features']}\nCPU implementer\t: {core['implementer']}\n"
                f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {core['part']}\n"
                "CPU revision\t: 3\n"
            )
    if "x86" in told:
        x86 = told["x86"]
        blocks = [
            f"processor\t: {n}\nvendor_id\t: GenuineIntel\nmodel name\t: {x86['model']}\n"
            f"flags\t\t: fpu sse sse2 {x86['flags']}\n"
            for n in range(x86["count"])
        ]
    if not blocks:
        return {}
    tail = told.get("cpuinfo", "")
    return {
        "/proc/cpuinfo": "\n".join([*blocks, tail]),
        "/sys/devices/system/cpu/online": f"0-{len(blocks) - 1}\n",
    }


def _buses(told: dict[str, Any]) -> dict[str, str]:
    files: dict[str, str] = {}
    for device in told.get("pci", []):
        base = f"/sys/bus/pci/devices/{device['slot']}"
        files[f"{base}/vendor"] = device["vendor"] + "\n"
        files[f"{base}/device"] = device["device"] + "\n"
        files[f"{base}/class"] = device["class"] + "\n"
        driver = f"DRIVER={device['driver']}\n" if "driver" in device else ""
        files[f"{base}/uevent"] = f"{driver}PCI_SLOT_NAME={device['slot']}\n"
    for device in told.get("usb", []):
        base = f"/sys/bus/usb/devices/{device['port']}"
        vendor, product = device["id"].split(":")
        files[f"{base}/idVendor"], files[f"{base}/idProduct"] = vendor + "\n", product + "\n"
        files[f"{base}/busnum"], files[f"{base}/devnum"] = "2\n", f"{device['number']}\n"
        files[f"{base}/speed"] = f"{device['speed']}\n"
        files[f"/dev/bus/usb/002/{device['number']:03d}"] = ""
    return files
