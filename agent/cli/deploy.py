"""`edgeward deploy`: from a workstation, give a pack to a device and wait for its verdict."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Literal

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from agent.author import publish
from agent.author.broker import Broker
from agent.author.offer import Offer, open_pack
from agent.cli import exits, options
from agent.cli.commands import HELP_SETTINGS
from agent.documents.deployment import Input, Output, Rollout, Setting, Slot
from agent.documents.report import Failure, SlotReport
from agent.errors import UsageError

EPILOG = """\b
Example:
  edgeward deploy packs/vibration --slot vibration --device press-7 \\
    --broker mqtts://broker.example --input-topic 'sensors/+/accel' \\
    --output-topic 'predictions/{slot}/{1}'

""" + exits.epilog(
    exits.DONE,
    exits.FAILED,
    exits.USAGE,
    exits.REFUSED_BY_DEVICE,
    exits.ROLLED_BACK,
    exits.TIMED_OUT,
    exits.LINK,
    exits.BAD_PACK,
)
_LITERALS: dict[str, Setting] = {"true": True, "false": False}


@click.command(epilog=EPILOG, context_settings=HELP_SETTINGS)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--slot", required=True, help="The place on the device where the pack serves.")
@click.option("--input-topic", required=True, help="Topic filter of the sensor messages.")
@click.option("--output-topic", required=True, help="May hold {slot}, {device}, {1}, {2} …")
@options.broker(required=True)
@click.option("--qos", type=click.Choice(["0", "1"]), default="1", show_default=True)
@click.option("--setting", "settings", multiple=True, metavar="NAME=VALUE", help="Of the pack.")
@click.option("--probation", type=float, metavar="SECONDS", help="How long the old pack stays.")
@click.option("--from", "source", metavar="URL", help="Where the device finds the pack.")
@click.option("--replace", is_flag=True, help="Drop what the document says of other slots.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for the verdict.")
@click.option("--timeout", type=float, default=600.0, show_default=True, metavar="SECONDS")
@options.as_json
def deploy(directory: Path, as_json: bool, **values: Any) -> int:
    """Give the pack in DIRECTORY to a device and wait for the device's verdict.

    The pack goes over the broker, in blocks that the device asks for, unless --from names another
    source. Other slots of the device stay as they are.
    """
    began = time.monotonic()
    offer = open_pack(directory)
    order = _order(offer, values)
    with Broker(options.broker_options(values)) as broker, _Screen(order, quiet=as_json) as screen:
        verdict = publish.Verdict("timed_out")
        try:
            for event in publish.deploy(broker, offer, order):
                screen.show(event)
                if isinstance(event, publish.Verdict):
                    verdict = event
        except KeyboardInterrupt:
            screen.left()
            raise
    if as_json:
        click.echo(_as_json(order, offer, verdict, time.monotonic() - began))
    return exits.of_verdict(verdict.state, hindered=verdict.error is not None)


def _order(offer: Offer, values: dict[str, Any]) -> publish.Order:
    qos: Literal[0, 1] = 1 if values["qos"] == "1" else 0
    probation = values["probation"]
    target = Slot(
        pack=offer.id,
        source=values["source"] or "mqtt:",
        input=Input(values["input_topic"], qos=qos),
        output=Output(values["output_topic"], qos=qos),
        rollout=Rollout() if probation is None else Rollout(probation_s=probation),
        settings=dict(_setting(text) for text in values["settings"]),
    )
    return publish.Order(
        device=values["device"],
        prefix=options.prefix_for(values["prefix"], values["device"]),
        slot=values["slot"],
        target=target,
        deployment=publish.new_deployment_id(values["slot"], offer),
        replace=values["replace"],
        wait=values["wait"],
        timeout_s=values["timeout"],
    )


def _setting(text: str) -> tuple[str, Setting]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--setting {text!r} is not NAME=VALUE", hint="--setting threshold=0.8")
    if value in _LITERALS:
        return name, _LITERALS[value]
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


def _as_json(order: publish.Order, offer: Offer, verdict: publish.Verdict, took_s: float) -> str:
    return json.dumps(
        {
            "deployment": order.deployment,
            "device": order.device,
            "slot": order.slot,
            "pack": offer.id,
            "state": verdict.state,
            "error": msgspec.to_builtins(verdict.error),
            "report": msgspec.to_builtins(verdict.report),
            "duration_s": round(took_s, 3),
        }
    )


class _Screen:
    """What a person sees while a deployment goes on; on stderr, so that stdout stays for data."""

    def __init__(self, order: publish.Order, *, quiet: bool) -> None:
        self._order = order
        self._is_published = False
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("pack", total=None, visible=False)

    def __enter__(self) -> _Screen:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, event: publish.Event) -> None:
        _SHOWN[type(event)](self, event)

    def left(self) -> None:
        """Nobody waits any more: say what goes on without us."""
        if not self._is_published:
            return
        self._say("the deployment stays at the broker, and the device follows it without us")
        if self._order.target.source.startswith("mqtt:"):
            self._say("but only this command has the pack: start it again if the device lacks it")

    def published(self, event: publish.Published) -> None:
        self._is_published = True
        slot = escape(f"{self._order.device}, slot {self._order.slot}")
        self._say(f"deployment {escape(event.deployment)} → {slot}")

    def status(self, event: publish.DeviceStatus) -> None:
        if event.online is None:
            place = escape(f"{self._order.device} below {self._order.prefix}")
            self._say(f"the broker has never seen {place}; waiting for it (is the name right?)")
        elif not event.online:
            self._say("the device is offline; it will go on when it is back")

    def transferred(self, event: publish.Transferred) -> None:
        visible = event.done_bytes < event.total_bytes
        self._bar.update(
            self._task, completed=event.done_bytes, total=event.total_bytes, visible=visible
        )

    def moved(self, event: publish.Moved) -> None:
        if event.state in exits.BY_VERDICT:
            return  # the verdict itself comes next
        why = f" ({escape(event.error.message)})" if event.error is not None else ""
        self._say(f"[dim]  {event.state}{why}[/]")

    def verdict(self, event: publish.Verdict) -> None:
        self._bar.update(self._task, visible=False)
        if event.error is not None:
            but = ", but" if event.state == "active" else ""
            self._say(f"[bold red]{event.state}{but}[/]: {_sentence(event.error)}")
        else:
            self._say(f"[bold green]{event.state}[/]{_what_runs(event.report)}")
        if event.state == "timed_out":
            self.left()

    def _say(self, text: str) -> None:
        # One line each, however narrow: a log or a grep wants whole sentences.
        self._console.print(text, soft_wrap=True)


_SHOWN: dict[type, Any] = {
    publish.Published: _Screen.published,
    publish.DeviceStatus: _Screen.status,
    publish.Transferred: _Screen.transferred,
    publish.Moved: _Screen.moved,
    publish.Verdict: _Screen.verdict,
}


def _sentence(error: Failure) -> str:
    hint = f" ({error.hint})" if error.hint else ""
    return escape(f"{error.message}{hint} [{error.code}]")


def _what_runs(report: SlotReport | None) -> str:
    if report is None or not report.runtime:
        return ""
    took = f", {report.p50_ms:.3g} ms" if report.p50_ms is not None else ""
    model = f"{report.name} {report.version} on {report.runtime} {report.runtime_version}"
    return escape(f": {model} ({report.provider}{took})")
