"""The table shows every limit beside its value, and counts what was missed."""

from __future__ import annotations

from bench import table
from bench.limits import SECTIONS, Limit, at_least


def results(agent: float, expert: float) -> table.Results:
    return {
        "tab-0": {
            "agent": {"w1_p50_us": [agent, agent], "root_mb": [20.0, 31.0]},
            "expert": {"w1_p50_us": [expert, expert]},
            "plain": {"w1_p50_us": [1000.0, 1000.0]},
        }
    }


def test_a_limit_holds_up_to_its_bound() -> None:
    assert Limit(1.2).holds(1.2)
    assert not Limit(1.2).holds(1.21)
    assert at_least(1.6).holds(1.6)
    assert not at_least(1.6).holds(float("nan"))
    assert not Limit(1.6).holds(float("nan"))
    assert (str(Limit(1.2)), str(at_least(5))) == ("≤ 1.2", "≥ 5")


def test_kept_and_missed_limits_are_told_apart() -> None:
    rows, missed = table.lines(results(agent=110, expert=100))
    text = table.as_text(rows)
    assert "1.10 (1.10–1.10)" in text
    assert "≤ 1.2 ok" in text
    assert missed == 0
    _, missed = table.lines(results(agent=130, expert=100))
    assert missed == 1


def test_the_median_of_rounds_decides_a_limit_of_the_agents_own() -> None:
    # 20 and 31 MB in two rounds: the median keeps 30.
    rows, _ = table.lines(results(1, 1))
    assert any(cells[-1] == "≤ 30 ok" for cells in rows)


def test_one_lost_message_in_one_round_misses_the_limit() -> None:
    run: table.Results = {"kill": {"agent": {"lost": [0.0, 1.0, 0.0]}}}
    rows, missed = table.lines(run)
    assert missed == 1
    assert rows[-1][1] == "0 (0–1)"


def test_measures_that_were_not_taken_are_left_out() -> None:
    rows, _ = table.lines(results(1, 1))
    assert {row[0] for row in rows} == {
        "measure",
        "tab, QoS 0",
        "window 1: p50",
        "memory (PSS) and start: tab, QoS 0",
        "the daemon, serving",
    }


def test_markdown_has_a_cell_for_every_column() -> None:
    rows, _ = table.lines(results(1, 1))
    lines = table.as_markdown(rows).splitlines()
    assert {line.count("|") for line in lines} == {len(table.HEAD) + 1}


def test_every_figure_stands_in_one_row() -> None:
    figures = [(row.scenario, row.figure) for rows in SECTIONS.values() for row in rows]
    assert len(figures) == len(set(figures))
