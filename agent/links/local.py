"""The local socket: how a person on the device asks the running agent.

One request is one line of JSON, one answer is one line of JSON, then the connection ends. The
socket's mode says who may ask; nothing else does.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from agent.documents.settings import Settings
from agent.errors import LinkError, LinkRefused, LinkUnreachable

SOCKET_NAME = "agent.sock"
# Where systemd's `RuntimeDirectory=edgeward` puts the socket of the service.
SERVICE_FOLDER = Path("/run/edgeward")
MAX_REQUEST_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 4 * 1024 * 1024


def socket_path(settings: Settings, environment: Mapping[str, str] = os.environ) -> Path:
    """Where the agent listens: the setting, else systemd's runtime folder, else its state."""
    if settings.socket:
        return Path(settings.socket)
    folder = environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(folder or settings.state_dir) / SOCKET_NAME


def find_socket(settings: Settings, environment: Mapping[str, str] = os.environ) -> Path:
    """Where to ask: the command of a person does not see the runtime folder of the service."""
    own = socket_path(settings, environment)
    service = SERVICE_FOLDER / SOCKET_NAME
    # os.path, because a folder that this user may not enter is an answer here, not an error.
    there = os.path.exists
    return service if not settings.socket and not there(own) and there(service) else own


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """An address of a socket that fits the kernel's 108 bytes, however long the path is.

    Valid inside the `with` only; bind or connect there.
    """
    if len(os.fsencode(path)) < 108:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def ask(path: Path, request: Mapping[str, Any], timeout_s: float = 10.0) -> dict[str, Any]:
    """Send one request to the agent of this machine and wait for its answer.

    Args:
        path: Where it listens (`find_socket`).
        request: A JSON object; `command` says what is wanted.
        timeout_s: How long the whole exchange may take.

    Raises:
        LinkUnreachable: Nobody listens there, or the answer did not come in time.
        LinkRefused: This user may not open the socket.
        LinkError: The answer is not one JSON object.
    """
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(timeout_s)
        try:
            with address_of(path) as address:
                channel.connect(address)
            channel.sendall(msgspec.json.encode(request) + b"\n")
            line = _read_line(channel, deadline)
        except OSError as error:
            raise _explained(error, path, timeout_s) from None
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise LinkError(f"the answer at {path} is not one line with a JSON object") from None


def _read_line(channel: socket.socket, deadline: float) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n") and len(received) <= MAX_ANSWER_BYTES:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        channel.settimeout(left_s)
        piece = channel.recv(65536)
        if not piece:
            break
        received += piece
    return bytes(received)


def _explained(error: OSError, path: Path, timeout_s: float) -> LinkError:
    if isinstance(error, TimeoutError):
        return LinkUnreachable(
            f"the agent at {path} gave no answer for {timeout_s:g} s",
            hint="`edgeward logs` may say why",
        )
    if isinstance(error, PermissionError):
        return LinkRefused(
            f"this user may not open {path}",
            hint="ask as the user of the agent, for instance with sudo -u edgeward",
        )
    return LinkUnreachable(
        f"no agent listens at {path}",
        hint="is it running? start it with `edgeward run`, or name its --config",
    )
