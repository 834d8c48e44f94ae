"""A private nats-server with the lifetime of an object."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mono_sync.errors import ClosedError, ForkedError, ServerError
from mono_sync.server._config import EmbeddedServerConfig

if TYPE_CHECKING:  # the first start pays for it
    from mono_sync.server._supervisor import Supervisor


class EmbeddedServer:
    """A nats-server with JetStream on 127.0.0.1 that belongs to this process.

    Making the object does nothing; `start` or ``with`` starts the server. A server that dies is started again on the
    same address with the same token and data, so that clients reconnect by themselves; after five restarts within a
    minute it is given up, and `failure` says why. It never outlives this process: when that is killed, the server
    ends within seconds. One that is neither stopped nor referenced any more is ended with a ``ResourceWarning``, one
    that still runs when the interpreter ends is stopped silently.

    Every method may be called from any thread. In a forked child the address and token stay valid, and `stop` does
    nothing: the server belongs to the parent.
    """

    def __init__(self, config: EmbeddedServerConfig | None = None) -> None:
        self._config = EmbeddedServerConfig() if config is None else config
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._supervisor: Supervisor | None = None
        self._stopped = False

    def start(self) -> None:
        """Start the server and return when JetStream answers; nothing happens if it runs already.

        A start that fails or is interrupted leaves nothing behind and may be tried again.

        Raises:
            ServerNotFoundError: there is no nats-server on this machine.
            ServerBinaryError: the nats-server cannot be used.
            UnsupportedByServerError: the nats-server is too old for an option.
            StoreInUseError: another server works on the store directory.
            ServerStartError: it did not become ready; carries exit code and log.
            ClosedError: it was stopped, before or during the start.
            ForkedError: it was started by the parent process.
        """
        from mono_sync.server._supervisor import Supervisor, install_hooks  # noqa: PLC0415  # who starts none needs none

        self._check_process()
        begun = None
        try:
            with self._lock:
                if self._stopped:
                    raise ClosedError("the embedded server was stopped; make a new one")
                if self._supervisor is None:
                    install_hooks()
                    begun = self._supervisor = Supervisor(self._config)
                    begun.start()
                supervisor = self._supervisor
            supervisor.wait_started()
        except BaseException:
            if begun is not None:
                begun.stop()
                with self._lock:
                    self._supervisor = None
            raise

    def stop(self) -> None:
        """End the server and remove what was temporary; nothing happens if it never ran or has ended.

        Returns within ``stop_timeout`` plus five seconds. Afterwards the object cannot be started again.
        """
        if self._pid != os.getpid():
            return
        with self._lock:
            self._stopped = True
            supervisor = self._supervisor
        if supervisor is not None:
            supervisor.stop()

    @property
    def config(self) -> EmbeddedServerConfig:
        """The options that it was made with."""
        return self._config

    @property
    def url(self) -> str:
        """Address for clients, without the token; the same until the end, restarts included.

        Raises:
            ServerError: it has not been started.
        """
        return f"nats://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        """What clients authenticate with.

        Raises:
            ServerError: it has not been started.
        """
        return self._started().token

    @property
    def port(self) -> int:
        """The TCP port.

        Raises:
            ServerError: it has not been started.
        """
        return self._started().port

    @property
    def version(self) -> str:
        """Version of the server, for example ``"2.11.4"``.

        Raises:
            ServerError: it has not been started.
        """
        return self._started().version

    @property
    def store_dir(self) -> Path:
        """Directory that keeps data, log and lock.

        Raises:
            ServerError: it has not been started.
        """
        return self._started().store_dir

    @property
    def log_path(self) -> Path:
        """The server's log file, in the store directory.

        Raises:
            ServerError: it has not been started.
        """
        path = self._started().log_path
        assert path is not None
        return path

    @property
    def pid(self) -> int | None:
        """Process id of the server; None while it does not run."""
        return None if self._supervisor is None else self._supervisor.pid

    @property
    def alive(self) -> bool:
        """Whether the server runs and has been ready; False while it is being started again."""
        return self._supervisor is not None and self._supervisor.alive

    @property
    def failure(self) -> BaseException | None:
        """Why the server was given up after too many restarts; None while that has not happened."""
        return None if self._supervisor is None else self._supervisor.failure

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the server's log, also after the stop; empty before the start."""
        return "" if self._supervisor is None else self._supervisor.log_tail(lines)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        supervisor = self._supervisor
        if supervisor is None or not supervisor.started:
            state = "stopped" if self._stopped else "not started" if supervisor is None else "starting"
            return f"<{type(self).__name__} {state}>"
        state = "running" if supervisor.alive else "stopped" if self._stopped else "not running"
        return f"<{type(self).__name__} {state} on port {supervisor.port}, store {str(supervisor.store_dir)!r}>"

    def __del__(self) -> None:
        supervisor = getattr(self, "_supervisor", None)  # missing if __init__ was interrupted
        if supervisor is None or supervisor.ended or self._pid != os.getpid():
            return
        text = f"{self!r} was never stopped"
        supervisor.request_stop()
        warnings.warn(text, ResourceWarning, source=self, stacklevel=2)

    def _started(self) -> Supervisor:
        supervisor = self._supervisor
        if supervisor is None or not supervisor.started:
            raise ServerError("the embedded server has not been started: call start() or use `with`")
        return supervisor

    def _check_process(self) -> None:
        if self._pid == os.getpid():
            return
        if self._supervisor is not None:
            raise ForkedError("the embedded server belongs to the parent process; connect to its address, or make one")
        self._pid = os.getpid()
        self._lock = threading.RLock()  # the inherited one may be held by a thread that the child does not have
