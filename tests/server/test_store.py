"""The store directory: what it keeps, and that it has one owner."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from mono_sync import errors
from mono_sync.server import EmbeddedServer, EmbeddedServerConfig
from tests.fixtures.processes import Program, is_running
from tests.fixtures.raw_nats import store, stored
from tests.fixtures.servers import StartServer
from tests.fixtures.waiting import wait_until

OWNER = """
import json, sys
from mono_sync.server import EmbeddedServer, EmbeddedServerConfig
server = EmbeddedServer(EmbeddedServerConfig(store_dir=sys.argv[1], binary=sys.argv[2]))
server.start()
print(json.dumps({"pid": server.pid, "port": server.port}), flush=True)
sys.stdin.read()
server.stop()
"""


def test_persistent_store_keeps_data_from_run_to_run(any_binary: str, tmp_path: Path) -> None:
    config = EmbeddedServerConfig(binary=any_binary, store_dir=tmp_path / "store")
    with EmbeddedServer(config) as server:
        store(server, 3)
    with EmbeddedServer(config) as server:
        assert stored(server) == 3


def test_temporary_store_begins_empty(any_binary: str) -> None:
    config = EmbeddedServerConfig(binary=any_binary)
    with EmbeddedServer(config) as server:
        store(server)
    with EmbeddedServer(config) as server:
        assert stored(server) == 0


def test_relative_store_directory_is_taken_from_the_working_directory_at_the_start(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = start_server(store_dir="here")
    store(server)
    assert server.store_dir == tmp_path / "here"
    assert (tmp_path / "here" / "jetstream").is_dir()


def test_log_of_a_persistent_store_is_kept_and_the_tail_is_of_this_run(tmp_path: Path) -> None:
    config = EmbeddedServerConfig(store_dir=tmp_path)
    with EmbeddedServer(config) as first:
        pass
    with EmbeddedServer(config) as second:
        assert second.log_path.read_text("utf-8").count("Server is ready") == 2
        assert second.log_tail(10_000).count("Server is ready") == 1
    assert first.log_path == second.log_path == tmp_path / "nats-server.log"


def test_second_server_of_the_same_process_is_refused(start_server: StartServer, tmp_path: Path) -> None:
    start_server(store_dir=tmp_path)
    begin = time.monotonic()
    with pytest.raises(errors.StoreInUseError) as caught:
        EmbeddedServer(EmbeddedServerConfig(store_dir=tmp_path, start_timeout=50)).start()
    assert time.monotonic() - begin < 5
    assert (caught.value.path, caught.value.owner) == (str(tmp_path), os.getpid())


def test_same_directory_by_another_name_is_refused(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_server(store_dir=tmp_path / "store")
    (tmp_path / "link").symlink_to("store")
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "link", "store", "link/../store", tmp_path / "link" / "." / ""):
        with pytest.raises(errors.StoreInUseError):
            EmbeddedServer(EmbeddedServerConfig(store_dir=name)).start()


def test_refused_server_does_the_owner_no_harm(start_server: StartServer, tmp_path: Path) -> None:
    owner = start_server(store_dir=tmp_path)
    store(owner, 2)
    for _ in range(3):
        with pytest.raises(errors.StoreInUseError):
            EmbeddedServer(EmbeddedServerConfig(store_dir=tmp_path)).start()
    assert stored(owner) == 2


def test_directory_is_free_as_soon_as_its_server_was_stopped(any_binary: str, tmp_path: Path) -> None:
    for count in range(5):
        with EmbeddedServer(EmbeddedServerConfig(binary=any_binary, store_dir=tmp_path)) as server:
            assert stored(server) == count
            store(server)


def test_stopped_server_leaves_no_name_in_the_lock(tmp_path: Path) -> None:
    with EmbeddedServer(EmbeddedServerConfig(store_dir=tmp_path)):
        assert (tmp_path / "mono_sync.lock").read_text() == f"{os.getpid()}\n"
    assert (tmp_path / "mono_sync.lock").read_text() == ""


def test_server_of_another_process_is_refused_at_once(any_binary: str, tmp_path: Path) -> None:
    with Program(OWNER, str(tmp_path), any_binary) as owner:
        owner.line()
        begin = time.monotonic()
        with pytest.raises(errors.StoreInUseError, match=f"by process {owner.pid}") as caught:
            EmbeddedServer(EmbeddedServerConfig(store_dir=tmp_path, start_timeout=50)).start()
        assert time.monotonic() - begin < 5
        assert caught.value.owner == owner.pid
        assert owner.finish()[::2] == (0, "")
    EmbeddedServer(EmbeddedServerConfig(store_dir=tmp_path)).stop()


def test_directory_of_a_killed_process_is_taken_over_once_its_server_has_ended(
    start_server: StartServer, any_binary: str, tmp_path: Path
) -> None:
    with Program(OWNER, str(tmp_path), any_binary) as owner:
        orphan = json.loads(owner.line())["pid"]
        owner.kill()
        server = start_server(binary=any_binary, store_dir=tmp_path)
        assert not is_running(orphan)
        assert server.alive


def test_lock_lasts_while_an_orphaned_server_still_runs(any_binary: str, tmp_path: Path) -> None:
    with Program(OWNER, str(tmp_path), any_binary) as owner:
        orphan = json.loads(owner.line())["pid"]
        os.kill(orphan, signal.SIGSTOP)  # so that the watchdog needs two seconds
        owner.kill()
        with pytest.raises(errors.StoreInUseError) as caught:
            EmbeddedServer(EmbeddedServerConfig(store_dir=tmp_path, start_timeout=0.5)).start()
        assert caught.value.owner == owner.pid
        wait_until(lambda: not is_running(orphan), "the watchdog kills the stalled server")
