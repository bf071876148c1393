"""Trees that lie, refuse, go on for ever or lead elsewhere: each is read to its end."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.device.detect import detect
from agent.device.machine import Machine
from agent.device.tree import MAX_FILE_BYTES, MAX_LOOKS, MAX_NAMES, Folder, Tree, number, short
from agent.documents.codec import decode, encode
from agent.documents.device import MAX_DEVICE_BYTES, Device
from tests.device import trees

BOARD = "jetson-orin-nano"


def put(root: Path, path: str, content: bytes | str = b"") -> Path:
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content.encode() if isinstance(content, str) else content)
    return place


def found_in(root: Path) -> Device:
    """Detect, and hold that the answer is a document."""
    device = detect(Tree(Folder(root)), Machine())
    decode(encode(device), Device, name="device", max_bytes=MAX_DEVICE_BYTES)
    return device


# What stands in place of a file.


def test_a_file_that_never_ends_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").symlink_to("/dev/zero")
    # Inside the tree there is no /dev/zero, and no link leads out of it.
    assert found_in(tmp_path).refused == ()
    tree = Tree()
    assert tree.read("/dev/zero") == b""
    assert tree.refused == {"/dev/zero": "it is not a regular file"}


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    os.mkfifo(tmp_path / "proc/cpuinfo")
    assert found_in(tmp_path).refused == ("/proc/cpuinfo: it is not a regular file",)


def test_a_socket_and_a_folder_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "proc/meminfo").mkdir(parents=True)
    assert found_in(tmp_path).refused == ("/proc/meminfo: Is a directory",)


def test_a_file_where_a_folder_should_be_lists_nothing(tmp_path: Path) -> None:
    put(tmp_path, "/sys/class/thermal", "x")
    put(tmp_path, "/dev", "x")
    assert found_in(tmp_path) == Device(schema=1)


def test_links_in_a_circle_are_told(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").symlink_to("meminfo")
    (tmp_path / "proc/cpuinfo").symlink_to("/proc/other")
    (tmp_path / "proc/other").symlink_to("cpuinfo")
    refused = found_in(tmp_path).refused
    assert len(refused) == 2
    assert all(os.strerror(errno.ELOOP) in line for line in refused)


@pytest.mark.parametrize(
    "target", ["{outside}", "../../../../../../../../{outside}", "a/{outside}"]
)
def test_no_link_leads_out_of_a_tree(tmp_path: Path, target: str) -> None:
    outside = put(tmp_path, "outside/secret", "MemTotal: 4711 kB\n")
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "proc/meminfo").symlink_to(target.format(outside=str(outside)))
    (root / "proc/a").symlink_to("/")
    (root / "etc").symlink_to(outside.parent)
    put(tmp_path, "outside/os-release", "ID=secret\n")
    assert found_in(root) == Device(schema=1)


def test_a_link_inside_a_tree_is_followed_as_under_a_root_of_its_own(tmp_path: Path) -> None:
    put(tmp_path, "usr/lib/os-release", "ID=debian\nVERSION_ID=13\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").symlink_to("../../../../usr/lib/os-release")
    put(tmp_path, "devices/board/model", "Acme\0")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/device-tree").symlink_to("/devices/board")
    device = found_in(tmp_path)
    assert (device.system.os, device.board.model) == ("debian 13", "Acme")


def test_a_folder_of_countless_entries_is_read_up_to_a_bound(tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/thermal"
    folder.mkdir(parents=True)
    names = [folder / f"thermal_zone{index}" for index in range(20_000)]
    for name in names:
        name.symlink_to(".")
    device = found_in(tmp_path)
    for name in names:
        name.unlink()
    assert len(device.sensors) == 64
    assert device.refused == (f"/sys/class/thermal: it has more than {MAX_NAMES} entries",)


def test_a_tree_is_not_read_for_ever(tmp_path: Path) -> None:
    tree = Tree(Folder(tmp_path))
    for index in range(MAX_LOOKS + 10):
        tree.read(f"/{index}")
    assert list(tree.cut) == ["/"]


@pytest.mark.parametrize(
    "reason", [errno.EACCES, errno.EIO, errno.EINVAL, errno.EAGAIN, errno.ENODATA, errno.EPERM]
)
def test_a_refusal_is_told_and_the_rest_is_read(reason: int) -> None:
    class Refusing(Folder):
        def read(self, path: str, most: int) -> bytes:
            if path == "/proc/meminfo":
                raise OSError(reason, os.strerror(reason))
            return super().read(path, most)

    device = detect(Tree(Refusing()), Machine())
    assert f"/proc/meminfo: {os.strerror(reason)}" in device.refused
    assert device.cpu.count > 0


def test_a_file_that_we_may_not_read_is_told(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is forbidden to root")
    put(tmp_path, "/proc/meminfo", "MemTotal: 1 kB\n").chmod(0)
    assert found_in(tmp_path).refused == ("/proc/meminfo: Permission denied",)


# What stands in a file.


@pytest.mark.parametrize(
    "content",
    [
        b"\0" * 10,
        b"\xff\xfe\xfd" * 1000,
        os.urandom(4096),
        b"\x1b[2J\x1b]0;x\x07",
        b"9" * 10_000,
        b"-1",
        b"0x" + b"f" * 100,
        b"1e400",
        "½٣".encode(),
        b"\n" * 70_000,
        b":" * 70_000,
        b"a:" * 40_000,
        b"," * 70_000,
        b"=" * 100,
    ],
    ids=range(14),
)
def test_any_content_of_any_file_gives_a_document(tmp_path: Path, content: bytes) -> None:
    trees.build(BOARD, tmp_path)
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        path.write_bytes(content)
    device = found_in(tmp_path)
    assert encode(device).decode().isprintable()


def test_a_long_file_is_cut(tmp_path: Path) -> None:
    put(tmp_path, "/proc/cpuinfo", b"x" * (MAX_FILE_BYTES + 1))
    assert len(Tree(Folder(tmp_path)).read("/proc/cpuinfo")) == MAX_FILE_BYTES


def test_words_that_contradict_each_other_are_told_as_they_are(tmp_path: Path) -> None:
    trees.build("pi-5", tmp_path)
    put(tmp_path, "/proc/device-tree/model", "NVIDIA Jetson Nano\0")
    put(tmp_path, "/proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 9000 kB\n")
    put(tmp_path, "/sys/devices/system/cpu/online", "3-0,x,,99999999\n")
    put(tmp_path, "/sys/fs/cgroup/system.slice/edgeward.service/cpu.max", "0 0\n")
    device = found_in(tmp_path)
    assert device.board.model == "NVIDIA Jetson Nano"
    assert device.board.soc == "brcm,bcm2712"
    assert device.memory.available_bytes <= device.memory.total_bytes
    assert device.cpu.count == 4


def test_a_cgroup_that_leads_out_of_what_a_container_sees_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path, "/proc/self/cgroup", "0::/../../other\n")
    put(tmp_path, "/sys/fs/cgroup/memory.max", "1048576\n")
    assert found_in(tmp_path).memory.limit_bytes == 1048576


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(trees.NAMES))
def test_a_tree_with_random_damage_gives_a_document(
    tmp_path_factory: pytest.TempPathFactory, seed: int, name: str
) -> None:
    root = tmp_path_factory.mktemp("damaged")
    trees.build(name, root)
    chance = random.Random(seed)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        damage = chance.randrange(8)
        if damage == 0:
            path.unlink()
        elif damage == 1:
            path.write_bytes(path.read_bytes()[: chance.randrange(20)])
        elif damage == 2:
            path.write_bytes(chance.randbytes(chance.randrange(200)))
        elif damage == 3:
            path.unlink()
            path.symlink_to(chance.choice(["/", "..", path.name, "/dev/zero", "/proc/1/mem"]))
    found_in(root)
    shutil.rmtree(root)


@given(st.text())
def test_a_number_is_one_that_64_bits_hold_or_none(text: str) -> None:
    value = number(text)
    assert value is None or abs(value) < 2**63


@given(st.text())
def test_a_short_text_is_one_printable_line(text: str) -> None:
    assert short(text).isprintable()
    assert len(short(text)) <= 128
