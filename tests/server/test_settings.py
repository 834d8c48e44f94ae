"""What reaches the server from the configuration, and what others can read of it."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mono_sync import errors
from mono_sync.server import EmbeddedServer, EmbeddedServerConfig
from mono_sync.server._probe import NotReadyError, probe
from tests.fixtures.raw_nats import info, request, store, stored
from tests.fixtures.servers import StartServer
from tests.support.network import LOOPBACK, unused_port


def settings_path(server: EmbeddedServer) -> Path:
    command = Path(f"/proc/{server.pid}/cmdline").read_bytes().split(b"\0")
    return Path(os.fsdecode(command[command.index(b"-c") + 1]))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_limits_reach_the_server(start_server: StartServer, any_binary: str) -> None:
    server = start_server(binary=any_binary, max_memory=12_000_000, max_file=34_000_000, max_payload=56_789)
    assert info(server)["max_payload"] == 56_789
    stream: dict[str, Any] = {"name": "S", "subjects": ["s"], "storage": "memory", "max_bytes": 12_000_001}
    refused = request(server, "$JS.API.STREAM.CREATE.S", json.dumps(stream).encode())
    assert "insufficient memory" in refused["error"]["description"]
    stream |= {"storage": "file", "max_bytes": 34_000_001}
    refused = request(server, "$JS.API.STREAM.CREATE.S", json.dumps(stream).encode())
    assert "insufficient storage" in refused["error"]["description"]
    stream["max_bytes"] = 34_000_000
    assert "error" not in request(server, "$JS.API.STREAM.CREATE.S", json.dumps(stream).encode())


def test_largest_payload_is_taken(start_server: StartServer, any_binary: str) -> None:
    server = start_server(binary=any_binary, max_payload=64 * 1024 * 1024)
    assert info(server)["max_payload"] == 64 * 1024 * 1024


@pytest.mark.parametrize("interval", ["always", 0.25, 60])
def test_sync_interval_reaches_the_server(start_server: StartServer, interval: Any) -> None:
    server = start_server(sync_interval=interval)
    expected = '"always"' if interval == "always" else f'"{int(interval * 1e9)}ns"'
    assert f"sync_interval: {expected}" in settings_path(server).read_text("utf-8")
    store(server)
    assert stored(server) == 1


@pytest.mark.old_server
def test_sync_interval_is_refused_where_the_server_does_not_know_it(old_server_binary: str) -> None:
    with pytest.raises(errors.UnsupportedByServerError, match=r"sync_interval needs nats-server 2\.10\.0") as caught:
        EmbeddedServer(EmbeddedServerConfig(binary=old_server_binary, sync_interval="always")).start()
    assert caught.value.actual.startswith("2.9.")


@pytest.mark.parametrize(
    "name",
    [
        "with blanks",
        "with \"quotes\" and 'quotes'",
        "back\\slash \\x41 \\n",
        "dollar $HOME ${HOME}",
        "Ünïcödé 数据 🗄",
        "{ brace } # hash ; , = :",
        "tab\tand\nnewline",
        "not UTF-8 \udcff",
        "include",
    ],
)
def test_store_directory_may_have_any_name(
    start_server: StartServer, any_binary: str, tmp_path: Path, name: str
) -> None:
    server = start_server(binary=any_binary, store_dir=tmp_path / name)
    store(server)
    assert any((tmp_path / name / "jetstream").iterdir())
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_fixed_port_is_used(start_server: StartServer, any_binary: str) -> None:
    port = unused_port()
    server = start_server(binary=any_binary, port=port)
    assert server.url == f"nats://{LOOPBACK}:{port}"
    assert request(server, "$JS.API.INFO")


def test_server_listens_on_loopback_only(any_server: EmbeddedServer) -> None:
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{any_server.port:04X}")
    ]
    assert listening == [f"0100007F:{any_server.port:04X}"]


def test_wrong_token_is_refused(any_server: EmbeddedServer) -> None:
    with pytest.raises(NotReadyError, match="Authorization Violation"):
        probe(any_server.port, any_server.token[:-1], 5)


def test_tokens_are_random_and_long(start_server: StartServer) -> None:
    first, second = start_server().token, start_server().token
    assert first != second
    assert min(len(first), len(second)) >= 32


def test_only_the_owner_can_read_what_is_on_disk(start_server: StartServer, any_binary: str, tmp_path: Path) -> None:
    server = start_server(binary=any_binary, store_dir=tmp_path / "a" / "b")
    settings = settings_path(server)
    assert mode(settings) == 0o600
    assert mode(settings.parent) == 0o700
    assert mode(tmp_path / "a" / "b") == 0o700
    assert mode(server.log_path) == 0o600
    temporary = start_server(binary=any_binary)
    assert mode(temporary.store_dir) == 0o700


def test_modes_do_not_depend_on_the_umask(tmp_path: Path, start_server: StartServer) -> None:
    previous = os.umask(0)
    try:
        server = start_server(store_dir=tmp_path / "store")
    finally:
        os.umask(previous)
    paths = (tmp_path / "store", settings_path(server).parent, settings_path(server), server.log_path)
    assert [mode(path) for path in paths] == [0o700, 0o700, 0o600, 0o600]


def test_token_is_nowhere_but_in_the_settings(
    start_server: StartServer, any_binary: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = start_server(binary=any_binary)
    token = server.token
    with pytest.raises(NotReadyError):
        probe(server.port, "wrong", 5)  # makes the server log the refusal
    assert token in settings_path(server).read_text("utf-8")
    commands = subprocess.run(["cat", f"/proc/{server.pid}/cmdline"], capture_output=True, check=True).stdout
    environment = Path(f"/proc/{server.pid}/environ").read_bytes()
    assert token.encode() not in commands + environment
    assert token not in server.log_tail(1000) + repr(server) + repr(vars(server)) + server.url + caplog.text
    server.stop()
    assert token not in server.log_tail(1000) + repr(server)


def test_log_has_times_and_no_payload(start_server: StartServer, any_binary: str) -> None:
    server = start_server(binary=any_binary)
    store(server)
    assert re.search(r"\d\d:\d\d:\d\d\.\d+ \[INF\] Server is ready", server.log_tail())
    assert "content" not in server.log_tail(1000)
