"""The states of a connection, and who is told of them."""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Callable
from enum import Enum
from typing import TypeAlias

from mono_sync._threads import start_thread

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
_Changes: TypeAlias = queue.SimpleQueue[tuple[ConnectionState, list[StateListener]] | None]


class StateBoard:
    """The present state, and a thread that tells listeners of changes.

    The loop thread writes, everybody reads. Only the connection holds it: an abandoned one can be collected while its
    loop still runs, also when a listener refers to it, and with it goes the thread.
    """

    def __init__(self) -> None:
        self.state: ConnectionState = ConnectionState.NEW
        self._lock = threading.Lock()
        self._listeners: list[StateListener] = []
        self._changes: _Changes = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, listener: StateListener) -> None:
        """Tell ``listener`` of every later change, in order, on a thread of its own."""
        with self._lock:
            self._listeners.append(listener)

    def remove(self, listener: StateListener) -> None:
        """Tell ``listener`` no more; unknown ones are ignored."""
        with self._lock:
            self._listeners[:] = [one for one in self._listeners if one != listener]

    def set(self, state: ConnectionState) -> None:
        """Note a change; never blocks for long, and nothing follows CLOSED."""
        with self._lock:
            if state is self.state or self.state is ConnectionState.CLOSED:
                return
            self.state = state
            if self._listeners and self._thread is None:
                self._thread = self._start_thread()
            if self._thread is not None:
                self._changes.put((state, self._listeners))
                if state is ConnectionState.CLOSED:
                    self._changes.put(None)

    def join(self, timeout: float | None) -> None:
        """Wait until the listeners have been told of CLOSED, unless one of them is the caller."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def for_child(self) -> StateBoard:
        """Return a board for a forked child: same listeners, nothing opened yet. Takes no lock that the parent had."""
        board = StateBoard()
        for listener in self._listeners:
            board.add(listener)
        return board

    def _start_thread(self) -> threading.Thread:
        thread = threading.Thread(target=_tell, args=(self._changes,), name="mono_sync-listeners", daemon=True)
        start_thread(thread)
        weakref.finalize(self, self._changes.put, None).atexit = False
        return thread


def _tell(changes: _Changes) -> None:
    while (change := changes.get()) is not None:
        _tell_all(*change)
        del change  # holding the listeners while it waits, it would hold what they refer to: the connection, often


def _tell_all(state: ConnectionState, listeners: list[StateListener]) -> None:
    for listener in tuple(listeners):
        try:
            listener(state)
        except Exception:
            _log.exception("listener %r failed on %s", listener, state.name)
