"""`edgeward run`: the agent itself. Needs nothing but the bare install."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent.cli import exits
from agent.cli.configuration import DEFAULT_PATH, load_settings, problems
from agent.documents.settings import Settings
from agent.errors import DocumentError
from agent.links import registry

EXAMPLE = """\
examples:
  edgeward run                          read /etc/edgeward/agent.toml, where there is one
  edgeward run --config agent.toml      read this file
  edgeward run --config agent.toml --check
  EDGEWARD_LINK_URL=mqtt://broker.example:1883 edgeward run

exit codes:
  0  ended by SIGTERM or SIGINT; with --check: nothing is wrong
  1  the state directory cannot be used, or a part of the agent has failed
  2  the configuration is not right
"""


def run(arguments: list[str]) -> int:
    """Run the agent, or check its configuration."""
    parser = argparse.ArgumentParser(
        prog="edgeward run",
        description="Run the agent on this device until it is told to stop.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help=f"default: {DEFAULT_PATH}, if it exists")
    parser.add_argument(
        "--check", action="store_true", help="say what is wrong with the configuration, and end"
    )
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:  # --help, or a usage error that argparse has explained
        return int(end.code or 0)
    if options.check:
        return check(options.config)
    settings = load_settings(options.config)
    from agent.daemon.app import main

    return main(settings)


def check(path: Path | None) -> int:
    """Print what is wrong with a configuration, where, and what would be right."""
    try:
        settings = load_settings(path)
    except DocumentError as error:
        print(f"{error.path}: {error.got}; right would be: {error.expected}", file=sys.stderr)
        return exits.USAGE
    found = list(problems(settings))
    for problem in found:
        kind = "" if problem.fatal else "warning: "
        print(f"{kind}{problem.where}: {problem.wrong}; right would be: {problem.right}")
    if any(problem.fatal for problem in found):
        return exits.USAGE
    print(_summary(settings))
    return exits.DONE


def _summary(settings: Settings) -> str:
    bus = settings.bus.url if settings.bus is not None else "the link"
    link = registry.find(settings.link.kind).address(settings)
    return (
        f"ok: device {settings.device_id}, link {link}, sensors on {bus}, "
        f"state in {settings.state_dir}"
    )
