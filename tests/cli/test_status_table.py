"""What a person reads of a device's status."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from agent.cli.status_table import print_status

DEVICE: dict[str, Any] = {"device": "press-7", "agent": "1", "link": {"state": "connected"}}


def shown(width: int = 200, **more: Any) -> str:
    screen = io.StringIO()
    print_status(Console(file=screen, highlight=False, width=width), {**DEVICE, **more})
    return screen.getvalue()


def slot(**placement: Any) -> dict[str, Any]:
    return {
        "state": "active",
        "name": "vibration",
        "version": "1.2",
        "runtime": "onnx",
        "provider": placement["got"],
        "placement": placement,
        "p50_ms": 0.25,
        "worker_pid": 77,
        "predictions": 1234,
        "dropped": 0,
    }


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (
            {"condition": "undervoltage", "conditions": ["undervoltage", "throttled", "warm"]},
            "condition under-voltage, throttled, warm",
        ),
        (
            {"condition": "hot", "conditions": ["hot", "warm"], "temperature_c": 83.25},
            "condition hot, warm · 83.2 °C",
        ),
        ({"condition": "pressed", "conditions": ["pressed"]}, "condition short of memory"),
        (
            {"condition": "well", "conditions": [], "temperature_c": 41.0},
            "condition well · 41 °C",
        ),
        # An older agent names the worst alone, and one that is just starting none.
        ({"condition": "hot"}, "condition hot"),
        ({"condition": ""}, ""),
        ({}, ""),
    ],
)
def test_the_device_s_condition_stands_in_a_line_of_its_own(
    facts: dict[str, Any], line: str
) -> None:
    assert shown(**facts).splitlines()[1:] == ([line] if line else [])


@pytest.mark.parametrize(
    ("placement", "column", "below"),
    [
        (
            {"wanted": "CPUExecutionProvider", "got": "CPUExecutionProvider", "operators": 1.0},
            "onnx CPU",
            "",
        ),
        (
            {
                "wanted": "TensorrtExecutionProvider",
                "got": "TensorrtExecutionProvider",
                "operators": 0.9977,
                "why": "1 of 431 operators run elsewhere: 1 NonZero",
            },
            "onnx Tensorrt 99%",
            "vib: wanted TensorrtExecutionProvider, got TensorrtExecutionProvider for 99% of the "
            "operators: 1 of 431 operators run elsewhere: 1 NonZero",
        ),
        (
            {
                "wanted": "CUDAExecutionProvider",
                "got": "CPUExecutionProvider",
                "operators": 1.0,
                "why": "CUDAExecutionProvider does not work here",
            },
            "onnx CPU, not CUDA",
            "vib: wanted CUDAExecutionProvider, got CPUExecutionProvider: CUDAExecutionProvider "
            "does not work here",
        ),
        ({"wanted": "EdgeTPU", "got": "CPU"}, "onnx CPU, not EdgeTPU", "vib: wanted EdgeTPU, got"),
        # The way that was chosen is out, and another one runs in full.
        (
            {"wanted": "CPU", "got": "CPU", "operators": 1.0, "why": "EdgeTPU is tried again"},
            "onnx CPU",
            "vib: EdgeTPU is tried again",
        ),
        # The library does not tell the share.
        ({"wanted": "CPU", "got": "CPU"}, "onnx CPU", ""),
    ],
)
def test_a_slot_shows_what_was_wanted_what_was_got_and_how_much_of_it(
    placement: dict[str, Any], column: str, below: str
) -> None:
    heads, row, *lines = shown(slots={"vib": slot(**placement)}).splitlines()[1:]
    start, end = heads.index("runs on"), heads.index("p50 ms")
    assert row[start:end].rstrip() == column
    assert lines == [] if not below else lines[0].startswith(below) and len(lines) == 1


def test_what_a_slot_does_about_heat_is_told() -> None:
    told = shown(slots={"vib": {"state": "active", "policy": "one message in 4 is run"}})
    assert "vib: one message in 4 is run\n" in told


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    stepped_down = slot(
        wanted="TensorrtExecutionProvider", got="CUDAExecutionProvider", operators=0.75
    )
    lines = shown(80, slots={"vibration": stepped_down}).splitlines()
    assert max(map(len, lines[1:3])) <= 80
    assert "onnx CUDA" in lines[2]
    assert "1234" in lines[2]


def test_nothing_that_a_device_says_is_markup() -> None:
    told = shown(
        condition="[red]hot",
        slots={"[b]a": {**slot(wanted="[i]x", got="[u]y", why="[/]"), "policy": "[blink]"}},
    )
    for word in ("[red]hot", "[b]a", "[u]y, not [i]x", "[blink]", ": [/]"):
        assert word in told
