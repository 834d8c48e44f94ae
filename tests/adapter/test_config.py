from __future__ import annotations

import dataclasses
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mono_sync import ConfigurationError, ConnectionConfig
from mono_sync.adapter import ConnectionOptions


def test_it_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ConnectionConfig().name = "other"  # type: ignore[misc]


def test_servers_come_as_a_sequence_or_with_commas_and_each_once() -> None:
    expected = ["nats://a:4222", "nats://b:1"]
    assert [address.url for address in ConnectionConfig(servers="a, b:1,a").addresses] == expected
    assert [address.url for address in ConnectionConfig(servers=["a", "nats://b:1"]).addresses] == expected


def test_without_servers_it_is_the_local_one() -> None:
    assert [address.url for address in ConnectionConfig().addresses] == ["nats://127.0.0.1:4222"]


def test_durations_may_be_timedeltas() -> None:
    config = ConnectionConfig(timeout=timedelta(seconds=2), ping_interval=timedelta(milliseconds=500))
    assert (config.call_timeout, config.ping_seconds) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"servers": "nats://host/path"}, "nothing may follow"),
        ({"servers": 4222}, "servers must be"),
        ({"servers": [4222]}, "must be a str"),
        ({"name": ""}, "name must be"),
        ({"name": 3}, "name must be"),
        ({"user": "u"}, "go together"),
        ({"password": "p"}, "go together"),
        ({"user": "u", "password": "p", "token": "t"}, "one way to authenticate, not user and token"),
        ({"token": "t", "nkey": "SU"}, "one way to authenticate"),
        ({"nkey": 5}, "nkey must be"),
        ({"credentials": ""}, "credentials must be"),
        ({"tls": True}, "tls must be an ssl.SSLContext"),
        ({"timeout": 0}, "timeout must be more than 0"),
        ({"timeout": -1}, "timeout must be"),
        ({"timeout": float("inf")}, "timeout must be"),
        ({"timeout": 10**400}, "timeout must be"),
        ({"timeout": "5"}, "timeout must be"),
        ({"connect_timeout": None}, "connect_timeout must be"),
        ({"reconnect_wait": 2.0, "reconnect_max_wait": 1.0}, "reconnect_max_wait must not be shorter"),
        ({"max_reconnect_attempts": 0}, "max_reconnect_attempts must be"),
        ({"max_reconnect_attempts": True}, "max_reconnect_attempts must be"),
        ({"pending_size": -1}, "pending_size must be"),
        ({"pending_size": 1.5}, "pending_size must be"),
        ({"ping_interval": 0}, "ping_interval must be more than 0"),
        ({"inbox_prefix": "a.*"}, "inbox_prefix must be"),
        ({"inbox_prefix": "$SYS"}, "inbox_prefix must be"),
        ({"inbox_prefix": "a..b"}, "inbox_prefix must be"),
        ({"uvloop": 1}, "uvloop must be True, False or None"),
        ({"uvloop": "yes"}, "uvloop must be True, False or None"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        ConnectionConfig(**options)


def test_repr_shows_no_secret() -> None:
    secret = "h1dd3n"
    shown = [
        repr(ConnectionConfig(servers=f"nats://user:{secret}@host", name="app")),
        repr(ConnectionConfig(user="me", password=secret)),
        repr(ConnectionConfig(token=secret)),
        repr(ConnectionConfig(nkey=secret)),
    ]
    assert not any(secret in text for text in shown)
    assert "nats://host:4222" in shown[0]
    assert "name='app'" in shown[0]
    assert "password=***" in shown[1]


def test_repr_leaves_defaults_out() -> None:
    assert repr(ConnectionConfig(tls_hostname="x")) == "ConnectionConfig(tls_hostname='x')"


def test_options_as_keywords_are_those_of_the_configuration() -> None:
    fields = {field.name for field in dataclasses.fields(ConnectionConfig)} - {"servers"}
    assert set(ConnectionOptions.__annotations__) == fields


def test_a_tls_context_is_taken() -> None:
    context = ssl.create_default_context()
    assert ConnectionConfig(tls=context).tls is context


def test_paths_are_taken(tmp_path: Path) -> None:
    assert ConnectionConfig(credentials=tmp_path / "x.creds").credentials == tmp_path / "x.creds"
