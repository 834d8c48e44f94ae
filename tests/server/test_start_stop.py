"""Start and stop: what they promise, from any thread, and what a failed start leaves behind: nothing."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from mono_sync import errors
from mono_sync.server import EmbeddedServer, EmbeddedServerConfig
from tests.fixtures.leaks import no_more_threads_than, open_files, our_threads
from tests.fixtures.processes import child_processes, fake_binary, is_running
from tests.fixtures.raw_nats import request, store
from tests.fixtures.threads import standing_threads
from tests.fixtures.waiting import wait_until

ANSWERS = "{ echo nats-server: v2.99.0; exit; }"


def hanging(folder: Path) -> Path:
    """Return a binary that starts and never listens; it makes the file ``begun``."""
    return fake_binary(folder, f'[ "$1" = --version ] && {ANSWERS}\ntouch {folder}/begun\nexec sleep 1000')


@pytest.fixture
def nothing_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves a thread, a child process, an open file or a temporary file behind."""
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    threads, children, files = our_threads(), child_processes(), open_files()
    yield
    assert no_more_threads_than(threads)
    assert set(child_processes()) == set(children)
    assert set(open_files()) == set(files)
    assert list(temporary.iterdir()) == []


# --- the good case --------------------------------------------------------------------------------------------------


def test_constructor_starts_nothing(nothing_left: None, tmp_path: Path) -> None:
    EmbeddedServer(EmbeddedServerConfig(binary=tmp_path / "missing", store_dir=tmp_path / "store"))
    assert list(tmp_path.iterdir()) == []


def test_jetstream_answers_when_start_returns(any_binary: str, nothing_left: None) -> None:
    server = EmbeddedServer(EmbeddedServerConfig(binary=any_binary))
    server.start()
    assert request(server, "$JS.API.INFO")["type"] == "io.nats.jetstream.api.v1.account_info_response"
    assert server.alive
    server.stop()


def test_stop_ends_everything_and_removes_the_temporary_store(any_binary: str, nothing_left: None) -> None:
    server = EmbeddedServer(EmbeddedServerConfig(binary=any_binary))
    server.start()
    pid, store_dir = server.pid, server.store_dir
    assert pid is not None
    assert store_dir.is_dir()
    store(server)
    server.stop()
    assert not is_running(pid)
    assert not store_dir.exists()
    assert not server.alive
    assert server.pid is None


def test_start_and_stop_are_idempotent(nothing_left: None) -> None:
    server = EmbeddedServer()
    server.start()
    pid = server.pid
    server.start()
    assert server.pid == pid
    server.stop()
    server.stop()


def test_stop_of_a_server_that_never_started_does_nothing(nothing_left: None) -> None:
    EmbeddedServer().stop()


def test_stopped_server_cannot_be_started_again(nothing_left: None) -> None:
    with EmbeddedServer() as server:
        pass
    with pytest.raises(errors.ClosedError, match="make a new one"):
        server.start()
    never = EmbeddedServer()
    never.stop()
    with pytest.raises(errors.ClosedError):
        never.start()


def test_context_manager_stops_after_an_exception(nothing_left: None) -> None:
    server = EmbeddedServer()
    with pytest.raises(KeyError), server:
        raise KeyError
    assert not server.alive


def test_facts_are_refused_before_the_start_and_known_after_the_stop() -> None:
    server = EmbeddedServer()
    facts: list[Callable[[], object]] = [
        lambda: server.url,
        lambda: server.token,
        lambda: server.port,
        lambda: server.version,
        lambda: server.store_dir,
        lambda: server.log_path,
    ]
    for fact in facts:
        with pytest.raises(errors.ServerError, match="has not been started"):
            fact()
    assert (server.pid, server.alive, server.failure, server.log_tail()) == (None, False, None, "")
    with server:
        known = [fact() for fact in facts]
        assert server.url == f"nats://127.0.0.1:{server.port}"
    assert [fact() for fact in facts] == known


def test_repr_tells_the_state(nothing_left: None) -> None:
    server = EmbeddedServer()
    assert repr(server) == "<EmbeddedServer not started>"
    with server:
        assert repr(server).startswith(f"<EmbeddedServer running on port {server.port}, store ")
    assert repr(server).startswith("<EmbeddedServer stopped")


def test_log_tail_has_the_last_lines_also_after_the_stop() -> None:
    with EmbeddedServer() as server:
        assert server.log_tail(1).endswith("Server is ready")
        assert server.log_path.read_text("utf-8").endswith(server.log_tail(3) + "\n")
        assert len(server.log_tail().splitlines()) == 20
        assert server.log_tail(0) == ""
    assert "Server is ready" in server.log_tail(100)


def test_two_servers_live_side_by_side(nothing_left: None) -> None:
    with EmbeddedServer() as one, EmbeddedServer() as other:
        assert one.port != other.port
        one.stop()
        assert request(other, "$JS.API.INFO")


# --- from many threads ----------------------------------------------------------------------------------------------


def test_start_from_many_threads_starts_one_server(nothing_left: None) -> None:
    server = EmbeddedServer()
    barrier = threading.Barrier(8)

    def start() -> int | None:
        barrier.wait()
        server.start()
        return server.pid

    with ThreadPoolExecutor(8) as threads:
        pids = {future.result(20) for future in [threads.submit(start) for _ in range(8)]}
        assert len(pids) == 1
        for future in [threads.submit(server.stop) for _ in range(8)]:
            future.result(20)
    assert not server.alive


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.004, 0.008, 0.016])
def test_stop_during_the_start_ends_it(delay: float, nothing_left: None) -> None:
    server = EmbeddedServer()
    outcome: list[object] = []

    def start() -> None:
        try:
            server.start()
            outcome.append("started")
        except errors.ClosedError as error:
            outcome.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    threading.Event().wait(delay)  # into different steps of the start
    server.stop()
    thread.join(20)
    assert len(outcome) == 1
    assert not server.alive


def test_stop_ends_a_start_that_hangs_at_once(tmp_path: Path, nothing_left: None) -> None:
    server = EmbeddedServer(EmbeddedServerConfig(binary=hanging(tmp_path), start_timeout=50))
    with ThreadPoolExecutor(1) as threads:
        start = threads.submit(server.start)
        wait_until((tmp_path / "begun").exists, "the server process runs")
        assert repr(server) == "<EmbeddedServer starting>"
        begin = time.monotonic()
        server.stop()
        with pytest.raises(errors.ClosedError, match="stopped while it started"):
            start.result(20)
    assert time.monotonic() - begin < 3


# --- starts that fail -----------------------------------------------------------------------------------------------


def test_start_that_fails_leaves_nothing(nothing_left: None, tmp_path: Path) -> None:
    binary = fake_binary(tmp_path, f'[ "$1" = --version ] && {ANSWERS}\necho "nats-server: no mood" >&2; exit 7')
    with pytest.raises(errors.ServerStartError, match="exit code 7: nats-server: no mood") as caught:
        EmbeddedServer(EmbeddedServerConfig(binary=binary, store_dir=tmp_path / "store")).start()
    assert caught.value.exit_code == 7
    assert caught.value.log_tail == "nats-server: no mood"


def test_server_that_ends_during_the_start_is_noticed_at_once(tmp_path: Path, nothing_left: None) -> None:
    binary = fake_binary(tmp_path, f'[ "$1" = --version ] && {ANSWERS}\nexit 1')
    begin = time.monotonic()
    with pytest.raises(errors.ServerStartError):
        EmbeddedServer(EmbeddedServerConfig(binary=binary, start_timeout=50)).start()
    assert time.monotonic() - begin < 5


def test_server_that_never_listens_times_out(tmp_path: Path, nothing_left: None) -> None:
    config = EmbeddedServerConfig(binary=hanging(tmp_path), start_timeout=timedelta(seconds=0.5))
    begin = time.monotonic()
    with pytest.raises(errors.ServerStartError, match=r"did not answer within 0\.5 s: it does not listen"):
        EmbeddedServer(config).start()
    assert 0.5 <= time.monotonic() - begin < 4


def test_port_that_is_taken_is_the_reason(any_binary: str, nothing_left: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(errors.ServerStartError, match="address already in use") as caught:
            EmbeddedServer(EmbeddedServerConfig(binary=any_binary, port=port)).start()
    assert str(port) in str(caught.value)
    assert "[FTL]" in caught.value.log_tail


def test_store_directory_that_is_a_file_is_the_reason(tmp_path: Path, nothing_left: None) -> None:
    path = tmp_path / "file"
    path.touch()
    for store_dir, reason in ((path, "Not a directory"), (path / "below", "(Not a directory|File exists)")):
        with pytest.raises(errors.ServerStartError, match=reason) as caught:
            EmbeddedServer(EmbeddedServerConfig(store_dir=store_dir)).start()
        assert str(store_dir) in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)


def test_store_directory_that_cannot_be_written_to_is_the_reason(tmp_path: Path, nothing_left: None) -> None:
    folder = Path("/sys") if os.geteuid() == 0 else tmp_path  # nothing stops root but a file system that cannot
    folder.chmod(folder.stat().st_mode & ~0o222) if folder is tmp_path else None
    with pytest.raises(errors.ServerStartError, match=r"cannot be used: (Permission denied|Operation not permitted)"):
        EmbeddedServer(EmbeddedServerConfig(store_dir=folder / "mono_sync-store")).start()


def test_storage_that_the_server_refuses_is_the_reason(any_binary: str, tmp_path: Path, nothing_left: None) -> None:
    (tmp_path / "jetstream").touch()
    with pytest.raises(errors.ServerStartError, match="is not a directory") as caught:
        EmbeddedServer(EmbeddedServerConfig(binary=any_binary, store_dir=tmp_path)).start()
    assert caught.value.exit_code == 1


def test_start_may_be_tried_again_after_a_failure(nothing_left: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = EmbeddedServer(EmbeddedServerConfig(port=taken.getsockname()[1]))
        with pytest.raises(errors.ServerStartError):
            server.start()
    with server:
        assert request(server, "$JS.API.INFO")


def test_missing_binary_is_reported_by_start(tmp_path: Path, nothing_left: None) -> None:
    with pytest.raises(errors.ServerNotFoundError):
        EmbeddedServer(EmbeddedServerConfig(binary=tmp_path / "gone")).start()


def test_missing_temporary_directory_is_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(errors.ServerStartError, match="No such file or directory"):
        EmbeddedServer().start()


def test_interrupted_start_leaves_nothing(tmp_path: Path, nothing_left: None) -> None:
    server = EmbeddedServer(EmbeddedServerConfig(binary=hanging(tmp_path), start_timeout=50))

    def interrupt() -> None:
        wait_until((tmp_path / "begun").exists, "the server process runs")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        server.start()
    thread.join()
    assert time.monotonic() - begin < 10
    assert not server.alive


def test_system_without_threads_is_the_reason(monkeypatch: pytest.MonkeyPatch, nothing_left: None) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    server = EmbeddedServer()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(errors.ServerStartError, match="no thread to watch it: can't start new thread"):
            server.start()
    with server:
        assert server.alive


def test_thread_that_does_not_run_is_explained_and_starts_nothing_late(tmp_path: Path, nothing_left: None) -> None:
    server = EmbeddedServer(EmbeddedServerConfig(binary=hanging(tmp_path), start_timeout=0.2))
    threads, begin = our_threads(), time.monotonic()
    with standing_threads() as late:
        with pytest.raises(errors.ServerStartError, match=r"did not run within 0.2 s. Under uWSGI set `enable-threads"):
            server.start()
        assert time.monotonic() - begin < 2
        for start in late:
            start()
        wait_until(lambda: no_more_threads_than(threads), "the late thread has ended")
    assert not (tmp_path / "begun").exists()


# --- a server that does not want to end -----------------------------------------------------------------------------


def test_stop_of_a_stalled_server_is_bounded(any_binary: str, nothing_left: None) -> None:
    server = EmbeddedServer(EmbeddedServerConfig(binary=any_binary, stop_timeout=0.3))
    server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    begin = time.monotonic()
    server.stop()
    assert 0.3 <= time.monotonic() - begin < 3


def test_stop_is_clean_after_the_server_got_a_signal_from_outside(any_binary: str, nothing_left: None) -> None:
    server = EmbeddedServer(EmbeddedServerConfig(binary=any_binary))
    server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGTERM)  # as a service manager does that signals the whole group
    server.stop()
    assert not server.alive
