"""`edgeward status`, `rollback` and `logs`: on the device itself, or from afar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from agent.cli import exits, options, tail
from agent.cli.commands import HELP_SETTINGS
from agent.cli.configuration import load_settings
from agent.cli.status_table import print_status
from agent.documents.text import printable
from agent.errors import AgentError, UsageError, retold
from agent.links.local import ask, find_socket

STATUS_EPILOG = """\b
Examples:
  edgeward status                                        on the device
  edgeward status --broker mqtt://broker --device press-7

""" + exits.epilog(exits.DONE, exits.USAGE, exits.LINK)
ROLLBACK_EPILOG = """\b
Examples:
  edgeward rollback vibration                            on the device
  edgeward rollback vibration --broker mqtt://broker --device press-7

""" + exits.epilog(exits.DONE, exits.USAGE, exits.LINK)
LOGS_EPILOG = """\b
Example:
  edgeward logs -n 100 --follow

""" + exits.epilog(exits.DONE, exits.USAGE)


@click.command(epilog=STATUS_EPILOG, context_settings=HELP_SETTINGS)
@options.config
@options.broker(required=False)
@options.as_json
def status(config: Path | None, as_json: bool, **values: Any) -> int:
    """Show what a device serves: on the device itself, or from afar with --broker and --device."""
    if _from_afar(values):
        found = _ask_device(values, "status")
    else:
        found = ask(find_socket(load_settings(config)), {"command": "status"})
    raise_error(found)
    if as_json:
        click.echo(json.dumps(found))
    else:
        terminal = Console(highlight=False)
        # A pipe has no width of its own; what reads it wants whole words.
        print_status(
            terminal if terminal.is_terminal else Console(highlight=False, width=200),
            _printable(found),
        )
    return exits.DONE


@click.command(epilog=ROLLBACK_EPILOG, context_settings=HELP_SETTINGS)
@click.argument("slot")
@options.config
@options.broker(required=False)
@options.as_json
def rollback(slot: str, config: Path | None, as_json: bool, **values: Any) -> int:
    """Let SLOT serve its previous pack again."""
    if _from_afar(values):
        answer = _ask_device(values, "rollback", slot=slot)
    else:
        answer = ask(find_socket(load_settings(config)), {"command": "rollback", "slot": slot})
    raise_error(answer)
    click.echo(
        json.dumps(answer)
        if as_json
        else printable(f"slot {slot} goes back to pack {answer.get('to')}")
    )
    return exits.DONE


@click.command(epilog=LOGS_EPILOG, context_settings=HELP_SETTINGS)
@options.config
@click.option("-n", "count", type=click.IntRange(0, tail.MAX_LINES), default=50, show_default=True)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until Ctrl-C.")
def logs(config: Path | None, count: int, follow: bool) -> int:
    """Show the agent's log on this device."""
    path = Path(load_settings(config).state_dir) / "log" / "agent.log"
    if not path.is_file():
        raise UsageError(
            f"there is no log at {path}", hint="has the agent run here? name its --config"
        )
    for line in tail.last_lines(path, count):
        click.echo(printable(line))
    for line in tail.follow(path) if follow else ():
        click.echo(printable(line))
    return exits.DONE


def _from_afar(values: dict[str, Any]) -> bool:
    if bool(values["broker"]) != bool(values["device"]):
        raise UsageError("--broker and --device belong together")
    return bool(values["broker"])


def _ask_device(values: dict[str, Any], command: str, **request: str) -> dict[str, Any]:
    # Not needed on the device itself, where importing takes its time.
    from agent.author import remote
    from agent.author.broker import Broker

    prefix = options.prefix_for(values["prefix"], values["device"])
    with Broker(options.broker_options(values)) as broker:
        if command == "status":
            return remote.status(broker, prefix, values["device"])
        return remote.command(broker, prefix, command, request)


def raise_error(answer: dict[str, Any]) -> None:
    """Raise the error that an agent has answered with, as if it had happened here."""
    told = answer.get("error")
    if not isinstance(told, dict):
        return
    message, hint = printable(str(told.get("message"))), printable(str(told.get("hint") or ""))
    raise retold(str(told.get("code")), message, hint, otherwise=AgentError)


def _printable(found: Any) -> Any:
    """What a device answered, in characters that do nothing to a terminal."""
    if isinstance(found, str):
        return printable(found)
    if isinstance(found, dict):
        return {printable(str(name)): _printable(value) for name, value in found.items()}
    return [_printable(value) for value in found] if isinstance(found, list) else found
