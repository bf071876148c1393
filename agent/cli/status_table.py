"""What `edgeward status` shows a person: a few lines and one narrow table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

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
_CONDITION_STYLES = {"well": "dim", "warm": "dim", "pressed": "yellow"}
_CONDITION_WORDS = {"undervoltage": "under-voltage", "pressed": "short of memory"}


def print_status(console: Console, found: Mapping[str, Any]) -> None:
    """Print the status of a device, as its agent or its last report tells it."""
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
    _print_condition(console, found)
    for name in ("refused", "trouble"):
        if found.get(name):
            _print_failure(console, name, found[name])
    slots = found.get("slots") or {}
    if slots:
        console.print(_slot_table(slots))
    for name, slot in slots.items():
        _print_slot(console, name, slot)


def _print_condition(console: Console, found: Mapping[str, Any]) -> None:
    """Say how the device is; nothing where nobody has looked."""
    worst = found.get("condition")
    if not worst:
        return
    names = [_CONDITION_WORDS.get(name, name) for name in found.get("conditions") or [worst]]
    temperature = found.get("temperature_c")
    degrees = f" · {temperature:.3g} °C" if isinstance(temperature, (int, float)) else ""
    style = _CONDITION_STYLES.get(worst, "red")
    console.print(escape(f"condition {', '.join(names)}{degrees}"), style=style, soft_wrap=True)


def _print_slot(console: Console, name: str, slot: Mapping[str, Any]) -> None:
    """Print what has no column: it is rarely there, or long."""
    if slot.get("error"):
        _print_failure(console, name, slot["error"])
    less = _less_than_wanted(slot.get("placement") or {})
    counted = [f"{what} {slot[key]}" for key, what in _COUNTED.items() if slot.get(key)]
    lines = (
        (less, "yellow"),
        (slot.get("policy"), "yellow"),
        (_trust(slot.get("trust")), "dim"),
        (_isolation(slot.get("isolation")), "dim"),
        (_isolation(slot.get("owner"), "its device's owner: "), "dim"),
        (", ".join(counted), "dim"),
    )
    for line, style in lines:
        if line:
            console.print(escape(f"{name}: {line}"), style=style, soft_wrap=True)


def _less_than_wanted(placement: Mapping[str, Any]) -> str:
    """Say why a model does not run as it was to run; nothing where it does."""
    wanted, got, why = (str(placement.get(key) or "") for key in ("wanted", "got", "why"))
    share = _percent(placement.get("operators"))
    if wanted == got and not share:
        return why
    of_it = f" for {share} of the operators" if share else ""
    return f"wanted {wanted}, got {got}{of_it}" + (f": {why}" if why else "")


def _trust(trust: Mapping[str, Any] | None) -> str:
    """Say who vouches for the pack."""
    if not trust:
        return ""
    if trust.get("state") != "signed":
        return "unsigned: checked against its digests only"
    by = f"{trust['subject']}, " if trust.get("subject") else ""
    return f"signed by {by}key {str(trust.get('key', ''))[:16]}…"


def _isolation(isolation: Mapping[str, Any] | None, whose: str = "") -> str:
    if not isolation:
        return ""
    policy = isolation.get("policy", "strict")
    words = [f"{whose}isolation {isolation.get('level', 'none')}"]
    words += [f"policy {policy}"] if policy != "strict" else []
    missing = isolation.get("missing") or {}
    words += [f"without {', '.join(missing)}"] if missing else []
    return ", ".join(words)


def _print_failure(console: Console, name: str, failure: Mapping[str, Any]) -> None:
    hint = f" ({failure['hint']})" if failure.get("hint") else ""
    code = f" [{failure['code']}]" if failure.get("code") else ""
    said = escape(f"{failure.get('message')}{hint}{code}")
    console.print(f"[red]{escape(name)}[/]: {said}", soft_wrap=True)


def _slot_table(slots: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("slot", "state", "model", "runs on", "p50 ms", "worker", "predictions", "lost"):
        table.add_column(column)
    for name, slot in slots.items():
        state = str(slot.get("state", ""))
        style = _STYLES.get(state, "yellow")
        table.add_row(
            escape(name),
            f"[{style}]{escape(state + _progress(slot.get('progress')))}[/]",
            escape(_model(slot)),
            _runs_on(slot),
            _number(slot.get("p50_ms")),
            _number(slot.get("worker_pid")),
            _number(slot.get("predictions")),
            _number(slot.get("dropped")),
        )
    return table


def _runs_on(slot: Mapping[str, Any]) -> str:
    """Return `onnx CPU`, `onnx TensorRT 97%`, or `onnx CPU, not CUDA`."""
    placement = slot.get("placement") or {}
    got, wanted = placement.get("got") or slot.get("provider"), placement.get("wanted")
    share = _percent(placement.get("operators"))
    plain = " ".join(filter(None, (slot.get("runtime"), _short(got), share)))
    if not wanted or wanted == got:
        return f"[yellow]{escape(plain)}[/]" if share else escape(plain)
    return f"[yellow]{escape(f'{plain}, not {_short(wanted)}')}[/]"


def _short(provider: object) -> str:
    """A provider as people call it: of ONNX Runtime's names the end says nothing."""
    return str(provider or "").removesuffix("ExecutionProvider")


def _percent(share: object) -> str:
    """A share that is less than all; of the last percent nothing is rounded away."""
    return f"{int(100 * share)}%" if isinstance(share, (int, float)) and share < 1 else ""


def _model(slot: Mapping[str, Any]) -> str:
    named = f"{slot.get('name') or ''} {slot.get('version') or ''}".strip()
    return named or str(slot.get("pack") or "")[:19]


def _progress(progress: object) -> str:
    if not isinstance(progress, dict) or not progress.get("total_bytes"):
        return ""
    return f" {progress.get('done_bytes', 0) / progress['total_bytes']:.0%}"


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else str(value)
