"""Class names, one a line, as label files have them."""

from __future__ import annotations

import itertools
import re

from agent.errors import ModelRejected

MAX_LABELS = 100_000
MAX_LABEL_LENGTH = 256
_NUMBERED = re.compile(r"(\d{1,6})(?::\s*|\s+)(\S.*)")
_NAME = re.compile(r"""(\d{1,6}):\s?(?:'([^'\\]*)'|"([^"\\]*)")""")


def parse_labels(raw: bytes | memoryview) -> tuple[str, ...]:
    """Labels in class order.

    Lines of the form "7 name" or "7: name" that count up from 0 give their class themselves; a
    class without a line is "". Otherwise line n is class n, and an empty line keeps its place.

    Raises:
        ModelRejected: not UTF-8, a control character, or too many or too long labels.
    """
    try:
        text = str(raw, "utf-8-sig")
    except UnicodeDecodeError:
        raise ModelRejected("the label file is not UTF-8 text") from None
    lines = [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    if len(lines) > MAX_LABELS:
        raise ModelRejected(f"the label file has {len(lines)} lines (at most {MAX_LABELS})")
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_LABEL_LENGTH:
            raise ModelRejected(
                f"line {number} of the label file has {len(line)} characters "
                f"(at most {MAX_LABEL_LENGTH})"
            )
        if not line.isprintable():
            raise ModelRejected(f"line {number} of the label file holds a control character")
    return _by_number(lines) or tuple(lines)


def _by_number(lines: list[str]) -> tuple[str, ...] | None:
    matches = [_NUMBERED.fullmatch(line) for line in lines]
    numbered = [(int(m[1]), m[2]) for m in matches if m]
    numbers = [number for number, _ in numbered]
    if len(numbered) < len(lines) or not numbers or numbers[0] != 0:
        return None
    if any(after <= before for before, after in itertools.pairwise(numbers)):
        return None
    if numbers[-1] >= MAX_LABELS:
        return None
    names = dict(numbered)
    return tuple(names.get(index, "") for index in range(numbers[-1] + 1))


def parse_names(raw: bytes | memoryview) -> tuple[str, ...] | None:
    """Labels from the text `{0: 'person', 1: 'bicycle'}`, as detectors carry it in their metadata.

    Returns:
        None where the text is anything else; it is matched, never evaluated.
    """
    text = str(raw[: MAX_LABELS * 8], "utf-8", "replace")
    pairs = [(int(m[1]), m[2] if m[2] is not None else m[3]) for m in _NAME.finditer(text)]
    if not pairs or [number for number, _ in pairs] != list(range(len(pairs))):
        return None
    good = all(len(name) <= MAX_LABEL_LENGTH and name.isprintable() for _, name in pairs)
    return tuple(name for _, name in pairs) if good and len(pairs) <= MAX_LABELS else None
