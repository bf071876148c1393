"""docs/runtimes.md says what there is: `python -m tests.runtimes.test_page` writes it anew."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

from agent.runtimes.onnx_providers import CPU, PROVIDERS, SESSION_OPTIONS
from agent.runtimes.reference.plan import NEWEST_IR_VERSION, NEWEST_OPSET, known_operators

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "runtimes.md"
SUITE = ROOT / "tests" / "contracts" / "test_runtimes.py"


def contract_table() -> str:
    """One row for each promise, a test that all pass; one column for each runtime."""
    from tests.contracts import test_runtimes as suite

    names = [kit.name for kit in suite.RUNTIMES]
    rows = [f"| promise | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for claim in re.findall(r"^def test_(\w+)\(", SUITE.read_text(), re.MULTILINE):
        marks = getattr(getattr(suite, f"test_{claim}"), "pytestmark", [])
        free = suite.of_free_dimensions.mark in marks
        cells = ("–" if free and kit.fixed else "✓" for kit in suite.RUNTIMES)
        rows.append(f"| {claim.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(rows)


def operator_list() -> str:
    """The reference runtime's operators by domain."""
    known = known_operators()
    plain = ", ".join(f"`{name}`" for name in known if ":" not in name)
    trained = ", ".join(f"`{name.partition(':')[2]}`" for name in known if ":" in name)
    paragraphs = (f"ai.onnx: {plain}.", f"ai.onnx.ml: {trained}.")
    return "\n\n".join("\n".join(textwrap.wrap(text, 140)) for text in paragraphs)


PARTS = {"contract": contract_table, "operators": operator_list}


def anew(text: str) -> str:
    """The page with its generated parts made again."""
    for name, make in PARTS.items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n{make()}\n\n{end}{after}"
    return text


def test_the_generated_parts_are_those_of_the_code() -> None:
    text = PAGE.read_text()
    assert text == anew(text), "python -m tests.runtimes.test_page writes it anew"


def test_every_provider_and_option_is_on_the_page() -> None:
    named = set(re.findall(r"`([^`]+)`", PAGE.read_text()))
    assert set(PROVIDERS) - {CPU} <= named
    assert set(SESSION_OPTIONS) <= named
    assert {option for provider in PROVIDERS.values() for option in provider.options} <= named


def test_the_versions_on_the_page_are_those_of_the_code() -> None:
    assert f"opset {NEWEST_OPSET} and\nIR version {NEWEST_IR_VERSION}" in PAGE.read_text()


if __name__ == "__main__":
    sys.path.append(str(ROOT / "examples" / "runtime-example"))
    PAGE.write_text(anew(PAGE.read_text()))
