"""The unit file is one that systemd takes, and leaves workers what they need."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from agent.worker.namespaces import FLAGS
from tests.repository.commands import REPOSITORY

UNIT = REPOSITORY / "systemd/edgeward.service"
# `systemd-analyze security` counts from 0 to 100 here; a service without hardening has 96.
EXPOSURE_AT_MOST = 30

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine"
)


def _settings() -> dict[str, list[str]]:
    """Every setting of the unit with its values, in order."""
    settings: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if line and line[0].isalpha():
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


@needs_systemd
def test_systemd_takes_the_unit_and_its_drop_ins() -> None:
    command = ["sh", str(REPOSITORY / "systemd/verify.sh")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


@needs_systemd
def test_the_service_is_little_exposed() -> None:
    threshold = f"--threshold={EXPOSURE_AT_MOST}"
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", threshold, str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if "nrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot rate a file that is not installed")
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


def test_the_daemon_is_watched_and_started_for_ever() -> None:
    settings = _settings()
    assert settings["Type"] == ["notify"]
    assert settings["NotifyAccess"] == ["main"]
    assert settings["Restart"] == ["always"]
    assert settings["StartLimitIntervalSec"] == ["0"]
    assert int(settings["WatchdogSec"][0]) > 0


def test_the_death_of_one_worker_does_not_stop_the_service() -> None:
    assert _settings()["OOMPolicy"] == ["continue"]


def test_workers_may_still_confine_themselves() -> None:
    settings = _settings()
    assert set(FLAGS) <= set(settings["RestrictNamespaces"][0].split())
    assert settings["Delegate"] == ["memory pids"]
    allowed = set(" ".join(settings["SystemCallFilter"]).split())
    assert {"@system-service", "@mount", "seccomp", "landlock_restrict_self"} <= allowed
    # Each of these breaks an inference library, a control group, or hides workers from the daemon.
    assert not {
        "MemoryDenyWriteExecute",
        "ProcSubset",
        "ProtectProc",
        "ProtectControlGroups",
    } & set(settings)


def test_no_secret_stands_in_the_unit() -> None:
    text = UNIT.read_text().lower()
    assert "password=" not in text
    assert _settings()["Environment"] == ["ORT_DISABLE_TELEMETRY=1"]
