"""How a link connects and reconnects, and how it says where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from agent.documents.settings import Connection
from agent.links.api import Phase, Standing
from agent.links.dialing import TlsFiles
from agent.wire.mqtt.options import ConnectOptions, Granted, Will

__all__ = ["RECEIVE_MAXIMUM", "Backoff", "LinkOptions", "LinkState", "Phase", "options_for"]

# Messages that a broker may send on one connection before the first is acknowledged.
RECEIVE_MAXIMUM = 128
SESSION_EXPIRY_S = 7 * 86_400
_VERSIONS: Mapping[str, Literal[4, 5, "auto"]] = {"auto": "auto", "5": 5, "3.1.1": 4}


class Backoff(msgspec.Struct, frozen=True):
    """How long to wait between attempts; random, so that a fleet does not come back at once.

    Args:
        first_s: Least and most before the first retry.
        base_s: Most before the second is twice this; it doubles from there.
        cap_s: Most that is ever waited.
        refused_base_s: The same for a broker that answers no: it will not soon say yes.
        refused_cap_s: As `cap_s`.
        stable_s: A connection that lasted this long makes the next retry a first one.
    """

    first_s: tuple[float, float] = (0.1, 1.0)
    base_s: float = 1.0
    cap_s: float = 120.0
    refused_base_s: float = 10.0
    refused_cap_s: float = 300.0
    stable_s: float = 10.0

    def delay_s(self, failures: int, *, refused: bool, chance: float) -> float:
        """Choose a wait.

        Args:
            failures: Attempts that failed in a row before the last one.
            refused: The broker answered no.
            chance: From 0 to 1.
        """
        doubled = 2.0 ** min(failures, 20)
        if refused:
            limit = min(self.refused_cap_s, self.refused_base_s * doubled)
            return limit * (0.5 + chance / 2)
        low, high = self.first_s
        if failures == 0:
            return low + (high - low) * chance
        return max(low, chance * min(self.cap_s, self.base_s * doubled))


class LinkOptions(msgspec.Struct, frozen=True):
    """Where to connect, how, and what to keep.

    Args:
        url: `mqtt://host:1883`, `mqtts://host:8883`, `ws://host/path` or `wss://host/path`.
        session: The MQTT side of it.
        password_file: Read at each attempt; a line end behind the password is not part of it.
        tls: Certificates; only for `mqtts` and `wss`.
        proxy: `http://host:port` of a proxy that knows CONNECT.
        backoff: Waits between attempts.
        connect_timeout_s: For name lookup, TCP, TLS and WebSocket together.
        name: Stands in log lines.
    """

    url: str
    session: ConnectOptions
    password_file: Path | None = None
    tls: TlsFiles = msgspec.field(default_factory=TlsFiles)
    proxy: str | None = None
    backoff: Backoff = msgspec.field(default_factory=Backoff)
    connect_timeout_s: float = 20.0
    name: str = "mqtt"


class LinkState(Standing, frozen=True):
    """Where a connection stands.

    Attributes:
        granted: What the broker grants, while connected.
        session_present: The broker still had our session, while connected.
        retry_in_s: How long until the next attempt, while waiting or refused.
    """

    granted: Granted | None = None
    session_present: bool = False
    retry_in_s: float | None = None


def options_for(
    connection: Connection, device: str, name: str, *, suffix: str = "", will: Will | None = None
) -> LinkOptions:
    """How to connect as the settings say.

    Args:
        connection: The settings.
        device: The device's id.
        name: Stands in log lines.
        suffix: Behind the client id, for a connection beside the link's.
        will: What the broker says when we vanish.
    """
    client_id = connection.client_id or f"edgeward-{device}"
    return LinkOptions(
        url=connection.url,
        session=ConnectOptions(
            client_id=client_id + suffix,
            version=_VERSIONS[connection.version],
            username=connection.username or None,
            keep_alive_s=connection.keep_alive_s,
            session_expiry_s=SESSION_EXPIRY_S,
            receive_maximum=RECEIVE_MAXIMUM,
            will=will,
        ),
        password_file=_path(connection.password_file),
        tls=TlsFiles(
            ca=_path(connection.ca), cert=_path(connection.cert), key=_path(connection.key)
        ),
        proxy=connection.proxy or None,
        name=name,
    )


def _path(text: str) -> Path | None:
    return Path(text) if text else None
