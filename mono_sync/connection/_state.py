"""The states of a connection, and who is told of them."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from enum import Enum

_log = logging.getLogger("mono_sync.connection")


class ConnectionState(Enum):
    """What may be assumed of a connection."""

    NEW = "new"
    """Not opened yet: nothing runs, every call raises `ConnectionClosedError`."""

    CONNECTED = "connected"
    """A server answered moments ago. A call may still meet a broken connection: then it learns of it."""

    RECONNECTING = "reconnecting"
    """The server is lost and looked for. Calls wait within their deadlines. What was in flight has failed with
    `ConnectionLostError`. Do not assume that anything you hold on the server (a lock, a lease) is still yours."""

    CLOSED = "closed"
    """Closed for good: every call raises `ConnectionClosedError`. It never leaves this state."""


StateListener = Callable[[ConnectionState], None]


class StateBoard:
    """The present state, and a thread that tells listeners of changes.

    The loop thread writes, everybody reads. It knows nothing of the connection, so that an abandoned connection can be
    collected while its loop still runs.
    """

    def __init__(self) -> None:
        self.state = ConnectionState.NEW
        self._lock = threading.Lock()
        self._listeners: tuple[StateListener, ...] = ()
        self._changes: queue.SimpleQueue[ConnectionState | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, listener: StateListener) -> None:
        """Tell ``listener`` of every later change, in order, on a thread of its own."""
        with self._lock:
            self._listeners += (listener,)

    def remove(self, listener: StateListener) -> None:
        """Tell ``listener`` no more; unknown ones are ignored."""
        with self._lock:
            self._listeners = tuple(one for one in self._listeners if one != listener)

    def set(self, state: ConnectionState) -> None:
        """Note a change; never blocks for long, and nothing follows CLOSED."""
        with self._lock:
            if state is self.state or self.state is ConnectionState.CLOSED:
                return
            self.state = state
            if self._listeners and self._thread is None:
                self._thread = threading.Thread(
                    target=self._tell, args=(self._changes,), name="mono_sync-listeners", daemon=True
                )
                self._thread.start()
            if self._thread is not None:
                self._changes.put(state)
                if state is ConnectionState.CLOSED:
                    self._changes.put(None)

    def join(self, timeout: float) -> None:
        """Wait until the listeners have been told of CLOSED, unless one of them is the caller."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def for_child(self) -> StateBoard:
        """Return a board for a forked child: same listeners, nothing opened yet. Takes no lock."""
        board = StateBoard()
        for listener in self._listeners:
            board.add(listener)
        return board

    def _tell(self, changes: queue.SimpleQueue[ConnectionState | None]) -> None:
        while (state := changes.get()) is not None:
            for listener in self._listeners:
                try:
                    listener(state)
                except Exception:
                    _log.exception("listener %r failed on %s", listener, state.name)
