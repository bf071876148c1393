"""docs/profiles.md says what the profiles say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from agent.device.profile_reference import rendered
from agent.device.profiles import load, read
from agent.documents.docstrings import own_fields, structs_in
from agent.documents.profile import Profile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = Path(__file__).resolve().parents[2] / "docs" / "profiles.md"


def test_the_page_is_that_of_the_profiles() -> None:
    text = PAGE.read_text()
    assert rendered(text) == text, "run `make schemas`"


def test_every_profile_every_fault_and_every_key_is_on_the_page() -> None:
    text = " ".join(PAGE.read_text().split())
    for profile in load(None).every:
        assert f"`{profile.name}`" in text
        for fault in profile.faults:
            assert fault.link in text
            assert " ".join(fault.says.split()) in text
    for kind in structs_in(Profile):
        if kind.__module__ == Profile.__module__:
            assert all(f"- `{field.encode_name}` (" in text for field in own_fields(kind))


def test_the_example_is_a_good_profile(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert tomllib.loads(example)
    path = tmp_path / "press.toml"
    path.write_text(example)
    assert read(path).name == "press-controller"
