"""EmbeddedServerConfig: what it refuses, and what it makes of what it takes."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mono_sync import errors
from mono_sync.server import EmbeddedServer, EmbeddedServerConfig

HUGE = 2**63


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("binary", "", "not empty"),
        ("binary", b"/bin/nats-server", "path"),
        ("binary", 3, "path"),
        ("store_dir", "", "not empty"),
        ("store_dir", "a\0b", "path"),
        ("store_dir", True, "path"),
        ("port", 0, "1 to 65535"),
        ("port", -1, "1 to 65535"),
        ("port", 65_536, "1 to 65535"),
        ("port", "4222", "whole number"),
        ("port", True, "whole number"),
        ("max_memory", 0, "1 to"),
        ("max_memory", 1.5, "whole number"),
        ("max_memory", HUGE, "1 to"),
        ("max_file", -1, "1 to"),
        ("max_file", HUGE, "1 to"),
        ("max_payload", 0, "1 to 67108864"),
        ("max_payload", 64 * 1024 * 1024 + 1, "1 to 67108864"),
        ("sync_interval", "never", '"always"'),
        ("sync_interval", 0, "more than 0"),
        ("sync_interval", -1, "negative"),
        ("sync_interval", 0.0001, "at least 1 ms"),
        ("sync_interval", timedelta(days=2), "at most one day"),
        ("sync_interval", float("nan"), "finite"),
        ("start_timeout", 0, "more than 0"),
        ("start_timeout", None, "seconds or a timedelta"),
        ("start_timeout", -2, "negative"),
        ("start_timeout", 1e300, "at most one day"),
        ("stop_timeout", 0, "more than 0"),
        ("stop_timeout", float("inf"), "finite"),
        ("stop_timeout", 10**400, "finite"),
        ("stop_timeout", "5", "seconds or a timedelta"),
    ],
)
def test_option_that_cannot_be_right_is_refused_by_name_and_rule(option: str, value: Any, rule: str) -> None:
    with pytest.raises(errors.ConfigurationError, match=rule) as caught:
        EmbeddedServerConfig(**{option: value})
    assert option in str(caught.value)


def test_limits_themselves_are_taken() -> None:
    EmbeddedServerConfig(
        port=1, max_memory=1, max_file=1, max_payload=1, sync_interval=0.001, start_timeout=86_400, stop_timeout=86_400
    )
    EmbeddedServerConfig(port=65_535, max_memory=HUGE - 1, max_file=HUGE - 1, max_payload=64 * 1024 * 1024)


def test_durations_are_normalised_to_seconds() -> None:
    minute = timedelta(minutes=1)
    config = EmbeddedServerConfig(start_timeout=minute, stop_timeout=minute, sync_interval=minute)
    assert (config.start_timeout, config.stop_timeout, config.sync_interval) == (60.0, 60.0, 60.0)


def test_config_is_immutable_hashable_and_keyword_only() -> None:
    config = EmbeddedServerConfig(store_dir=Path("data"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.port = 1  # type: ignore[misc]
    assert {config: 1}[EmbeddedServerConfig(store_dir=Path("data"))] == 1
    with pytest.raises(TypeError):
        EmbeddedServerConfig("nats-server")  # type: ignore[call-arg]


def test_defaults_are_what_the_documentation_says() -> None:
    config = EmbeddedServerConfig()
    assert (config.start_timeout, config.stop_timeout) == (10.0, 5.0)
    given = (config.binary, config.store_dir, config.port, config.max_memory, config.max_file, config.max_payload)
    assert given == (None,) * 6
    assert config.sync_interval is None


def test_server_without_config_has_the_default_one() -> None:
    assert EmbeddedServer().config == EmbeddedServerConfig()
