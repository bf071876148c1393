"""The command line: finds the command, runs it, and turns an error into one sentence.

`run` and `--version` need nothing but the bare install; every other command lives in a file of its
own that is imported when it is called.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import NamedTuple

from agent import __version__
from agent.cli import exits
from agent.errors import AgentError, UsageError


class Entry(NamedTuple):
    """One command: where it is, and what `edgeward --help` says of it."""

    module: str
    attribute: str
    help: str


COMMANDS: Mapping[str, Entry] = {
    "demo": Entry("agent.demo.command", "demo", "See everything work on this machine."),
    "run": Entry("agent.cli.device", "run", "Run the agent on a device."),
    "pack": Entry("agent.cli.author", "pack", "Make a pack from a model file."),
    "inspect": Entry("agent.cli.author", "inspect", "Show what is in a pack."),
    "keygen": Entry("agent.cli.sign", "keygen", "Make a pair of keys that signs packs."),
    "sign": Entry("agent.cli.sign", "sign", "Sign a pack."),
    "verify": Entry("agent.cli.sign", "verify", "Verify who signed a pack, and every file of it."),
    "predict": Entry("agent.cli.author", "predict", "Run a pack once, with no broker."),
    "plan": Entry("agent.cli.plan", "plan", "Say whether a pack will run on a device, and why."),
    "bench": Entry("agent.cli.bench", "bench", "Measure the ways to run a pack on this machine."),
    "deploy": Entry("agent.cli.deploy", "deploy", "Give a pack to a device and wait for it."),
    "status": Entry("agent.cli.operate", "status", "Show what a device serves."),
    "load": Entry("agent.cli.load", "load", "Put a pack from a medium into the device's store."),
    "rollback": Entry("agent.cli.operate", "rollback", "Let a slot serve its previous pack again."),
    "logs": Entry("agent.cli.operate", "logs", "Show the agent's log on this device."),
    "store": Entry("agent.cli.store", "store", "Read the packs on this device again; repair them."),
    "evidence": Entry(
        "agent.cli.evidence", "evidence", "Export what happened on this device, and verify that."
    ),
    "detect": Entry("agent.cli.detect", "detect", "Say what this device is, and what works on it."),
}

# Module that is missing → the extra that brings it.
_EXTRAS = {
    "click": "cli",
    "rich": "cli",
    "paho": "cli",
    "numpy": "cli",
    "onnxruntime": "onnx",
    "ai_edge_litert": "tflite",
    "PIL": "image",
    "onnx": "demo",
    "amqtt": "demo",
}


def run(arguments: list[str]) -> int:
    """Run one command.

    Returns:
        The exit code: `agent.cli.exits` lists them.
    """
    try:
        return _dispatch(arguments)
    except AgentError as error:
        return _explain(error, as_json="--json" in arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS:
            raise
        extra = _EXTRAS[missing]
        needs = UsageError(
            f"this command needs {missing}, which is not installed",
            hint=f"pip install 'edgeward[{extra}]'",
        )
        return _explain(needs, as_json="--json" in arguments)
    except BrokenPipeError:
        # Whoever read our output has gone, which is no error of ours; nor is the last flush.
        sys.stdout = None
        return exits.DONE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"edgeward: {where}{error.strerror or error}", file=sys.stderr)
        return exits.FAILED
    except KeyboardInterrupt:
        print("edgeward: stopped", file=sys.stderr)
        return exits.INTERRUPTED


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["run"]:
        from agent.cli.device import run as run_agent

        return run_agent(arguments[1:])
    if arguments == ["--version"]:
        print(f"edgeward {__version__}")
        return exits.DONE
    from agent.cli.commands import invoke

    return invoke(arguments)


def _explain(error: AgentError, *, as_json: bool) -> int:
    print(f"edgeward: {error}", file=sys.stderr)
    if as_json:
        failure = {"code": error.code, "message": error.message, "hint": error.hint}
        print(json.dumps({"error": failure}))
    return exits.of_error(error.code)
