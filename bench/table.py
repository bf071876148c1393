"""The table: medians of all systems, ratios, and what they should be. Text in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench.limits import SECTIONS, Limit, Row
from bench.stats import ratios, spread

# Scenario → system → figure → one value a round.
Results = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
HEAD = ("measure", "agent", "expert", "plain", "agent / expert", "", "agent / plain", "", "limit")
OK, MISSED = "ok", "MISSED"


def lines(results: Results) -> tuple[list[tuple[str, ...]], int]:
    """Return the table's cells, row by row, and how many limits were missed.

    A row of one cell is a heading. Measures that were not taken are left out.
    """
    table: list[tuple[str, ...]] = [HEAD]
    missed = 0
    for heading, rows in SECTIONS.items():
        taken = [cells for row in rows if (cells := _row(row, results))]
        if taken:
            table += [(heading,), *taken]
        missed += sum(cell.endswith(MISSED) for cells in taken for cell in cells)
    return table, missed


def _row(row: Row, results: Results) -> tuple[str, ...]:
    """The cells of a row; none where there is nothing to show."""
    systems = {
        name: figures[row.figure]
        for name, figures in results.get(row.scenario, {}).items()
        if figures.get(row.figure)
    }
    if "agent" not in systems and len(systems) < 2:
        return ()
    values = [_value(systems.get(name), row.unit) for name in ("agent", "expert", "plain")]
    return (row.title, *values, *_versus(row.expert, systems, "expert"),
            *_versus(row.plain, systems, "plain"), _own(row, systems.get("agent")))  # fmt: skip


def _versus(
    limit: Limit | None, systems: Mapping[str, Sequence[float]], other: str
) -> tuple[str, str]:
    """A ratio with its range, and the limit with the verdict."""
    found = ratios(systems.get("agent", ()), systems.get(other, ()))
    if found is None:
        return "", ""
    shown = f"{found.median:.2f} ({found.low:.2f}–{found.high:.2f})"
    if limit is None:
        return shown, ""
    return shown, f"{limit} {OK if limit.holds(found.median) else MISSED}"


def _own(row: Row, values: Sequence[float] | None) -> str:
    if row.own is None or not values:
        return ""
    return f"{row.own} {OK if row.own_holds(spread(values)) else MISSED}"


def _value(values: Sequence[float] | None, unit: str) -> str:
    if not values:
        return ""
    median, low, high = spread(values)
    if not unit and low == high:
        return f"{median:,.0f}"
    if unit == "MB":
        return f"{median:.1f} MB"
    if not unit and high < 1000:
        return f"{median:,.0f} ({low:,.0f}–{high:,.0f})"
    return f"{median:,.0f} {unit}".rstrip()


def as_text(table: Iterable[tuple[str, ...]]) -> str:
    """Columns of equal width, for a terminal."""
    rows = [row for row in table if len(row) > 1]
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEAD))]
    out = []
    for row in table:
        if len(row) == 1:
            out += ["", row[0]]
            continue
        padded = [cell.ljust(width) if at == 0 else cell.rjust(width)
                  for at, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        out.append("  ".join(padded).rstrip())
    return "\n".join(out)


def as_markdown(table: Iterable[tuple[str, ...]]) -> str:
    """A table for a document."""
    out = []
    for row in table:
        cells = row if len(row) > 1 else (f"**{row[0]}**", *[""] * (len(HEAD) - 1))
        out.append(f"| {' | '.join(cells)} |")
        if row == HEAD:
            out.append("|---" + "|---:" * (len(HEAD) - 1) + "|")
    return "\n".join(out)
