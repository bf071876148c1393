"""A TCP connection through an HTTP proxy that knows CONNECT (RFC 9110, 9.3.6)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final
from urllib.parse import urlsplit

from agent.errors import LinkRefused, LinkUnreachable, UsageError
from agent.links.dialing import explain, open_socket

_ANSWER_BYTES: Final = 8192


def parse_proxy(url: str) -> tuple[str, int]:
    """Read `http://host:port`.

    Raises:
        UsageError: Anything else.
    """
    parts = urlsplit(url)
    with contextlib.suppress(ValueError):
        if parts.scheme == "http" and parts.hostname and parts.port and "@" not in parts.netloc:
            return parts.hostname, parts.port
    raise UsageError("proxy: expected http://host:port, without credentials")


async def connect_through(proxy: str, host: str, port: int) -> socket.socket:
    """Have a proxy connect us to a broker.

    Returns:
        A non-blocking socket on which the broker is spoken to.

    Raises:
        LinkUnreachable: The proxy does not answer.
        LinkRefused: It does not connect us.
    """
    proxy_host, proxy_port = parse_proxy(proxy)
    try:
        sock = await open_socket(proxy_host, proxy_port)
    except OSError as error:
        raise LinkUnreachable(f"cannot reach proxy {proxy}: {explain(error)}") from error
    try:
        await asyncio.get_running_loop().sock_sendall(sock, _request(host, port))
        status = _status(await _answer(sock))
        if not 200 <= status < 300:
            raise LinkRefused(f"proxy {proxy} does not connect us to {host}:{port}: HTTP {status}")
    except OSError as error:
        sock.close()
        raise LinkUnreachable(f"proxy {proxy} closed: {explain(error)}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _request(host: str, port: int) -> bytes:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode()


async def _answer(sock: socket.socket) -> bytes:
    """Read the head of the answer; the broker says nothing before we do, so nothing follows it."""
    loop = asyncio.get_running_loop()
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = await loop.sock_recv(sock, _ANSWER_BYTES)
        answer += piece
        if not piece or len(answer) > _ANSWER_BYTES:
            raise LinkUnreachable("the proxy's answer is not HTTP")
    return answer


def _status(answer: bytes) -> int:
    words = answer.split(b"\r\n", 1)[0].split(b" ")
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise LinkUnreachable("the proxy's answer is not HTTP")
    return int(words[1])
