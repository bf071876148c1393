"""What is wrong with an MQTT connection's settings, for `edgeward run --check`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from agent.documents.settings import Connection, Settings, prefix_of
from agent.links.api import Problem
from agent.wire import topics


def link_problems(connection: Connection, settings: Settings) -> Iterator[Problem]:
    """What is wrong with the connection of the link."""
    yield from connection_problems("link", connection)
    if not topics.is_name(prefix_of(settings)):
        yield Problem(
            "link.prefix",
            f"{connection.prefix!r} is no topic one can publish to",
            "levels without + and #, for instance edgeward/{device_id}/",
        )
    if "{device_id}" not in connection.prefix and settings.device_id not in connection.prefix:
        yield Problem(
            "link.prefix",
            "does not name the device: two devices with this prefix disturb one another",
            "edgeward/{device_id}/",
            fatal=False,
        )


def connection_problems(name: str, connection: Connection) -> Iterator[Problem]:
    """What is wrong with the connection of a section of the settings, such as `bus`."""
    parts = urlsplit(connection.url)
    try:
        _ = parts.port
    except ValueError as error:
        yield Problem(f"{name}.url", str(error), "a port from 1 to 65535, or none")
    if "@" in parts.netloc:
        yield Problem(
            f"{name}.url",
            "holds a user name or a password",
            f"{name}.username and {name}.password_file",
        )
    for key in ("password_file", "ca", "cert", "key"):
        yield from _file(f"{name}.{key}", getattr(connection, key))
    if bool(connection.cert) != bool(connection.key):
        missing = "key" if connection.cert else "cert"
        yield Problem(f"{name}.{missing}", "is missing", "cert and key together, or neither")
    if connection.password_file and not connection.username:
        yield Problem(f"{name}.username", "is missing beside password_file", "a user name")
    secure = parts.scheme in ("mqtts", "wss")
    if not secure and (connection.ca or connection.cert):
        yield Problem(f"{name}.url", "has certificates but no TLS", "mqtts:// or wss://")
    local = parts.hostname in ("localhost", "::1") or str(parts.hostname).startswith("127.")
    if not secure and connection.password_file and not local:
        yield Problem(
            f"{name}.url", "the password crosses the network in clear", "mqtts://", fatal=False
        )


def _file(where: str, name: str) -> Iterator[Problem]:
    if name and not Path(name).is_file():
        # systemd places credentials only while the service runs.
        given_later = name.startswith("/run/credentials/")
        wrong = f"there is no file {name}" + (" at this moment" if given_later else "")
        yield Problem(where, wrong, "the path of an existing file", fatal=not given_later)
    elif name and not os.access(name, os.R_OK):
        yield Problem(where, f"this user may not read {name}", "a file that the agent may read")
