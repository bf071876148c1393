"""The agent's configuration file: find it, read it, and judge what it says of this machine."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from agent.control.trusting import trusts_anybody
from agent.documents.settings import Settings, Trust, bus_of, settings_from
from agent.errors import DocumentError, UsageError
from agent.links import registry
from agent.links.api import Problem
from agent.links.mqtt_problems import connection_problems

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_PATH = Path("/etc/edgeward/agent.toml")
MAX_BYTES = 1024 * 1024


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
    settings = settings_from(raw, environment, name=name, kinds=registry.settings_of)
    settings = replace(settings, trust=_absolute(settings.trust, (path or DEFAULT_PATH).parent))
    return settings if settings.device_id else replace(settings, device_id=_host_name())


def _absolute(trust: Trust, folder: Path) -> Trust:
    """The files of `[trust]` as they are found from the configuration file's folder."""

    def found(name: str) -> str:
        return str((folder / name).absolute()) if name else ""

    keys = (
        found(key) if isinstance(key, str) else replace(key, file=found(key.file))
        for key in trust.keys
    )
    return replace(trust, keys=tuple(keys), ca=found(trust.ca))


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
    yield from registry.find(settings.link.kind).problems(settings)
    try:
        bus = bus_of(settings)
    except UsageError as error:
        yield Problem("bus", error.message, error.hint)
    else:
        if bus is not settings.link:
            yield from connection_problems("bus", bus)
    yield from _folders(settings)
    yield from _trust(settings.trust)
    if settings.trust.unsigned == "refuse" and not trusts_anybody(settings.trust):
        yield Problem(
            "trust.keys",
            "nobody's signature counts, so every new pack will be refused",
            'the file of a public key, made with `edgeward keygen --out release`: ["release.pub"]',
            fatal=False,
        )


def _trust(trust: Trust) -> Iterator[Problem]:
    # Not carried by an agent that runs: it verifies in a process of its own.
    from agent.store.trust_files import read_authority, read_key

    seen: dict[str, int] = {}
    for number, entry in enumerate(trust.keys):
        where = f"trust.keys[{number}]"
        try:
            key = read_key(entry)
        except UsageError as error:
            yield Problem(where, error.message, error.hint or "the file of a public key")
            continue
        if key.id in seen:
            wrong = f"is the same key as trust.keys[{seen[key.id]}]"
            yield Problem(where, wrong, "each key once")
        seen.setdefault(key.id, number)
    if trust.ca or trust.subject:
        try:
            read_authority(trust)
        except UsageError as error:
            yield Problem("trust.ca", error.message, error.hint or "certificates of an authority")


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
