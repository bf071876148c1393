"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from agent.author.broker import BrokerOptions

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_PREFIX = "edgeward/{device_id}/"

as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
config = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The agent's configuration file (default: /etc/edgeward/agent.toml).",
)

key_password_file = click.option(
    "--password-file",
    type=click.Path(path_type=Path),
    help="A file that holds only the private key's password.",
)


def broker(*, required: bool) -> Callable[[F], F]:
    """The options that say how to reach a device through a broker."""
    listed = (
        click.option("--broker", required=required, help="mqtt://HOST[:PORT] or mqtts://…"),
        click.option("--device", required=required, help="The device's id."),
        click.option("--prefix", default=DEFAULT_PREFIX, show_default=True, help="Its topics."),
        click.option("--username", default="", help="Who we are at the broker."),
        click.option("--password-file", default="", help="A file that holds only the password."),
        click.option("--ca", default="", help="Certificates to trust, PEM."),
        click.option("--cert", default="", help="Our own certificate, PEM."),
        click.option("--key", default="", help="Its private key, PEM."),
    )

    def add(command: F) -> F:
        for option in reversed(listed):
            command = option(command)
        return command

    return add


def broker_options(values: dict[str, Any]) -> BrokerOptions:
    """What `broker` has collected, as the connection takes it."""
    from agent.author.broker import BrokerOptions

    names = ("username", "password_file", "ca", "cert", "key")
    return BrokerOptions(values["broker"], **{name: values[name] for name in names})


def prefix_for(prefix: str, device: str) -> str:
    filled = prefix.replace("{device_id}", device)
    return filled if filled.endswith("/") else filled + "/"
