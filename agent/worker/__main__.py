"""Entry of the template process: `python -I -m agent.worker RUNTIME DESCRIPTOR PARENT`.

RUNTIME is a name of `agent.runtimes.registry`, DESCRIPTOR the number of an inherited SEQPACKET
socket, PARENT the process id of who started it. `agent.links.template` writes this line; it is not
meant to be typed.
"""

from __future__ import annotations

import socket
import sys

from agent.worker import template


def main() -> None:
    """Serve as a template until the socket's other end closes."""
    runtime, descriptor, parent = sys.argv[1:]
    control = socket.socket(fileno=int(descriptor))
    template.run(runtime, control, int(parent))


if __name__ == "__main__":
    main()
