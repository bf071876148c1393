"""Recordings: they say what the machine said, and not which machine it was."""

from __future__ import annotations

import io
import json
import re
import shutil
import string
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.device import identifiers
from agent.device.detect import detect
from agent.device.machine import Machine, from_here
from agent.device.recording import ABOUT, Opened, open_root, write
from agent.device.tree import Folder, Tree
from agent.documents.device import RuntimeFacts
from agent.errors import AgentError, UsageError
from tests.device import trees
from tests.device.test_bad_trees import put


def record(opened: Opened) -> bytes:
    """Detect on a tree, and record what was read."""
    tree = Tree(opened.source)
    detect(tree, opened.machine, opened.runtimes)
    own = identifiers.of_machine(Tree(opened.source))
    return write(tree, opened.machine, opened.runtimes, own)


def saved(folder: Path, content: bytes) -> Path:
    path = folder / "board.tar"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", trees.NAMES)
def test_a_recording_says_what_the_board_said(name: str, tmp_path: Path) -> None:
    opened = open_root(trees.build(name, tmp_path / "tree"))
    content = record(opened)
    told = trees.detected(opened)
    assert trees.detected(open_root(saved(tmp_path, content))) == told
    # Unpacked it is as good.
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert trees.detected(open_root(tmp_path / "unpacked")) == told


@pytest.mark.parametrize("name", trees.NAMES)
def test_a_recording_of_a_recording_is_the_same_to_the_byte(name: str, tmp_path: Path) -> None:
    first = record(open_root(trees.build(name, tmp_path / "tree")))
    again = record(open_root(saved(tmp_path, first)))
    assert again == first


def test_a_recording_of_this_machine_says_the_same_of_it(tmp_path: Path) -> None:
    opened = Opened(Folder(), from_here(tmp_path), (RuntimeFacts("onnx", usable=True),))
    tree = Tree(opened.source)
    device = detect(tree, opened.machine, opened.runtimes)
    own = identifiers.of_machine(Tree(opened.source))
    content = write(tree, opened.machine, opened.runtimes, own)
    again = trees.detected(open_root(saved(tmp_path, content)))
    assert again == device


def test_a_recording_holds_files_and_folders_only(tmp_path: Path) -> None:
    content = record(open_root(trees.build("pi-5-coral-pcie", tmp_path / "tree")))
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = archive.getmembers()
    assert all(member.isreg() or member.isdir() for member in members)
    assert not any(member.name.startswith("/") or ".." in member.name for member in members)
    assert {(m.mtime, m.uid, m.gid, m.uname) for m in members} == {(0, 0, 0, "")}
    assert [m.name for m in members] == sorted(m.name for m in members)


_WORD = string.ascii_lowercase + string.digits


@st.composite
def _machines(draw: st.DrawFn) -> dict[str, str]:
    """The identifiers of a machine. Each begins with something that is nowhere by chance."""

    def of(alphabet: str, size: int, begin: str = "") -> str:
        return begin + draw(st.text(alphabet, min_size=size, max_size=size))

    hexadecimal = "0123456789abcdef"
    return {
        "host": of(_WORD, 8, "zq"),
        "serial": of(_WORD, 10, "zk"),
        "decimal": of(string.digits, 12, "97"),
        "short": of(string.digits, 6, "83"),
        "id": of(hexadecimal, 30, "e7"),
        "uuid": "-".join([of(hexadecimal, 6, "c9"), *(of(hexadecimal, 4) for _ in range(3))])
        + "-"
        + of(hexadecimal, 12),
        "mac": ":".join(["d7", *(of(hexadecimal, 2) for _ in range(5))]),
        "loose": ":".join(["b3", *(of(hexadecimal, 2) for _ in range(5))]),
        "container": of(hexadecimal, 62, "f1"),
    }


def plant(root: Path, known: dict[str, str]) -> None:
    """Put identifiers where machines have them, and where they turn up besides."""
    where = {
        "/etc/hostname": known["host"] + "\n",
        "/proc/sys/kernel/hostname": known["host"] + "\n",
        "/etc/machine-id": known["id"] + "\n",
        "/proc/device-tree/serial-number": known["decimal"] + "\0",
        "/sys/class/dmi/id/product_serial": known["serial"] + "\n",
        "/sys/class/dmi/id/product_uuid": known["uuid"].upper() + "\n",
        "/sys/class/net/eth0/address": known["mac"] + "\n",
        "/sys/bus/usb/devices/2-1/serial": known["short"] + "\n",
        "/sys/class/apex/apex_0/unique_id": known["id"] + "\n",
        # Where nobody expects them, in files that are read.
        "/proc/device-tree/model": f"Acme Board {known['serial']}\0",
        "/proc/cpuinfo": (
            f"processor\t: 0\nSerial\t\t: {known['short']}a\nModel\t: Acme {known['mac']}\n"
        ),
        "/etc/os-release": f"ID=acme\nVERSION_ID=7-{known['host']}\nBUILD_ID={known['id']}\n",
        "/proc/self/cgroup": (
            f"3:memory:/docker/{known['container']}\n2:cpu:/lxc/{known['host']}\n"
            f"0::/docker/{known['container']}/{known['host']}.slice\n"
        ),
        f"/sys/fs/cgroup/docker/{known['container']}/memory.max": "123456789\n",
        f"/sys/fs/cgroup/memory/docker/{known['container']}/memory.limit_in_bytes": "123456\n",
        "/sys/class/hwmon/hwmon0/name": f"wlan-{known['loose']}\n",
        "/sys/class/hwmon/hwmon0/temp1_input": "20000\n",
        "/sys/class/hwmon/hwmon0/temp1_label": f"{known['uuid']} {known['decimal']}\n",
        "/sys/class/thermal/thermal_zone0/type": f"{known['host']}.example-{known['mac']}\n",
        "/sys/class/thermal/thermal_zone0/temp": "20000\n",
        f"/sys/class/devfreq/{known['container']}/cur_freq": "1\n",
        f"/sys/class/devfreq/{known['serial']}/cur_freq": "1\n",
        "/sys/block/mmcblk0/device/type": f"SD {known['serial']}\n",
    }
    for path, content in where.items():
        put(root, path, content)


@settings(max_examples=25, deadline=None)
@given(_machines())
def test_no_identifier_reaches_a_recording(
    tmp_path_factory: pytest.TempPathFactory, known: dict[str, str]
) -> None:
    root = tmp_path_factory.mktemp("planted")
    trees.build("pc-coral-usb-used", root)
    plant(root, known)
    about = json.loads((root / ABOUT).read_text())
    about["machine"]["kernel"] = f"6.1.0-{known['host']}"
    about["refused"] = {f"/sys/class/devfreq/{known['serial']}/cur_freq": known["mac"]}
    (root / ABOUT).write_text(json.dumps(about))
    content = record(open_root(root)).lower()
    shutil.rmtree(root)
    found = {name for name, value in known.items() if value.lower().encode() in content}
    assert found == set()


def test_a_limit_survives_though_its_groups_name_does_not(tmp_path: Path) -> None:
    put(tmp_path, "/proc/self/cgroup", "0::/machine.slice/libpod-customer.scope/x\n")
    base = "/sys/fs/cgroup/machine.slice/libpod-customer.scope"
    put(tmp_path, f"{base}/memory.max", "1000000\n")
    put(tmp_path, f"{base}/x/cpu.max", "50000 100000\n")
    content = record(open_root(tmp_path))
    assert b"customer" not in content
    again = trees.detected(open_root(saved(tmp_path, content)))
    assert again.memory.limit_bytes == 1_000_000
    assert again.cpu.usable == 0
    assert again.system.container == "podman"


def test_a_home_folders_owner_is_nobody() -> None:
    blank = identifiers.Identifiers().blank("/x", b"/home/alice/kernel/board.dts\0")
    assert blank == b"/home/xxxxx/kernel/board.dts\0"


def test_a_boards_own_words_stay_where_the_host_is_called_after_it() -> None:
    own = identifiers.Identifiers(hosts=["brcm"])
    path = "/proc/device-tree/compatible"
    assert own.blank(path, b"brcm,bcm2711\0") == b"brcm,bcm2711\0"
    assert own.blank("/etc/os-release", b"ID=brcm\n") == b"ID=xxxx\n"


def test_sizes_and_versions_are_no_identifiers() -> None:
    text = b"9223372036854771712 6.6.51+rpt-rpi-2712 0000:01:00.0 fdab0000.npu 0x46d1 v0.9.8\n"
    assert identifiers.Identifiers(values=["", "0", "Default string"]).blank("/x", text) == text


# Recordings that are none.


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_what_leads_out_of_a_tar_is_left_out(tmp_path: Path) -> None:
    link = tarfile.TarInfo("proc/meminfo")
    link.type, link.linkname = tarfile.SYMTYPE, "/proc/meminfo"
    up = tarfile.TarInfo("../../etc/os-release")
    content = _tar((link, b""), (up, b"ID=evil\n"))
    device = trees.detected(open_root(saved(tmp_path, content)))
    assert device.memory.total_bytes == 0
    assert device.system.os == ""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no tar at all",
        b"\0" * 512,
        b"\x1f\x8b" + b"\0" * 100,
        _tar((tarfile.TarInfo(ABOUT), b"{")),
        _tar((tarfile.TarInfo(ABOUT), b"[" * 100_000)),
        _tar((tarfile.TarInfo(ABOUT), b'{"schema": 2}')),
        _tar((tarfile.TarInfo(ABOUT), b'{"schema": 1, "machine": {"page_bytes": -1}}')),
        _tar((tarfile.TarInfo("proc/cpuinfo"), b"x" * 2000))[:1500],
    ],
    ids=range(9),
)
def test_a_file_that_is_no_recording_is_refused_or_empty(tmp_path: Path, content: bytes) -> None:
    told = ""
    try:
        trees.detected(open_root(saved(tmp_path, content)))
    except AgentError as error:
        told = str(error)
    assert not told or re.search(r"board\.tar|edgeward-recording", told)


def test_a_path_to_nothing_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recording"):
        open_root(tmp_path / "none")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_damaged_recording_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(record(Opened(Folder(folder), Machine())))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        trees.detected(open_root(saved(folder, bytes(content))))
    except AgentError:
        pass
    finally:
        shutil.rmtree(folder)
