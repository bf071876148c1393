"""Fixtures that every room's tests share, and which broker they had."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import LEFT_OUT, MOSQUITTO, LocalBroker, need
from tests.delegate import double as doubles

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_MODELS = REPOSITORY.parent / "shared" / "models"
_EMBEDDED = ("broker", "embedded")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The folder of real models with expected outputs, where the machine has it."""
    if not (SHARED_MODELS / "index.json").is_file():
        pytest.skip("the folder of real models (../shared/models) is not on this machine")
    return SHARED_MODELS


@pytest.fixture(scope="session")
def loaded_double(tmp_path_factory: pytest.TempPathFactory) -> doubles.Double:
    """The stand-in for libedgetpu, loaded into this process, which can have only one."""
    double = doubles.build(tmp_path_factory.mktemp("double"))
    # Once it is loaded the loader finds it by its name.
    ctypes.CDLL(str(double.library))
    return double


def pytest_configure() -> None:
    if MOSQUITTO is None:
        # It never answers to MQTT 5: without a word every agent would wait for 5 s at its start.
        os.environ.setdefault("EDGEWARD_LINK_VERSION", "3.1.1")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs_broker"):
        need(*mark.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    before = LocalBroker.starts
    try:
        yield
    finally:
        if MOSQUITTO is None and (LocalBroker.alive or LocalBroker.starts > before):
            item.user_properties.append(_EMBEDDED)


@pytest.hookimpl(tryfirst=True, wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    yield
    # Only the process that all the others report to has one.
    terminal: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    if MOSQUITTO is None and terminal is not None:
        _tell_what_ran(terminal)


def _tell_what_ran(terminal: Any) -> None:
    """Say last of all how far the embedded broker took the tests."""
    reports = [report for found in terminal.stats.values() for report in found]
    ran = {r.nodeid for r in reports if _EMBEDDED in map(tuple, getattr(r, "user_properties", ()))}
    skips = [report.longrepr[2] for report in terminal.stats.get("skipped", ())]
    left_out = Counter(why.partition(LEFT_OUT)[2] for why in skips if LEFT_OUT in why)
    terminal.section("the embedded broker")
    terminal.line(
        f"{len(ran)} tests had it beside them; {sum(left_out.values())} were left out, since it"
    )
    for why, count in left_out.most_common():
        terminal.line(f"{count:6} {why}")
    terminal.line(
        "mosquitto runs them all: sudo apt-get install mosquitto, and no TEST_BROKER=embedded"
    )
