"""The commands as click sees them; each is imported when it is called or asked for its help."""

from __future__ import annotations

from importlib import import_module

import click

from agent import __version__
from agent.cli import exits
from agent.cli.main import COMMANDS

HELP_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Commands(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        entry = COMMANDS.get(name)
        # `run` must work without click: `agent.cli.main` calls it before coming here.
        if entry is None or name == "run":
            return None
        command: click.Command = getattr(import_module(entry.module), entry.attribute)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        # Click would import every command for its first line of help.
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.command(
    cls=_Commands,
    context_settings=HELP_SETTINGS,
    epilog=exits.epilog(),
)
@click.version_option(__version__, prog_name="edgeward", message="%(prog)s %(version)s")
def edgeward() -> None:
    """Deliver, run and watch machine-learning models on small devices, over MQTT."""


def invoke(arguments: list[str]) -> int:
    """Run a command; what it returns, or exits with, is the exit code."""
    try:
        code = edgeward.main(arguments, prog_name="edgeward", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return exits.USAGE
    except click.ClickException as error:
        error.show()
        return exits.USAGE
    except click.Abort:
        raise KeyboardInterrupt from None
    return int(code or exits.DONE)
