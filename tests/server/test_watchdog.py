"""The watchdog by itself: it ends what it was told of, and nothing that it was told is gone."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from mono_sync.server._watchdog import Watchdog
from tests.fixtures.processes import is_running, processes_naming
from tests.fixtures.waiting import wait_until


def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


def launch(watchdog: Watchdog, tmp_path: Path) -> subprocess.Popen[bytes]:
    with (tmp_path / "log").open("ab") as log:
        process = watchdog.launch(["sleep", "1000"], log, [])
    wait_until(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes() == b"sleep\x001000\0", "the launcher is done")
    return process


def pid_of_watchdog(folder: Path) -> int:
    """Return its process id once it has set up its signals: SIGTERM is among those it ignores."""
    (pid,) = wait_until(lambda: processes_naming(str(folder)), "the watchdog runs")

    def ready() -> bool:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
        ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
        return bool(ignored & 1 << signal.SIGTERM - 1)

    wait_until(ready, "the watchdog ignores SIGTERM")
    return pid


def test_process_that_is_gone_is_not_signalled(tmp_path: Path) -> None:
    folder = run_dir(tmp_path)
    watchdog = Watchdog(folder)
    process = launch(watchdog, tmp_path)
    try:
        watchdog.server_is_gone()  # the number may be another's by now; here it is still the same process
        watchdog._pipe.close()  # as if we had died
        wait_until(lambda: not watchdog.alive, "the watchdog ends")
        assert not folder.exists()
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        watchdog.release()


def test_released_watchdog_signals_nobody(tmp_path: Path) -> None:
    folder = run_dir(tmp_path)
    watchdog = Watchdog(folder)
    process = launch(watchdog, tmp_path)
    try:
        watchdog.release()
        assert process.poll() is None
        assert folder.is_dir()
        assert not processes_naming(str(folder))
    finally:
        process.kill()
        process.wait()


def test_watchdog_does_not_heed_the_signals_of_a_service_manager(tmp_path: Path) -> None:
    folder = run_dir(tmp_path)
    watchdog = Watchdog(folder)
    process = launch(watchdog, tmp_path)
    pid = pid_of_watchdog(folder)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    watchdog._pipe.close()
    assert process.wait(5) == -signal.SIGTERM
    wait_until(lambda: not is_running(pid), "the watchdog ends")
    watchdog.release()
    assert not folder.exists()


def test_stopped_watchdog_does_not_hold_up_the_release(tmp_path: Path) -> None:
    folder = run_dir(tmp_path)
    watchdog = Watchdog(folder)
    pid = pid_of_watchdog(folder)
    os.kill(pid, signal.SIGSTOP)
    watchdog.release()
    assert not is_running(pid)
