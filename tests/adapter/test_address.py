from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mono_sync import ConfigurationError
from mono_sync.adapter import ServerAddress


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("nats://example.com", "nats://example.com:4222"),
        ("tls://example.com:4443", "tls://example.com:4443"),
        ("example.com", "nats://example.com:4222"),
        ("127.0.0.1:4333", "nats://127.0.0.1:4333"),
        ("nats://[::1]:4333", "nats://[::1]:4333"),
        ("nats://[::1]", "nats://[::1]:4222"),
        ("  nats://a:1/ ", "nats://a:1"),
    ],
)
def test_addresses_get_scheme_and_port(text: str, url: str) -> None:
    assert ServerAddress.parse(text).url == url


def test_user_and_password_are_percent_decoded_and_not_part_of_the_url() -> None:
    address = ServerAddress.parse("nats://al%40ice:p%40ss%2Fword@host:1")
    assert (address.user, address.password, address.token) == ("al@ice", "p@ss/word", None)
    assert address.url == str(address) == "nats://host:1"
    assert "p@ss" not in repr(address)


def test_a_name_alone_is_a_token() -> None:
    address = ServerAddress.parse("nats://s3cr%3At@host")
    assert (address.user, address.password, address.token) == (None, None, "s3cr:t")
    assert "s3cr" not in repr(address)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("http://host", "scheme must be nats:// or tls://"),
        ("ws://host", "scheme must be nats:// or tls://"),
        ("nats://", "names no host"),
        ("", "names no host"),
        ("nats://host:port", "invalid server address"),
        ("nats://host:70000", "invalid server address"),
        ("nats://host:0", "port 0"),
        ("nats://host/path", "nothing may follow"),
        ("nats://host?x=1", "nothing may follow"),
        ("nats://ho st", "names no host"),
        ("nats://[::1", "invalid server address"),
    ],
)
def test_what_is_no_address_is_refused_with_the_rule(text: str, rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        ServerAddress.parse(text)


def test_an_address_that_is_no_str_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be a str"):
        ServerAddress.parse(b"nats://host")  # type: ignore[arg-type]


@pytest.mark.parametrize("secret", ["s3cr/et", "s3cr#et", "s3cr?et", "s3cr℀et", "12#et", "s3cr@et", "[s3cr"])
@pytest.mark.parametrize("user", ["user:", ""])
def test_a_secret_that_should_have_been_encoded_is_not_repeated_either(user: str, secret: str) -> None:
    try:
        shown = repr(ServerAddress.parse(f"nats://{user}{secret}@host:4222"))
    except ConfigurationError as error:
        shown = str(error)
    assert "s3cr" not in shown
    assert "et@" not in shown
    assert "host" in shown


@given(st.text(max_size=30))
def test_errors_never_repeat_credentials(text: str) -> None:
    url = f"nats://user:sEcrEtpAsswOrd@{text}"
    try:
        shown = repr(ServerAddress.parse(url))
    except ConfigurationError as error:
        shown = str(error)
    assert "sEcrEtpAsswOrd" not in shown
