"""An HTTP server that plays one answer after another, and keeps what it was asked."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from typing import Any


@dataclass
class Answer:
    """One answer; `body` may be longer or shorter than what the headers say."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    # Say no length, and end by closing.
    lengthless: bool = False
    # Sent after the body, one after the other: it may wait, stop or never end.
    more: Iterable[bytes] = ()


@dataclass
class Asked:
    path: str
    headers: dict[str, str]


Play = Callable[[Asked], Answer]


class HttpSource:
    """A server on the loopback. Use it as a context manager."""

    def __init__(self, play: Play, tls: ssl.SSLContext | None = None) -> None:
        self.asked: list[Asked] = []
        self.sent_bytes = 0
        source = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                asked = Asked(self.path, {k.title(): v for k, v in self.headers.items()})
                source.asked.append(asked)
                self._send(play(asked))

            def _send(self, answer: Answer) -> None:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.lengthless:
                    self.send_header("Connection", "close")
                elif "Content-Length" not in answer.headers:
                    self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                try:
                    for piece in chain((answer.body,), answer.more):
                        self.wfile.write(piece)
                        source.sent_bytes += len(piece)
                except ConnectionError:
                    pass
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                """Be quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # A body that never ends must not hold up the end of a test.
        self._server.daemon_threads = True
        self._server.block_on_close = False
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> HttpSource:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)


def ranged(data: bytes, asked: Asked, **headers: str) -> Answer:
    """What a good server answers: a range where one is asked for."""
    wanted = asked.headers.get("Range", "")
    if not wanted:
        return Answer(200, data, headers)
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last or len(data)), len(data) - 1)
    if start >= len(data):
        return Answer(416, b"", {"Content-Range": f"bytes */{len(data)}", **headers})
    described = f"bytes {start}-{end}/{len(data)}"
    return Answer(206, data[start : end + 1], {"Content-Range": described, **headers})
