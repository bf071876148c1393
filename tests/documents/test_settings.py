"""The configuration: one file, the environment over it, errors that say where and what."""

from __future__ import annotations

from typing import Any

import pytest

from agent.documents.settings import Settings, prefix_of, settings_from
from agent.errors import DocumentError


def read(raw: dict[str, Any], **environment: str) -> Settings:
    return settings_from(raw, environment, name="agent.toml")


def test_every_key_has_a_default() -> None:
    assert read({}) == Settings()


def test_the_environment_lies_over_the_file() -> None:
    settings = read(
        {"device_id": "a", "limits": {"store_mb": 10, "spool_mb": 3}},
        EDGEWARD_DEVICE_ID="b",
        EDGEWARD_LIMITS_STORE_MB="20",
        EDGEWARD_BUS_URL="mqtt://127.0.0.1",
    )
    assert (settings.device_id, settings.limits.store_mb, settings.limits.spool_mb) == ("b", 20, 3)
    assert settings.bus is not None
    assert settings.bus.url == "mqtt://127.0.0.1"


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ({"link": {"urll": "mqtt://x"}}, r"agent.toml.link.urll: expected one of .*unknown key"),
        ({"links": {}}, r"agent.toml.links: expected one of .*unknown key 'links'"),
        ({"link": {"url": "http://x"}}, r"agent.toml.link.url: expected str matching regex"),
        ({"limits": {"store_mb": "much"}}, r"agent.toml.limits.store_mb: expected int"),
        ({"isolation": {"require": "most"}}, r"agent.toml.isolation.require: expected one of"),
    ],
)
def test_an_error_says_where_it_is_and_what_would_be_right(raw: dict[str, Any], text: str) -> None:
    with pytest.raises(DocumentError, match=text):
        read(raw)


def test_a_variable_that_is_no_setting_is_refused() -> None:
    with pytest.raises(DocumentError, match="EDGEWARD_LINK_COLOUR"):
        read({}, EDGEWARD_LINK_COLOUR="red")


def test_the_prefix_names_the_device() -> None:
    assert prefix_of(read({"device_id": "press-7"})) == "edgeward/press-7/"
