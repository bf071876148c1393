"""From a broker's URL to a connected transport: TCP, TLS, WebSocket, HTTP proxy."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from agent.errors import LinkError, LinkUnreachable, UsageError

if TYPE_CHECKING:
    import ssl

_SCHEMES: Final = {
    # scheme: (default port, TLS, WebSocket)
    "mqtt": (1883, False, False),
    "mqtts": (8883, True, False),
    "ws": (80, False, True),
    "wss": (443, True, True),
}
# A name may have an address that leads nowhere, in front of one that works.
_NEXT_ADDRESS_AFTER_S: Final = 4.0


class Endpoint(msgspec.Struct, frozen=True):
    """Where a broker listens, and how it is spoken to."""

    host: str
    port: int
    tls: bool
    websocket: bool
    path: str

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Read a URL: `mqtt://`, `mqtts://`, `ws://` or `wss://`, host, optional port and path.

        Raises:
            UsageError: Another scheme, no host, a bad port, or credentials in it.
        """
        parts = urlsplit(url)
        row = _SCHEMES.get(parts.scheme)
        if row is None:
            raise UsageError(f"url {url!r}: expected mqtt://, mqtts://, ws:// or wss://")
        if "@" in parts.netloc:
            raise UsageError(
                "url: credentials do not belong in it", hint="use username and password_file"
            )
        try:
            port = parts.port or row[0]
        except ValueError:
            raise UsageError(f"url {url!r}: the port is not a number from 1 to 65535") from None
        if not parts.hostname:
            raise UsageError(f"url {url!r}: no host in it")
        path = parts.path or "/mqtt"
        if parts.query:
            path += f"?{parts.query}"
        return cls(parts.hostname, port, row[1], row[2], path)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class TlsFiles(msgspec.Struct, frozen=True):
    """Files for TLS, read at each connection attempt if they changed.

    Args:
        ca: Certificates to trust in place of the system's.
        cert: Our certificate, for mutual TLS.
        key: Its private key, unless it is in the same file.
        server_name: The name the broker's certificate must have, where it is not the host.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None


class Dialer:
    """Connects to one endpoint, again and again."""

    def __init__(self, endpoint: Endpoint, files: TlsFiles, proxy: str | None = None) -> None:
        self._endpoint = endpoint
        self._files = files
        self._proxy = proxy
        self._context: ssl.SSLContext | None = None
        self._context_of: tuple[object, ...] = ()

    async def dial(self, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """Connect a protocol made by `factory`.

        Raises:
            LinkError: Not reachable, or the TLS files are not usable.
        """
        endpoint = self._endpoint
        loop = asyncio.get_running_loop()
        context = self._tls_context() if endpoint.tls else None
        name = (self._files.server_name or endpoint.host) if context else None
        try:
            if self._proxy is None:
                sock = await open_socket(endpoint.host, endpoint.port)
            else:
                from agent.links.proxy import connect_through

                sock = await connect_through(self._proxy, endpoint.host, endpoint.port)
            await loop.create_connection(factory, sock=sock, ssl=context, server_hostname=name)
        except OSError as error:
            raise LinkUnreachable(f"cannot reach {endpoint}: {explain(error)}") from error

    def _tls_context(self) -> ssl.SSLContext:
        import ssl

        files = [path for path in (self._files.ca, self._files.cert, self._files.key) if path]
        try:
            stamp = tuple((os.fspath(path), path.stat().st_mtime_ns) for path in files)
            if self._context is None or stamp != self._context_of:
                context = ssl.create_default_context(cafile=self._files.ca)
                if self._files.cert is not None:
                    context.load_cert_chain(self._files.cert, self._files.key)
                self._context, self._context_of = context, stamp
        except ssl.SSLError as error:
            names = ", ".join(str(path) for path in files)
            raise LinkError(f"TLS files {names} do not fit together: {error.reason}") from error
        except OSError as error:
            raise LinkError(f"cannot read TLS file {error.filename}: {error.strerror}") from error
        return self._context


async def open_socket(host: str, port: int) -> socket.socket:
    """Connect to the first address of a name that answers.

    Returns:
        A non-blocking socket.

    Raises:
        OSError: None does; the reason of the last.
    """
    addresses = await _addresses(host, port)
    for family, kind, proto, _, address in addresses[:-1]:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            connecting = _connected(socket.socket(family, kind, proto), address)
            return await asyncio.wait_for(connecting, _NEXT_ADDRESS_AFTER_S)
    family, kind, proto, _, address = addresses[-1]
    return await _connected(socket.socket(family, kind, proto), address)


async def _connected(sock: socket.socket, address: Any) -> socket.socket:
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _addresses(host: str, port: int) -> list[Any]:
    # Only names need the resolver, which blocks and so gets a thread.
    try:
        with contextlib.suppress(socket.gaierror):
            numeric = socket.AI_NUMERICHOST
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=numeric)
        loop = asyncio.get_running_loop()
        return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError("it is not a host name") from None


def explain(error: OSError) -> str:
    """Say why a connection failed, for a person."""
    verify = getattr(error, "verify_message", "")
    if verify:
        return f"its certificate is not trusted: {verify} (check the ca file and the host name)"
    if isinstance(error, socket.gaierror):
        return f"the name is not known ({error.strerror})"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there (is the broker running?)"
    if type(error).__module__ == "ssl":
        return f"TLS failed: {getattr(error, 'reason', None) or error}"
    return error.strerror or str(error) or type(error).__name__


def no_delay(transport: asyncio.Transport) -> None:
    """Send at once: with Nagle on, an acknowledgement and then an answer cost 40 ms."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def quick_ack(transport: asyncio.Transport) -> Callable[[], None]:
    """Make a function to call after each read, which has the kernel acknowledge at once.

    The kernel forgets it whenever we send. Without it a broker that leaves Nagle on and writes
    twice in a row waits up to 44 ms for the acknowledgement of its first piece.
    """
    option = getattr(socket, "TCP_QUICKACK", None)
    sock = transport.get_extra_info("socket")
    if option is None or sock is None or sock.family == socket.AF_UNIX:
        return _nothing

    def arm(
        sock: socket.socket = sock, level: int = socket.IPPROTO_TCP, option: int = option
    ) -> None:
        # A connection that was reset between read and answer says so on its next read.
        try:  # cheaper than `suppress`, and this is done for each read
            sock.setsockopt(level, option, 1)
        except OSError:
            return

    return arm


def unsent_bytes(transport: asyncio.Transport) -> int:
    """Bytes written that the peer's kernel has not acknowledged."""
    waiting = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        with contextlib.suppress(OSError):
            count = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
            waiting += int.from_bytes(count, sys.byteorder)
    return waiting


def _nothing() -> None:
    """No such option here."""
