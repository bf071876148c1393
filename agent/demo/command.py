"""`edgeward demo`: everything on one machine, nothing to configure."""

from __future__ import annotations

import contextlib
from typing import Any

import click
from rich.console import Console

from agent.demo import run, screen

EPILOG = """\b
Examples:
  edgeward demo
  edgeward demo --seconds 30 --json

\b
Exit codes:
  0  every message was answered, and what had to be refused was
  1  something went otherwise; the page says what
"""


@click.command(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--seconds",
    type=click.FloatRange(min=run.LEAST_SECONDS),
    default=run.DEFAULT_SECONDS,
    show_default=True,
    help="How long the sensors stream.",
)
@click.option("--json", "as_json", is_flag=True, help="The last line is one JSON object.")
@click.option(
    "--broker",
    type=click.Choice(["auto", "mosquitto", "embedded"]),
    default="auto",
    show_default=True,
    help="mosquitto is restarted; of the embedded one, connections are cut.",
)
def demo(seconds: float, as_json: bool, broker: str) -> int:
    """See everything work on this machine.

    A broker, four machines whose bearings wear out, models made from their physics; packs pulled
    over MQTT, replaced while data flows, refused when bad; a worker killed, the broker dropped.
    Nothing outside a temporary folder is touched.
    """
    console = Console(stderr=as_json, highlight=False)

    def on_start(progress: run.Progress) -> contextlib.AbstractContextManager[Any]:
        shown = screen.live if console.is_terminal and not as_json else screen.lines
        return shown(progress, console)

    progress = run.play(seconds, on_start, broker=broker)
    if as_json:
        click.echo(run.as_json(progress))
    else:
        screen.summary(progress, console)
    result = progress.result()
    as_told = not result["lost"] and result["rejected"] == 2 and result["worker_restarts"] == 1
    return 0 if as_told else 1
