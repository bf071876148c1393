"""`edgeward status`, `rollback` and `logs`: on the device itself, or from afar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent.cli import exits, options, tail
from agent.cli.commands import HELP_SETTINGS
from agent.cli.configuration import load_settings
from agent.documents.text import printable
from agent.errors import AgentError, UsageError
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

# Counters that stand at 0 where all is well.
_COUNTED = {
    "rejected": "rejected",
    "dead_letters": "dead letters",
    "bad_outputs": "bad outputs",
    "unsent": "unsent",
    "acknowledged_early": "acknowledged early",
    "worker_restarts": "worker restarts",
    "waiting": "waiting now",
}
_STYLES = {"active": "green", "failed": "red", "rolled_back": "red"}


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
    _raise_error(found)
    if as_json:
        click.echo(json.dumps(found))
    else:
        terminal = Console(highlight=False)
        # A pipe has no width of its own; what reads it wants whole words.
        _print_status(
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
    _raise_error(answer)
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


def _raise_error(answer: dict[str, Any]) -> None:
    """Raise the error that an agent has answered with, as if it had happened here."""
    told = answer.get("error")
    if not isinstance(told, dict):
        return
    kinds = {kind.code: kind for kind in _all_kinds(AgentError)}
    kind = kinds.get(str(told.get("code")), AgentError)
    error = kind.__new__(kind)
    message, hint = printable(str(told.get("message"))), printable(str(told.get("hint") or ""))
    AgentError.__init__(error, message, hint=hint)
    raise error


def _printable(found: Any) -> Any:
    """What a device answered, in characters that do nothing to a terminal."""
    if isinstance(found, str):
        return printable(found)
    if isinstance(found, dict):
        return {printable(str(name)): _printable(value) for name, value in found.items()}
    return [_printable(value) for value in found] if isinstance(found, list) else found


def _all_kinds(kind: type[AgentError]) -> list[type[AgentError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in _all_kinds(child))]


def _print_status(console: Console, found: dict[str, Any]) -> None:
    link = found.get("link") or {}
    why = f" ({link['error']})" if link.get("error") else ""
    console.print(
        escape(
            f"device {found.get('device', '?')} · agent {found.get('agent', '?')} · "
            f"link {link.get('state', 'unknown')}{why} · "
            f"deployment {found.get('deployment') or 'none yet'}"
        ),
        soft_wrap=True,
    )
    for name in ("refused", "trouble"):
        if found.get(name):
            _print_failure(console, name, found[name])
    slots = found.get("slots") or {}
    if slots:
        console.print(_slot_table(slots))
    for name, slot in slots.items():
        if slot.get("error"):
            _print_failure(console, name, slot["error"])
        if slot.get("isolation"):
            isolation = escape(f"{name}: {_isolation(slot['isolation'])}")
            console.print(isolation, style="dim", soft_wrap=True)
        counted = [f"{what} {slot[key]}" for key, what in _COUNTED.items() if slot.get(key)]
        if counted:
            console.print(escape(f"{name}: {', '.join(counted)}"), style="dim", soft_wrap=True)


def _isolation(isolation: dict[str, Any]) -> str:
    policy = isolation.get("policy", "strict")
    words = [f"isolation {isolation.get('level', 'none')}"]
    words += [f"policy {policy}"] if policy != "strict" else []
    missing = isolation.get("missing") or {}
    words += [f"without {', '.join(missing)}"] if missing else []
    return ", ".join(words)


def _print_failure(console: Console, name: str, failure: dict[str, Any]) -> None:
    hint = f" ({failure['hint']})" if failure.get("hint") else ""
    code = f" [{failure['code']}]" if failure.get("code") else ""
    said = escape(f"{failure.get('message')}{hint}{code}")
    console.print(f"[red]{escape(name)}[/]: {said}", soft_wrap=True)


def _slot_table(slots: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("slot", "state", "model", "runtime", "p50 ms", "worker", "predictions", "lost"):
        table.add_column(column)
    for name, slot in slots.items():
        state = str(slot.get("state", ""))
        style = _STYLES.get(state, "yellow")
        table.add_row(
            escape(name),
            f"[{style}]{escape(state + _share(slot.get('progress')))}[/]",
            escape(_model(slot)),
            escape(" ".join(str(slot.get(key) or "") for key in ("runtime", "provider"))),
            _number(slot.get("p50_ms")),
            _number(slot.get("worker_pid")),
            _number(slot.get("predictions")),
            _number(slot.get("dropped")),
        )
    return table


def _model(slot: dict[str, Any]) -> str:
    named = f"{slot.get('name') or ''} {slot.get('version') or ''}".strip()
    return named or str(slot.get("pack") or "")[:19]


def _share(progress: object) -> str:
    if not isinstance(progress, dict) or not progress.get("total_bytes"):
        return ""
    return f" {progress.get('done_bytes', 0) / progress['total_bytes']:.0%}"


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else str(value)
