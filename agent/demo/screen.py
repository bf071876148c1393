"""What a person sees: a live view on a terminal, plain lines elsewhere, a page at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agent.demo.ledger import SlotLedger
from agent.demo.run import Progress

COLOURS = {
    "healthy": "green",
    "normal": "green",
    "worn": "yellow",
    "anomalous": "yellow",
    "faulty": "red",
}
BAR = 24


@contextlib.contextmanager
def live(progress: Progress, console: Console) -> Iterator[None]:
    """Redraw a view of the show some times a second."""
    view = View(progress)
    with Live(view, console=console, refresh_per_second=8, transient=True):
        yield


@contextlib.contextmanager
def lines(progress: Progress, console: Console) -> Iterator[None]:
    """One line per scene, for terminals that cannot redraw and for logs."""
    begin = progress.begin
    started = time.monotonic()

    def printing(scene: str) -> None:
        begin(scene)
        console.print(f"[{time.monotonic() - started:5.1f} s] {scene}", highlight=False)

    progress.begin = printing  # type: ignore[method-assign]
    console.print(f"[  0.0 s] {progress.scene}", highlight=False)
    yield


class View:
    """The live view; rich asks for it whenever it redraws."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __rich__(self) -> RenderableType:
        progress = self._progress
        parts: list[RenderableType] = [self._scenes()]
        if progress.fleet is not None:
            parts += [self._machines(), self._slots()]
        return Panel(
            Group(*parts), title="[bold]Edgeward[/bold]", subtitle=self._clock(), padding=(1, 2)
        )

    def _clock(self) -> str:
        progress = self._progress
        if not progress.started:
            return "getting ready"
        passed = min(time.monotonic() - progress.started, progress.seconds)
        return f"{passed:.0f} of {progress.seconds:.0f} s · broker: {progress.broker}"

    def _scenes(self) -> RenderableType:
        text = Text()
        for scene in self._progress.scenes[:-1]:
            text.append("✓ ", "green").append(scene + "\n", "dim")
        text.append("▶ ", "bold cyan").append(self._progress.scene, "bold")
        moved = self._progress.transferred
        if moved is not None and moved[0] < moved[1]:
            text.append(f"  {moved[0] / 1000:.0f} of {moved[1] / 1000:.0f} kB", "cyan")
        return text

    def _machines(self) -> RenderableType:
        progress = self._progress
        fleet, consumer = progress.fleet, progress.consumer
        assert fleet is not None
        table = Table(box=None, pad_edge=False, padding=(1, 2, 0, 0))
        for heading in ("machine", "wear", "truth", "vibration says", "temperature says"):
            table.add_column(heading, header_style="dim")
        for name, wear in fleet.wear.items():
            filled = min(BAR, round(wear * BAR))
            truth = fleet.conditions[name]
            last = consumer.last if consumer is not None else {}
            table.add_row(
                name,
                Text("█" * filled + "·" * (BAR - filled), COLOURS[truth]),
                _coloured(truth),
                _coloured(last.get(f"predictions/bearing/{name}", "–")),
                _coloured(last.get(f"predictions/thermal/{name}", "–")),
            )
        return table

    def _slots(self) -> RenderableType:
        progress = self._progress
        with progress.lock:
            slots = {name: _row(name, slot) for name, slot in progress.ledger.slots.items()}
            lost, repeats = progress.ledger.lost, progress.ledger.duplicates
            sent = len(progress.ledger.sent)
        table = Table(box=None, pad_edge=False, padding=(1, 2, 0, 0))
        for heading in ("slot", "version", "runtime", "predictions", "right, lately", "round trip"):
            table.add_column(heading, header_style="dim")
        for row in slots.values():
            table.add_row(*row)
        counts = Text(
            f"\n{sent} sent · {lost} without an answer yet · {repeats} twice · "
            f"{progress.rejected} packs refused · {progress.worker_restarts} worker restarts",
            "dim",
        )
        return Group(table, counts)


def summary(progress: Progress, console: Console) -> None:
    """The page of what happened."""
    result = progress.result()
    table = Table(title="What happened", title_style="bold", show_header=False, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for name, text in _facts(result, progress):
        table.add_row(name, text)
    console.print(table)


def _facts(result: dict[str, Any], progress: Progress) -> Iterator[tuple[str, str]]:
    lost = (
        f"[green]{result['lost']} lost[/]" if not result["lost"] else f"[red]{result['lost']} lost"
    )
    filled = result["messages"] - result["predictions"] - result["lost"]
    yield (
        "messages",
        f"{result['messages']} sent, {result['predictions']} answered, {lost}; "
        f"{filled} only filled the first windows",
    )
    yield "repeats", f"{result['duplicates']} answered twice (same id)"
    for name, slot in result["slots"].items():
        accuracy = ", ".join(
            f"version {version}: {share:.0%} right"
            for version, share in slot["accuracy_by_version"].items()
        )
        yield f"slot {name}", f"{slot['runtime']} ({slot['provider']}), {accuracy}"
        yield "", f"round trip {slot['p50_ms']} ms, half of them faster"
    yield "models switched", f"{result['switches']}, between two messages"
    for refusal in result["refusals"]:
        yield "pack refused", refusal
    yield "worker killed", f"{result['worker_restarts']}, another took over"
    yield "broker", f"{result['broker']}, dropped {result['broker_drops']} time(s)"


def _row(name: str, slot: SlotLedger) -> tuple[str, ...]:
    recent = slot.recent_accuracy
    return (
        name,
        slot.version_of[slot.packs[-1]],
        slot.runtime,
        str(slot.answered),
        f"{recent:.0%}" if recent is not None else "–",
        f"{slot.p50_ms} ms",
    )


def _coloured(label: str) -> Text:
    return Text(label, COLOURS.get(label, "dim"))
