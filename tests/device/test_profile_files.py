"""Profiles as files: the packaged ones, the user's own, and files that are wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.device.profiles import PACKAGED, load, read
from agent.errors import DocumentError

GOOD = """
schema = 1
name = "press"
title = "Our press"
[match]
compatible = ["maker,press"]
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_all_packaged_profiles_are_good_and_named_like_their_files() -> None:
    profiles = load(None)
    assert profiles.troubles == ()
    assert {one.name for one in profiles.every} == {path.stem for path in PACKAGED.glob("*.toml")}
    assert len(profiles.every) >= 27


def test_packaged_profiles_claim_to_rest_on_facts_only() -> None:
    assert {one.basis for one in load(None).every} == {"facts"}


def test_a_folder_that_is_not_there_is_an_empty_one(tmp_path: Path) -> None:
    assert load(tmp_path / "none").troubles == ()


def test_the_user_s_own_come_beside_the_packaged_ones(tmp_path: Path) -> None:
    write(tmp_path, "press.toml", GOOD)
    profiles = load(tmp_path)
    assert profiles.own == {"press"}
    assert profiles.named("press") is not None
    assert profiles.named("raspberry-pi-5") is not None
    assert profiles.named("no-such") is None


def test_the_user_s_own_takes_the_place_of_a_packaged_one_of_its_name(tmp_path: Path) -> None:
    write(tmp_path, "mine.toml", GOOD.replace('"press"', '"raspberry-pi-5"', 1))
    profiles = load(tmp_path)
    mine = [one for one in profiles.every if one.name == "raspberry-pi-5"]
    assert [one.title for one in mine] == ["Our press"]
    assert profiles.troubles == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("schema = ", "bad.toml: expected a TOML document"),
        ("\x00", "bad.toml: expected a TOML document"),
        ('name = "x"', "bad.toml.schema: expected 1, got none"),
        (GOOD.replace("schema = 1", "schema = 9"), "bad.toml.schema: expected 1, got 9"),
        (
            GOOD.replace("compatible", "compatibel"),
            "bad.toml.match.compatibel: expected one of the keys compatible, soc, model,",
        ),
        (GOOD + "colour = 1\n", "bad.toml.match.colour: expected one of the keys"),
        ("colour = 1\n" + GOOD.replace("= 1", "= 2"), "bad.toml.schema: expected 1, got 2"),
        ("colour = 1\n" + GOOD, "bad.toml.colour: expected one of the keys schema, name, title"),
        (GOOD + "[limits]\nhot = 70\n", "bad.toml.limits.hot: expected one of the keys measure_s"),
        (
            GOOD + '[[faults]]\nid = "x"\nsays = "x"\ndo = "x"\nwhen = { linux = "6" }\n',
            "bad.toml.faults[0].when.linux: expected one of the keys accelerators, bus,",
        ),
        # What a device says of itself may hold more than is known here, a profile's typical one
        # is written by a person.
        (
            GOOD + '[typical]\nschema = 1\n[typical.system]\narchitecure = "armv7l"\n',
            "bad.toml.typical.system.architecure: expected one of the keys architecture,",
        ),
        (GOOD.replace('["maker,press"]', '"maker,press"'), "bad.toml.match.compatible: expected"),
        (GOOD.replace('"press"', '"Our press"', 1), "bad.toml.name: expected"),
        (GOOD.replace('compatible = ["maker,press"]', ""), "bad.toml.match: expected what the"),
        (GOOD + "[limits]\nmeasure_s = -1\n", "bad.toml.limits.measure_s: expected"),
        (GOOD + '[[prefer]]\nruntime = "x"\nthreads = ["most"]\n', "bad.toml.prefer[0].threads[0]"),
        (GOOD + "# " + "x" * 70_000, "bad.toml: expected at most 65536 bytes"),
        (GOOD + "x = " + "[" * 3000, "bad.toml: expected a TOML document"),
    ],
)
def test_a_bad_file_is_told_with_file_and_key_and_the_others_are_there(
    tmp_path: Path, text: str, says: str
) -> None:
    write(tmp_path, "bad.toml", text)
    write(tmp_path, "good.toml", GOOD)
    profiles = load(tmp_path)
    assert profiles.own == {"press"}
    (trouble,) = profiles.troubles
    assert says in trouble
    assert str(tmp_path) in trouble
    assert ", got " in trouble
    with pytest.raises(DocumentError):
        read(tmp_path / "bad.toml")


def test_what_is_no_file_is_told_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "gone.toml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    troubles = load(tmp_path).troubles
    assert len(troubles) == 4


def test_two_of_the_user_s_files_cannot_have_one_name(tmp_path: Path) -> None:
    write(tmp_path, "a.toml", GOOD)
    write(tmp_path, "b.toml", GOOD)
    (trouble,) = load(tmp_path).troubles
    assert "b.toml: another file of this folder is called 'press' too" in trouble


def test_a_folder_of_countless_files_is_read_up_to_a_bound(tmp_path: Path) -> None:
    for number in range(260):
        write(tmp_path, f"{number:03}.toml", GOOD.replace('"press"', f'"p{number}"', 1))
    profiles = load(tmp_path)
    assert len(profiles.own) == 256
    assert "only the first 256 of 260" in profiles.troubles[0]
