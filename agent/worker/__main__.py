"""Entry of the template process: `python -I -m agent.worker RUNTIME DESCRIPTOR PARENT`.

RUNTIME is a name of `agent.runtimes.registry`, DESCRIPTOR the number of an inherited SEQPACKET
socket, PARENT the process id of who started it. `agent.links.template` writes this line; it is not
meant to be typed.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys

# Importing makes many objects and next to no garbage; `template` lets the collector go on.
gc.disable()

from agent.worker import confine  # noqa: E402
from agent.worker.confine import Plan  # noqa: E402
from agent.worker.trial import Trial  # noqa: E402


def main() -> None:
    """Serve as a template until the socket's other end closes."""
    runtime, descriptor, parent = sys.argv[1:]
    os.chdir("/")
    confine.close_all_but({0, 1, 2, int(descriptor)})
    control = socket.socket(fileno=int(descriptor))
    # A Ctrl-C in the terminal is for the program that started this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    confine.end_with_parent(int(parent))
    # Beside the imports, which take much longer, and before them: there is little to copy yet.
    trial = Trial(Plan())
    from agent.worker import template

    template.run(runtime, control, trial)


if __name__ == "__main__":
    main()
