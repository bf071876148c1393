"""What this device is like at a moment, for the rounds of a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.daemon.here import Conditions, Here
from agent.device.condition import look
from agent.device.tree import Folder

WORD = "sys/devices/platform/soc/soc:firmware/get_throttled"
POLICY = "sys/devices/system/cpu/cpufreq/policy0"


def write(root: Path, **files: str) -> None:
    for name, content in files.items():
        file = root / {"word": WORD}.get(name, f"{POLICY}/{name}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


@pytest.fixture
def here(tmp_path: Path) -> Here:
    write(tmp_path, scaling_cur_freq="1800000\n")
    return Here(tmp_path, source=Folder(tmp_path), probe=tuple)


@pytest.mark.parametrize(
    ("word", "throttled"),
    [
        ("0", False),
        # Throttled and short of voltage once since it booted: now too, and not now.
        ("50005", True),
        ("50000", False),
        ("f0000", False),
        ("4", True),
        ("1", True),
        ("2", True),
    ],
)
def test_only_what_the_firmware_says_of_now_marks_a_round(
    here: Here, tmp_path: Path, word: str, throttled: bool
) -> None:
    write(tmp_path, word=f"{word}\n")
    assert here.conditions() == Conditions(throttled, 1.8e9)


def test_a_round_is_marked_by_what_is_so_then_not_by_an_earlier_look(
    here: Here, tmp_path: Path
) -> None:
    for word in ("0", "4", "40000"):
        write(tmp_path, word=f"{word}\n")
        assert here.conditions().throttled is (word == "4")


def test_a_cap_on_the_clock_marks_a_round_only_where_it_is_no_setting(
    here: Here, tmp_path: Path
) -> None:
    write(tmp_path, cpuinfo_max_freq="1800000\n", scaling_max_freq="1200000\n")
    assert not here.conditions().throttled
    write(tmp_path, scaling_max_freq="1800000\n")
    assert not here.conditions().throttled
    write(tmp_path, scaling_max_freq="1200000\n")
    assert here.conditions().throttled


def test_the_clock_is_the_processor_s_and_no_other_s(here: Here, tmp_path: Path) -> None:
    other = tmp_path / "sys/class/devfreq/fb000000.gpu"
    other.mkdir(parents=True)
    (other / "cur_freq").write_text("9000000000\n")
    assert here.conditions().clock_hz == 1.8e9
    assert look(Folder(tmp_path)).speed_hz == 1.8e9


def test_where_nothing_tells_nothing_is_known(tmp_path: Path) -> None:
    assert Here(tmp_path, source=Folder(tmp_path), probe=tuple).conditions() == Conditions()
