"""What every process that a template forks does: end with it, keep what it was given."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from agent.worker import confine


def live(parent: int, kept: set[int], body: Callable[[], bool]) -> NoReturn:
    """Be a forked child from its first breath to its last.

    Args:
        parent: Process id of the template.
        kept: Descriptors that stay open, beside the standard ones.
        body: All that it does; False: it could not.
    """
    status = 1
    try:
        confine.end_with_parent(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        confine.close_all_but({0, 1, 2, *kept})
        status = 0 if body() else 1
    except BaseException:
        # Only what no layer below expected comes here: its last words go to the parent's pipe.
        with contextlib.suppress(Exception):
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
    finally:
        # No clean-up of the template's objects in its copy.
        os._exit(status)
