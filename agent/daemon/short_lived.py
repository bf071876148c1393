"""What each short-lived process of the daemon does first."""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


def end_with(parent_pid: int, number: int) -> None:
    """Get a signal when the daemon is gone, and never more rights than now.

    Args:
        parent_pid: The daemon's. Where it is gone already this process ends here.
        number: The signal.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(0)
