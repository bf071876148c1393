"""OpenVINO's library, imported without the package in its wheels that calls home.

That package starts a thread and looks for a host while `openvino` is imported, and a process with
threads cannot be forked. Where it cannot be imported the library does without.
"""

from __future__ import annotations

import sys

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino  # noqa: E402
from openvino.frontend import FrontEndManager  # noqa: E402

__all__ = ["FrontEndManager", "openvino"]
