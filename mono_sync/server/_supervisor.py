"""The thread that starts one nats-server, watches it, starts it again, and cleans up after it."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mono_sync._durations import Deadline
from mono_sync._threads import start_thread
from mono_sync.errors import ClosedError, MonoError, ServerError, ServerStartError
from mono_sync.server import _watchdog
from mono_sync.server._binary import Binary, find_binary
from mono_sync.server._config import EmbeddedServerConfig
from mono_sync.server._lock import StoreLock
from mono_sync.server._log import ServerLog
from mono_sync.server._probe import NotReadyError, probe
from mono_sync.server._settings import settings_text, write_private
from mono_sync.server._watchdog import Watchdog

_logger = logging.getLogger("mono_sync.server")

_POLL: Final = 0.001
_POLL_END: Final = 0.05
_WAITS: Final = hasattr(os, "waitid")  # not on macOS before Python 3.13
_PROBE_WITHIN: Final = 1.0
_RESTARTS: Final = 5
_RESTARTS_WITHIN: Final = 60.0
_FIRST_PAUSE: Final = 0.05
_END_WITHIN: Final = 1.0
_KILL_WITHIN: Final = 5.0
_JOIN_ENDED: Final = 0.1
_SLACK: Final = 15.0  # for what the start does beside waiting for the server


class Supervisor:
    """One run of an embedded server.

    All processes are started, signalled and reaped by its thread alone. No signal handler interrupts it, so a Ctrl-C
    during the start leaves no process behind; and it never signals a process id that may be another's by now. The
    thread refers to this object only, never to the `EmbeddedServer` that users hold.
    """

    def __init__(self, config: EmbeddedServerConfig) -> None:
        self.config = config
        self.owner_pid = os.getpid()
        self.token = secrets.token_urlsafe(32)
        self.port = -1 if config.port is None else config.port
        self.version = ""
        self.store_dir = Path()
        self.alive = False
        self.started = False
        self.failure: BaseException | None = None
        self._run_dir: Path | None = None
        self._binary: Binary | None = None
        self._lock: StoreLock | None = None
        self._watchdog: Watchdog | None = None
        self._log: ServerLog | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._waiter: threading.Thread | None = None
        self._ending = False
        self._ended = False
        # Released to wake the thread. Fit for finalisers and signal handlers, where an Event can deadlock; and its
        # timeout holds, whereas SimpleQueue.get() with one that passes at once may wait for ever (Python 3.11 to 3.13).
        self._asleep = threading.Lock()
        self._asleep.acquire()
        self._settled = threading.Event()  # the start has come to an end, good or bad
        self._thread = threading.Thread(target=self._run, name="mono_sync-server", daemon=True)

    # --- for any thread -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        assert isinstance(self.config.start_timeout, float)
        _live.add(self)
        try:
            start_thread(self._thread, self.config.start_timeout)
        except RuntimeError as error:
            _live.discard(self)
            self._ended = True
            raise ServerStartError(f"the system gives no thread to watch it: {error}") from error

    def wait_started(self) -> None:
        """Wait until the server is ready, or until the failed start has been cleaned up after."""
        assert isinstance(self.config.start_timeout, float)
        if not self._settled.wait(self.config.start_timeout + _SLACK):
            raise ServerStartError("the thread that starts it does not get on")
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """End the server, in good order if it can be, and wait for the thread; bounded."""
        self.request_stop()
        if threading.current_thread() is self._thread or not self._thread.is_alive():
            return  # called by a logging handler, say; or nothing runs
        assert isinstance(self.config.stop_timeout, float)
        # A signal handler that stops the server can interrupt a join that has just succeeded: then a second join waits
        # in vain for the lock that the first one holds.
        self._thread.join(_JOIN_ENDED if self._ended else self.config.stop_timeout + _KILL_WITHIN)
        if not self._ended:
            _logger.error("nats-server cannot be killed; left to its watchdog")

    def request_stop(self) -> None:
        """Let the thread end the server. No lock, no waiting, no input or output: fit for a finaliser."""
        self._ending = True
        self._wake()

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self._ended

    def forget(self) -> None:
        """Close what keeps the store directory locked; for a forked child."""
        if self._lock is not None:
            self._lock.forget()

    @property
    def pid(self) -> int | None:
        """Process id of the server while it runs."""
        process = self._process
        return process.pid if process is not None and self.alive else None

    def log_tail(self, lines: int) -> str:
        """Return the last lines of the log."""
        return self._log.tail(lines) if self._log is not None else ""

    @property
    def log_path(self) -> Path | None:
        """The log file."""
        return self._log.path if self._log is not None else None

    # --- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        assert isinstance(self.config.start_timeout, float)
        try:
            self._pause(0)  # ends a thread that comes up after its start has been given up
            deadline = Deadline(self.config.start_timeout)
            self._prepare(deadline)
            self._bring_up(deadline)
            self.started = True
            self._settled.set()
            self._supervise()
        except BaseException as error:
            self.failure = self._explained(error)
            if self.started and not self._ending:
                _logger.exception("supervision of nats-server failed")
        finally:
            self._clean_up()
            self._ended = True
            self._settled.set()

    def _explained(self, error: BaseException) -> BaseException:
        if isinstance(error, MonoError) or not isinstance(error, OSError):
            return error
        failure = ServerStartError(str(error), log_tail=self.log_tail(20))
        failure.__cause__ = error
        return failure

    def _prepare(self, deadline: Deadline) -> None:
        """Do what lasts as long as the object: binary, store directory and its lock, private run directory."""
        self._binary = find_binary(self.config.binary)
        self.version = self._binary.version
        self._run_dir = Path(tempfile.mkdtemp(prefix="mono_sync-"))  # mode 0700
        if self.config.store_dir is None:
            self.store_dir = self._run_dir / "store"
            self.store_dir.mkdir(mode=0o700)
        else:
            self.store_dir = Path(self.config.store_dir).absolute()
            self._make_store_dir(deadline)
        self._log = ServerLog(self.store_dir / "nats-server.log")

    def _make_store_dir(self, deadline: Deadline) -> None:
        path = self.store_dir
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            self._lock = StoreLock(path, deadline, self._pause)
        except ServerError:
            raise
        except OSError as error:
            raise ServerStartError(f"store directory {path} cannot be used: {error.strerror}") from error

    def _bring_up(self, deadline: Deadline) -> None:
        """Start a server process and wait until JetStream answers."""
        process = self._launch()
        try:
            self._await_ready(process, deadline)
        except BaseException:
            self._end(process, _END_WITHIN)
            raise
        self.alive = True

    def _launch(self) -> subprocess.Popen[bytes]:
        assert self._binary is not None
        assert self._log is not None
        assert self._run_dir is not None
        settings = self._run_dir / "nats-server.conf"
        text = settings_text(
            self.config,
            self._binary,
            port=self.port,
            token=self.token,
            run_dir=self._run_dir,
            store_dir=self.store_dir,
            log=self._log.path,
        )
        write_private(settings, text)
        if self._watchdog is not None and not self._watchdog.alive:
            self._watchdog.release()
            self._watchdog = None
        if self._watchdog is None:
            self._watchdog = Watchdog(self._run_dir)
        inherited = [] if self._lock is None else [self._lock.fileno()]
        with self._log.open() as log:
            process = self._watchdog.launch([self._binary.path, "-c", str(settings)], log, inherited)
        self._process = process
        if _WAITS:
            arguments = (process.pid, self._wake)
            self._waiter = threading.Thread(target=_call_at_end, args=arguments, name="mono_sync-wait", daemon=True)
            self._waiter.start()
        return process

    def _await_ready(self, process: subprocess.Popen[bytes], deadline: Deadline) -> None:
        assert self._log is not None
        obstacle = "it does not listen"
        while True:
            code = process.poll()
            if code is not None:
                reason = self._log.reason() or "no reason in its log"
                text = f"it ended with exit code {code}: {reason}"
                raise ServerStartError(text, exit_code=code, log_tail=self.log_tail(20))
            if deadline.expired:
                text = f"JetStream did not answer within {deadline.timeout:g} s: {obstacle}"
                raise ServerStartError(text, log_tail=self.log_tail(20))
            port = self._listening_port(process.pid)
            if port is not None:
                try:
                    self.version = probe(port, self.token, min(_PROBE_WITHIN, deadline.remaining or 0.001))
                except (OSError, ValueError, NotReadyError) as error:
                    obstacle = str(error)
                else:
                    self.port = port
                    return
            self._pause(_POLL)

    def _listening_port(self, pid: int) -> int | None:
        """Return the port once the server has written it; the file appears before its content."""
        assert self._binary is not None
        assert self._run_dir is not None
        path = self._run_dir / f"{Path(self._binary.path).name}_{pid}.ports"
        try:
            _, _, port = path.read_text("utf-8").partition('"nats://127.0.0.1:')
        except FileNotFoundError:
            return None
        number, quote, _ = port.partition('"')
        return int(number) if quote else None

    def _supervise(self) -> None:
        restarts: deque[float] = deque(maxlen=_RESTARTS)
        while self._process is not None:
            code = self._wait_for_end(self._process)
            if self._ending:
                return
            _logger.error("nats-server ended with exit code %s; end of its log:\n%s", code, self.log_tail(10))
            self._restart(restarts, ServerError(f"nats-server ended with exit code {code}"))
        while not self._ending:  # given up; data and log stay until the stop
            self._wait(None)

    def _restart(self, restarts: deque[float], reason: ServerError) -> None:
        """Bring the server up again on the same port, with the same token and data, or give it up."""
        while not self._ending:
            now = time.monotonic()
            if len(restarts) == _RESTARTS and now - restarts[0] < _RESTARTS_WITHIN:
                text = f"nats-server failed {_RESTARTS + 1} times within {_RESTARTS_WITHIN:g} s and was given up"
                self.failure = ServerError(f"{text}; the last time: {reason}")
                _logger.error("%s", self.failure)
                return
            recent = sum(now - moment < _RESTARTS_WITHIN for moment in restarts)
            restarts.append(now)
            try:
                if recent:
                    self._pause(_FIRST_PAUSE * 2**recent)
                assert isinstance(self.config.start_timeout, float)
                self._bring_up(Deadline(self.config.start_timeout))
            except ClosedError:
                return
            except (MonoError, OSError) as error:
                _logger.error("restart of nats-server failed: %s", error)
                reason = error if isinstance(error, ServerError) else ServerStartError(str(error))
            else:
                _logger.warning("nats-server runs again on port %d", self.port)
                return

    def _wait_for_end(self, process: subprocess.Popen[bytes]) -> int:
        """Wait until the process has ended, or end it when that is asked for."""
        while not self._ending and process.poll() is None:
            self._wait(None)
        self.alive = False
        assert isinstance(self.config.stop_timeout, float)
        return self._end(process, self.config.stop_timeout)

    def _end(self, process: subprocess.Popen[bytes], timeout: float) -> int:
        """End the process if it still runs, in good order within ``timeout`` seconds, and return its exit code."""
        process.terminate()
        deadline = Deadline(timeout)
        while process.poll() is None and not deadline.expired:
            self._wait(deadline.remaining)
        if process.poll() is None:
            _logger.warning("nats-server did not end within %g s: killed", timeout)
            process.kill()
        code = process.wait()
        self._process = None
        if self._waiter is not None:
            self._waiter.join(_END_WITHIN)
        if self._watchdog is not None:
            self._watchdog.server_is_gone()
        return code

    def _clean_up(self) -> None:
        """Leave nothing behind but a persistent store; no step keeps the next from running."""
        self.alive = False
        for step in (self._release_watchdog, self._remove_run_dir, self._release_lock):
            try:
                step()
            except Exception:
                _logger.exception("clean-up after nats-server failed")
        _live.discard(self)

    def _release_watchdog(self) -> None:
        if self._watchdog is not None:
            self._watchdog.release()

    def _remove_run_dir(self) -> None:
        if self._log is not None:
            self._log.keep()
        if self._run_dir is not None:
            shutil.rmtree(self._run_dir)

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    # --- helpers --------------------------------------------------------------------------------------------------

    def _wait(self, seconds: float | None) -> None:
        """Wait for a stop, the end of the server or the time, whichever is first; perhaps for less."""
        if not _WAITS:
            seconds = _POLL_END if seconds is None else min(seconds, _POLL_END)
        self._asleep.acquire(timeout=-1 if seconds is None else seconds)

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is about to wake already
            self._asleep.release()

    def _pause(self, seconds: float) -> None:
        deadline = Deadline(seconds)
        while not self._ending and not deadline.expired:
            self._wait(deadline.remaining)
        if self._ending:
            raise ClosedError("the embedded server was stopped while it started")


def _call_at_end(pid: int, call: Callable[[], None]) -> None:
    """Call when a process has ended, and leave it to be reaped."""
    with contextlib.suppress(ChildProcessError):  # the supervisor was faster, or a program that waits for all children
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    call()


# --- the end of this process, and its forks -------------------------------------------------------------------------

_live: Final[set[Supervisor]] = set()
_hooks_lock = threading.Lock()
_hooks_installed = False


def install_hooks() -> None:
    """See to it that no server outlives this process, and that forked children leave what runs alone."""
    global _hooks_installed  # noqa: PLW0603  # once per process, and not at import
    with _hooks_lock:
        if not _hooks_installed:
            atexit.register(stop_all)
            os.register_at_fork(
                before=_watchdog.before_fork,
                after_in_parent=_watchdog.after_fork_in_parent,
                after_in_child=forget_all,
            )
            _hooks_installed = True


def stop_all() -> None:
    """Stop what still runs when the interpreter ends."""
    for supervisor in tuple(_live):
        if supervisor.owner_pid == os.getpid():
            supervisor.stop()


def forget_all() -> None:
    """Make everything inherited harmless in a forked child."""
    _watchdog.after_fork_in_child()
    for supervisor in tuple(_live):
        supervisor.forget()
    _live.clear()
