"""The agent's configuration file: find it, read it, and judge what it says of this machine."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec.structs import replace

from agent.documents.settings import Connection, Settings, prefix_of, settings_from
from agent.errors import DocumentError, UsageError
from agent.wire import topics

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_PATH = Path("/etc/edgeward/agent.toml")
MAX_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a setting: where, what, and what would be right.

    A `fatal` one keeps the agent from doing its work.
    """

    where: str
    wrong: str
    right: str
    fatal: bool = True


def load_settings(path: Path | None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the configuration, lay the environment over it, and name the device.

    Args:
        path: The file; None for the default one, which need not exist.
        environment: `EDGEWARD_…` variables.

    Raises:
        UsageError: The file cannot be read.
        DocumentError: It is no TOML, or a value does not fit.
    """
    raw, name = _read(path)
    settings = settings_from(raw, environment, name=name)
    return settings if settings.device_id else replace(settings, device_id=_host_name())


def _read(path: Path | None) -> tuple[dict[str, Any], str]:
    chosen = path or DEFAULT_PATH
    try:
        with chosen.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise DocumentError(str(chosen), f"at most {MAX_BYTES} bytes", "a larger file")
        return tomllib.loads(data.decode()), chosen.name
    except FileNotFoundError:
        if path is None:
            return {}, "defaults"
        raise UsageError(
            f"there is no configuration file {chosen}", hint="name one with --config"
        ) from None
    except OSError as error:
        raise UsageError(
            f"the configuration file {chosen} cannot be read: {error.strerror}",
            hint="run this as the user of the agent, or name another file with --config",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DocumentError(str(chosen), "a TOML file", str(error)) from None


def _host_name() -> str:
    name = re.sub(r"[^A-Za-z0-9_:.-]", "-", socket.gethostname())[:128]
    return name or "device"


def problems(settings: Settings) -> Iterator[Problem]:
    """What is wrong with settings that are well formed: files, folders, and what fits together."""
    yield from _connection("link", settings.link)
    if settings.bus is not None:
        yield from _connection("bus", settings.bus)
    yield from _prefix(settings)
    yield from _folders(settings)
    if settings.trust.unsigned == "refuse":
        yield Problem(
            "trust.unsigned",
            "this version knows no signatures, so it will refuse every pack",
            '"allow"',
            fatal=False,
        )


def _connection(name: str, connection: Connection) -> Iterator[Problem]:
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


def _prefix(settings: Settings) -> Iterator[Problem]:
    if not topics.is_name(prefix_of(settings)):
        yield Problem(
            "link.prefix",
            f"{settings.link.prefix!r} is no topic one can publish to",
            "levels without + and #, for instance edgeward/{device_id}/",
        )
    if "{device_id}" not in settings.link.prefix and settings.device_id not in settings.link.prefix:
        yield Problem(
            "link.prefix",
            "does not name the device: two devices with this prefix disturb one another",
            "edgeward/{device_id}/",
            fatal=False,
        )


def _folders(settings: Settings) -> Iterator[Problem]:
    state = Path(settings.state_dir)
    existing = next((p for p in (state, *state.parents) if p.exists()), state)
    if not existing.is_dir():
        yield Problem("state_dir", f"{existing} is not a folder", "a folder")
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield Problem(
            "state_dir", f"this user may not write to {existing}", "a folder of the agent's own"
        )
    if settings.socket and not Path(settings.socket).parent.is_dir():
        yield Problem("socket", f"there is no folder for {settings.socket}", "an existing folder")
    for number, root in enumerate(settings.fetch.roots):
        if not Path(root).is_absolute() or not Path(root).is_dir():
            yield Problem(
                f"fetch.roots[{number}]", f"{root!r} is no folder here", "an absolute folder"
            )
