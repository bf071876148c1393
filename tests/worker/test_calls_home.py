"""Nothing calls home: what a template and its worker ask of the kernel, seen from outside."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from agent.documents.manifest import Tensor
from tests.runtimes import models
from tests.worker.packs import make_pack, v2

X, Y = Tensor("x", "FP32", (1, 4)), Tensor("y", "FP32", (1, 4))
CANARY = 'sun_path=@"edgeward-'
OF_ITSELF = r'"/proc/self/(oom_score_adj|setgroups|uid_map|gid_map)"|"/new"'
RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)")
PROGRAM = """
import sys
from pathlib import Path
from agent.links.worker import BlockingWorker
from agent.wire.worker import Load
pack, runtime, request = sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes()
with BlockingWorker(runtime, Load(directory=pack, pack="p", variant="cpu")) as worker:
    worker.load()
    for _ in range(20):
        print(worker.ask("t", request).outcome, len(worker._template.take_last_words()) < 200)
"""


def traced(log: Path, names: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    strace = ["strace", "-f", "-qq", "-e", f"trace={names}", "-e", "signal=none", "-o", str(log)]
    return subprocess.run([*strace, *command], capture_output=True, text=True, timeout=55)


def calls(log: Path) -> list[str]:
    """The traced calls, each in one line though another process came in between."""
    open_calls: dict[str, str] = {}
    whole: list[str] = []
    for line in log.read_text().splitlines():
        pid, _, rest = line.partition(" ")
        if rest.endswith("<unfinished ...>"):
            open_calls[pid] = rest.removesuffix("<unfinished ...>")
        elif found := RESUMED.match(rest.strip()):
            whole.append(f"{pid} {open_calls.pop(pid, '')}{found[1]}")
        else:
            whole.append(line)
    return [*whole, *(f"{pid} {rest}" for pid, rest in open_calls.items())]


@pytest.mark.parametrize(
    ("runtime", "model"),
    [
        pytest.param("onnx", models.relu_onnx(), id="onnx"),
        pytest.param("tflite", models.relu_tflite(), id="tflite"),
        pytest.param(
            *("openvino", models.relu_onnx()),
            id="openvino",
            marks=pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino"),
        ),
    ],
)
def test_no_connection_is_tried_and_no_file_is_written(
    runtime: str, model: bytes, tmp_path: Path
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not on this machine")
    log = tmp_path / "trace"
    if traced(log, "network", ["true"]).returncode != 0:
        pytest.skip("strace may not trace here")
    suffix = "tflite" if runtime == "tflite" else "onnx"
    pack = make_pack(tmp_path / "pack", model, suffix, [X], [Y])
    request = tmp_path / "request"
    request.write_bytes(v2({"x": ("FP32", [1, 4], [1.0] * 4)}))
    done = traced(
        log,
        "network,openat,open,creat,mkdir,mkdirat",
        [sys.executable, "-B", "-I", "-c", PROGRAM, str(pack), runtime, str(request)],
    )
    assert done.stdout == "0 True\n" * 20, done.stderr
    lines = calls(log)
    connects = [line for line in lines if " connect(" in line or "AF_NETLINK" in line]
    # The trial's own look at whether the network namespace hides an abstract socket.
    assert [line for line in connects if CANARY not in line] == []
    # The one attempt at a socket is the trial's own look at whether it is denied.
    internet = [line for line in lines if "AF_INET" in line]
    assert len(internet) == 1
    assert "EPERM" in internet[0]
    written = [
        line
        for line in lines
        if ("O_WRONLY" in line or "O_RDWR" in line or "O_CREAT" in line or "mkdir" in line)
        if "/dev/null" not in line and "__pycache__" not in line
        # What is refused is not written, as the trial's attempt; a relative path is in the private
        # root; the rest is said of the process itself.
        if " = -1 " not in line and '"/' in line and not re.search(OF_ITSELF, line)
    ]
    assert written == []
