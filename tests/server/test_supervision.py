"""A server that dies is started again; one that dies again and again is given up."""

from __future__ import annotations

import logging
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mono_sync import errors
from mono_sync.server import EmbeddedServer, _supervisor
from mono_sync.server._binary import find_binary
from tests.fixtures.processes import fake_binary, is_running, processes_naming
from tests.fixtures.raw_nats import request, store, stored
from tests.fixtures.servers import StartServer
from tests.fixtures.waiting import wait_until


def kill(server: EmbeddedServer) -> int:
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def wait_restarted(server: EmbeddedServer, previous: int) -> None:
    wait_until(lambda: server.alive and server.pid not in (None, previous), "the server runs again")


@pytest.fixture
def breakable(tmp_path: Path) -> Path:
    """A nats-server that does what the file ``broken`` says when it is started, if there is one."""
    script = (
        f'[ "$1" = --version ] || [ ! -e {tmp_path}/broken ] || . {tmp_path}/broken\nexec {find_binary(None).path} "$@"'
    )
    return fake_binary(tmp_path, script)


def test_killed_server_is_started_again_on_the_same_address_with_its_data(
    start_server: StartServer, any_binary: str
) -> None:
    server = start_server(binary=any_binary)
    store(server, 3)
    address = (server.url, server.token, server.store_dir)
    wait_restarted(server, kill(server))
    assert (server.url, server.token, server.store_dir) == address
    assert stored(server) == 3


def test_persistent_store_survives_the_restart(start_server: StartServer, any_binary: str, tmp_path: Path) -> None:
    server = start_server(binary=any_binary, store_dir=tmp_path)
    store(server, 3)
    wait_restarted(server, kill(server))
    assert stored(server) == 3


def test_server_that_was_told_to_end_by_others_is_started_again(start_server: StartServer) -> None:
    server = start_server()
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    wait_restarted(server, pid)


def test_death_is_logged_with_exit_code_and_log(start_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    server = start_server()
    wait_restarted(server, kill(server))

    def records() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == "mono_sync.server"]

    wait_until(lambda: len(records()) > 1, "it says that it runs again")
    assert [record.levelno for record in records()] == [logging.ERROR, logging.WARNING]
    assert "exit code -9" in records()[0].getMessage()
    assert "Server is ready" in records()[0].getMessage()
    assert f"runs again on port {server.port}" in records()[1].getMessage()


def test_stop_after_a_restart_is_clean(start_server: StartServer) -> None:
    server = start_server()
    wait_restarted(server, kill(server))
    pid, store_dir = server.pid, server.store_dir
    server.stop()
    assert pid is not None
    assert not is_running(pid)
    assert not processes_naming(str(store_dir.parent))
    assert not store_dir.exists()


def test_restarted_server_is_guarded_again_when_its_watchdog_was_killed(start_server: StartServer) -> None:
    server = start_server()
    run_dir = str(server.store_dir.parent)

    def watchdogs() -> set[int]:
        return {pid for pid in processes_naming(run_dir) if pid != server.pid and is_running(pid)}

    (first,) = wait_until(watchdogs, "the watchdog runs")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not is_running(first), "the watchdog is dead")
    wait_restarted(server, kill(server))
    wait_until(lambda: len(watchdogs() - {first}) == 1, "another watchdog runs")


@pytest.mark.slow
def test_crash_loop_ends_after_five_restarts(
    start_server: StartServer, breakable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server(binary=breakable)
    store_dir = server.store_dir
    (breakable.parent / "broken").write_text("echo 'nats-server: broken' >&2; exit 3\n")
    begin = time.monotonic()
    kill(server)
    wait_until(lambda: server.failure is not None, "the server is given up", timeout=30)
    assert 1.5 <= time.monotonic() - begin < 20  # the pauses grow
    assert not server.alive
    assert server.pid is None
    assert "failed 6 times within 60 s" in str(server.failure)
    assert "exit code 3: nats-server: broken" in str(server.failure)
    assert sum("restart of nats-server failed" in record.getMessage() for record in caplog.records) == 5
    assert store_dir.is_dir()  # until the stop
    with pytest.raises(errors.ServerError, match="given up"):
        server.start()
    assert store_dir.is_dir()
    server.stop()
    assert not store_dir.exists()


def test_restart_that_fails_is_tried_again(start_server: StartServer, breakable: Path) -> None:
    server = start_server(binary=breakable)
    store(server, 2)
    marker = breakable.parent / "broken"
    marker.write_text(f"rm {marker}; exit 3\n")
    wait_restarted(server, kill(server))
    assert not marker.exists()
    assert stored(server) == 2
    assert server.failure is None


def test_stop_during_a_restart_is_clean_and_fast(start_server: StartServer, breakable: Path) -> None:
    server = start_server(binary=breakable)
    run_dir = server.store_dir.parent
    begun = breakable.parent / "begun"
    (breakable.parent / "broken").write_text(f"touch {begun}; exec sleep 1000\n")
    kill(server)
    wait_until(begun.exists, "the restart has begun")
    begin = time.monotonic()
    server.stop()
    assert time.monotonic() - begin < 3
    assert not processes_naming(str(run_dir))
    assert not run_dir.exists()
    assert server.failure is None


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.01])
def test_stop_right_after_a_crash_is_clean(start_server: StartServer, delay: float) -> None:
    server = start_server()
    run_dir = server.store_dir.parent
    with ThreadPoolExecutor(1) as threads:
        kill(server)
        time.sleep(delay)  # into different steps of the restart
        threads.submit(server.stop).result(10)
    assert not processes_naming(str(run_dir))
    assert not run_dir.exists()


def test_system_that_cannot_wait_without_reaping_is_supervised_too(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_supervisor, "_WAITS", False)  # as on macOS before Python 3.13
    server = start_server()
    store(server, 2)
    wait_restarted(server, kill(server))
    assert stored(server) == 2
    begin = time.monotonic()
    server.stop()
    assert time.monotonic() - begin < 3
    assert not server.alive


def test_server_survives_several_crashes(start_server: StartServer) -> None:
    server = start_server()
    store(server)
    for _ in range(3):
        wait_restarted(server, kill(server))
        assert request(server, "$JS.API.INFO")
    assert stored(server) == 1
