"""Opening a connection: who accepts us, and what we are told when nobody does."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nkeys
import pytest
import trustme

import mono_sync
from mono_sync import (
    AuthenticationError,
    ConfigurationError,
    ConnectFailedError,
    Connection,
    ConnectionConfig,
    ConnectionState,
    MonoApplication,
)
from tests.connection.conftest import Connect, flush_after_restart
from tests.fixtures.servers import RunNatsServer
from tests.support.network import LOOPBACK, Listener, saying, silent, unused_port

# --- nobody there


def test_a_dead_port_fails_at_once_and_is_named() -> None:
    url = f"nats://{LOOPBACK}:{unused_port()}"
    start = time.monotonic()
    with pytest.raises(ConnectFailedError) as caught:
        mono_sync.connect(url)
    assert time.monotonic() - start < 2
    assert caught.value.failures == {url: "connection refused"}
    assert str(caught.value) == f"cannot connect to NATS: {url}: connection refused"


def test_every_server_is_named_with_its_own_failure() -> None:
    dead = f"nats://{LOOPBACK}:{unused_port()}"
    with silent() as deaf, saying(b"HTTP/1.1 400 Bad Request\r\n\r\n") as other:
        with pytest.raises(ConnectFailedError) as caught:
            mono_sync.connect([dead, deaf.url, other.url], connect_timeout=1.0)
        failures = caught.value.failures
        assert failures[dead] == "connection refused"
        assert failures[deaf.url] == "no answer in time"
        assert "INFO" in failures[other.url]


def test_silent_servers_cost_no_more_than_the_deadline() -> None:
    with silent() as one, silent() as two:
        start = time.monotonic()
        with pytest.raises(ConnectFailedError):
            mono_sync.connect([one.url, two.url], connect_timeout=0.6)
        assert 0.5 < time.monotonic() - start < 1.5


def test_a_host_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConnectFailedError, match=r"no-such-host\.invalid"):
        mono_sync.connect("nats://no-such-host.invalid:4222", connect_timeout=2.0)


def test_a_silent_server_leaves_time_for_the_next(run_nats_server: RunNatsServer, connect: Connect) -> None:
    server = run_nats_server()
    with silent() as deaf:
        for _ in range(4):  # the order is random
            assert connect([deaf.url, server.url], connect_timeout=1.0).is_connected


def test_after_a_failure_it_can_be_tried_again(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server()
    server.stop()
    connection = Connection(ConnectionConfig(servers=server.url))
    with pytest.raises(ConnectFailedError):
        connection.open()
    assert connection.state is ConnectionState.NEW
    server.start()
    with connection:
        assert connection.is_connected


# --- credentials


def test_user_and_password(run_nats_server: RunNatsServer, connect: Connect) -> None:
    server = run_nats_server("authorization { user: alice, password: 's3cr@t' }")
    assert connect(server.url, user="alice", password="s3cr@t").is_connected
    with pytest.raises(AuthenticationError, match="authorization violation"):
        mono_sync.connect(server.url, user="alice", password="wrong")
    with pytest.raises(AuthenticationError):
        mono_sync.connect(server.url)


def test_credentials_in_the_address_are_percent_decoded(run_nats_server: RunNatsServer, connect: Connect) -> None:
    server = run_nats_server("authorization { user: 'al@ice', password: 'p@ss:/word' }")
    url = server.url.replace("nats://", "nats://al%40ice:p%40ss%3A%2Fword@")
    connection = connect(url)
    assert connection.is_connected
    assert "word" not in repr(connection)
    server.kill()
    server.start()
    flush_after_restart(connection)


def test_token(run_nats_server: RunNatsServer, connect: Connect) -> None:
    server = run_nats_server("authorization { token: t0ken }")
    assert connect(server.url, token="t0ken").is_connected
    assert connect(server.url.replace("nats://", "nats://t0ken@")).is_connected
    with pytest.raises(AuthenticationError) as caught:
        mono_sync.connect(server.url, token="wr0ng")
    assert "wr0ng" not in str(caught.value)


def test_refused_credentials_are_no_authentication_error_where_another_server_failed_otherwise(
    run_nats_server: RunNatsServer,
) -> None:
    server = run_nats_server("authorization { token: t0ken }")
    with saying(b"HELLO\r\n") as other, pytest.raises(ConnectFailedError) as caught:
        mono_sync.connect([server.url, other.url])
    assert not isinstance(caught.value, AuthenticationError)
    assert "authorization violation" in caught.value.failures[server.url]


def test_nkey_given_itself_or_as_a_file(run_nats_server: RunNatsServer, connect: Connect, tmp_path: Path) -> None:
    pair = nkeys.from_seed(bytearray(_seed(nkeys.PREFIX_BYTE_USER)))
    seed, public = pair.seed.decode(), pair.public_key.decode()
    server = run_nats_server(f"authorization {{ users: [{{ nkey: {public} }}] }}")
    file = tmp_path / "user.nk"
    file.write_text(f"{seed}\n")
    assert connect(server.url, nkey=seed).is_connected
    assert connect(server.url, nkey=file).is_connected
    other = _seed(nkeys.PREFIX_BYTE_USER).decode()
    with pytest.raises(AuthenticationError):
        mono_sync.connect(server.url, nkey=other)


@pytest.mark.parametrize("content", ["", "SUABC", "SA" + "A" * 56])
def test_what_is_no_nkey_is_refused_without_repeating_it(content: str, tmp_path: Path) -> None:
    file = tmp_path / "user.nk"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match="58 characters") as caught:
        mono_sync.connect(f"nats://{LOOPBACK}:{unused_port()}", nkey=file)
    assert not content or content not in str(caught.value)


def test_a_missing_file_of_credentials_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.creds: No such file"):
        mono_sync.connect(f"nats://{LOOPBACK}:{unused_port()}", credentials=tmp_path / "nowhere.creds")


@pytest.mark.parametrize("content", ["", "BEGIN USER NKEY SEED", "-----BEGIN NATS USER JWT-----\nx\n"])
def test_a_file_that_holds_no_credentials_ends_at_once(content: str, tmp_path: Path) -> None:
    file = tmp_path / "user.creds"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match="is no credentials file"):
        mono_sync.connect(f"nats://{LOOPBACK}:{unused_port()}", credentials=file)


def test_credentials_file_and_a_reconnect_with_the_file_replaced(
    run_nats_server: RunNatsServer, connect: Connect, tmp_path: Path
) -> None:
    operator = _Operator()
    server = run_nats_server(operator.server_config())
    file = tmp_path / "user.creds"
    file.write_text(operator.user_credentials())
    connection = connect(server.url, credentials=file)
    assert connection.is_connected
    file.write_text(operator.user_credentials())  # another user, as when a short-lived one is replaced
    server.kill()
    server.start()
    flush_after_restart(connection)


def _seed(kind: int) -> bytes:
    return bytes(nkeys.encode_seed(secrets.token_bytes(32), kind))


def _pair(kind: int) -> nkeys.KeyPair:
    return nkeys.from_seed(bytearray(_seed(kind)))


class _Operator:
    """An operator with one account, as `nsc` would make it (JWTs signed with NKEYs)."""

    def __init__(self) -> None:
        self._operator = _pair(nkeys.PREFIX_BYTE_OPERATOR)
        self._account = _pair(nkeys.PREFIX_BYTE_ACCOUNT)

    def server_config(self) -> str:
        public = self._account.public_key.decode()
        limits = dict.fromkeys(["subs", "conn", "leaf", "imports", "exports", "data", "payload"], -1)
        operator = _jwt(self._operator, self._operator.public_key.decode(), {"type": "operator", "version": 2})
        account = _jwt(
            self._operator, public, {"type": "account", "version": 2, "limits": {**limits, "wildcards": True}}
        )
        return f"operator: {operator}\nresolver: MEMORY\nresolver_preload: {{ {public}: {account} }}\n"

    def user_credentials(self) -> str:
        user = _pair(nkeys.PREFIX_BYTE_USER)
        claims = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}}
        token = _jwt(self._account, user.public_key.decode(), claims)
        return (
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )


def _jwt(issuer: nkeys.KeyPair, subject: str, claims: dict[str, object]) -> str:
    body: dict[str, object] = {"iss": issuer.public_key.decode(), "sub": subject, "name": "t", "iat": int(time.time())}
    body["nats"] = claims
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    head = {"typ": "JWT", "alg": "ed25519-nkey"}
    signed = ".".join(_b64(json.dumps(part).encode()) for part in (head, body))
    return f"{signed}.{_b64(issuer.sign(signed.encode()))}"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


# --- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_config(authority: trustme.CA, tmp_path: Path) -> str:
    issued = authority.issue_cert("localhost", "nats.test")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    return f"tls {{ cert_file: '{certificate}', key_file: '{key}' }}"


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_tls_with_a_trusted_certificate_and_after_a_reconnect(
    run_nats_server: RunNatsServer, connect: Connect, tls_config: str, trusting: ssl.SSLContext
) -> None:
    server = run_nats_server(tls_config)
    connection = connect(f"tls://localhost:{server.port}", tls=trusting)
    big = bytes(900_000)
    with connection.inbox(_deadline()) as inbox:
        for _ in range(8):
            connection.publish(inbox.subject, big)
        assert all(inbox.next("receive").data == big for _ in range(8))
    server.kill()
    server.start()
    flush_after_restart(connection)


def test_tls_hostname(
    run_nats_server: RunNatsServer, connect: Connect, tls_config: str, trusting: ssl.SSLContext
) -> None:
    server = run_nats_server(tls_config)
    url = f"tls://{LOOPBACK}:{server.port}"
    with pytest.raises(ConnectFailedError, match="certificate is not trusted"):
        mono_sync.connect(url, tls=trusting)
    assert connect(url, tls=trusting, tls_hostname="nats.test").is_connected


def test_tls_handshake_first(
    run_nats_server: RunNatsServer, connect: Connect, tls_config: str, trusting: ssl.SSLContext
) -> None:
    server = run_nats_server(tls_config.replace("}", ", handshake_first: true }"))
    assert connect(f"tls://localhost:{server.port}", tls=trusting, tls_handshake_first=True).is_connected


def test_a_failed_tls_handshake_is_named_as_such(
    run_nats_server: RunNatsServer, tls_config: str, trusting: ssl.SSLContext
) -> None:
    server = run_nats_server(tls_config.replace("}", ", min_version: '1.3' }"))
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ConnectFailedError) as caught:
        mono_sync.connect(f"tls://localhost:{server.port}", tls=trusting)
    (failure,) = caught.value.failures.values()
    assert failure == "TLS handshake failed: TLSV1_ALERT_PROTOCOL_VERSION"


@pytest.mark.parametrize("scheme", ["tls", "nats"])
def test_a_bad_certificate_fails_at_once_and_is_named(
    run_nats_server: RunNatsServer, tls_config: str, scheme: str
) -> None:
    server = run_nats_server(tls_config)
    start = time.monotonic()
    with pytest.raises(ConnectFailedError, match="TLS certificate is not trusted: unable to get local issuer"):
        mono_sync.connect(f"{scheme}://localhost:{server.port}")
    assert time.monotonic() - start < 3


def test_tls_to_a_plain_server_is_refused_before_credentials_are_sent(run_nats_server: RunNatsServer) -> None:
    server = run_nats_server()
    url = server.url.replace("nats://", "tls://")
    with pytest.raises(ConnectFailedError, match="offers no TLS"):
        mono_sync.connect(url)
    with pytest.raises(ConnectFailedError, match="offers no TLS"):
        mono_sync.connect(server.url, tls=ssl.create_default_context())
    sent: list[bytes] = []

    def plain(connection: socket.socket) -> None:
        connection.sendall(b'INFO {"max_payload":1048576}\r\n')
        while data := connection.recv(4096):
            sent.append(data)

    with Listener(plain) as listener, pytest.raises(ConnectFailedError, match="offers no TLS"):
        mono_sync.connect(listener.url.replace("nats://", "tls://"), token="s3cret")
    assert sent == []


def test_tls_is_used_where_the_server_only_offers_it(
    run_nats_server: RunNatsServer, connect: Connect, tls_config: str, trusting: ssl.SSLContext
) -> None:
    server = run_nats_server(tls_config + "\nallow_non_tls: true")
    connection = connect(f"tls://localhost:{server.port}", tls=trusting)
    assert connection.is_connected
    with pytest.raises(ConnectFailedError, match="not trusted"):
        mono_sync.connect(f"tls://localhost:{server.port}")
    assert connect(server.url).is_connected


def _deadline() -> mono_sync.Deadline:
    return mono_sync.Deadline(5.0)


# --- options


def test_server_info_tells_whom_we_talk_to(run_nats_server: RunNatsServer, connect: Connect) -> None:
    server = run_nats_server("server_name: here\nmax_payload: 2048")
    info = connect(server.url).server_info
    assert (info.name, info.max_payload, info.jetstream, info.url) == ("here", 2048, False, server.url)
    assert info.supports("2.9.0")
    assert not info.supports("999.0")


def test_options_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="tokn"):
        mono_sync.connect("nats://localhost", tokn="x")  # type: ignore[call-arg]


@pytest.mark.parametrize("servers", [[], ()])
def test_an_empty_list_of_servers_is_no_embedded_server(servers: Sequence[str]) -> None:
    with pytest.raises(ConfigurationError, match="names no server"):
        mono_sync.connect(servers)
    with pytest.raises(ConfigurationError, match="names no server"):
        MonoApplication(servers=servers)


def test_options_of_an_embedded_server_have_their_own_type() -> None:
    with pytest.raises(ConfigurationError, match="server must be EmbeddedServerConfig or None, not str"):
        mono_sync.connect(server="nats-server")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"user": "a", "password": "b"},
        {"token": "t"},
        {"credentials": "/nonexistent"},
        {"tls": ssl.create_default_context()},
        {"tls_handshake_first": True},
    ],
)
def test_credentials_and_tls_without_servers_are_a_mistake(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONO_SYNC_SERVERS", raising=False)
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))}.*of no use without servers"):
        mono_sync.connect(**options)
