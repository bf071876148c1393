"""Fixtures that every room's tests share, and which broker they had."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.brokers import MOSQUITTO, LocalBroker, need

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_MODELS = REPOSITORY.parent / "shared" / "models"
_EMBEDDED = ("broker", "embedded")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The folder of real models with expected outputs, where the machine has it."""
    if not (SHARED_MODELS / "index.json").is_file():
        pytest.skip("the folder of real models (../shared/models) is not on this machine")
    return SHARED_MODELS


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
