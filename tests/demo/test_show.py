"""The demo's own claims, on the broker that is always there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

STREAM_S = 20


@pytest.mark.timeout(120)
def test_the_demo_tells_its_whole_story_on_the_embedded_broker() -> None:
    words = ["demo", "--json", "--broker", "embedded", "--seconds", str(STREAM_S)]
    done = subprocess.run(
        [sys.executable, "-m", "agent", *words],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["lost"] == 0
    assert result["predictions"] > 100
    assert (result["rejected"], result["worker_restarts"]) == (2, 1)
    assert result["switches"] >= 1
    assert {slot["runtime"] for slot in result["slots"].values()} == {"onnx", "tflite"}
    v1, v2 = (result["slots"]["bearing"]["accuracy_by_version"][v] for v in ("1.0.0", "2.0.0"))
    assert v2 > v1
