"""Fixtures that every room's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_MODELS = REPOSITORY.parent / "shared" / "models"


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The folder of real models with expected outputs, where the machine has it."""
    if not (SHARED_MODELS / "index.json").is_file():
        pytest.skip("the folder of real models (../shared/models) is not on this machine")
    return SHARED_MODELS
