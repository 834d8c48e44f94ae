"""The blocking, thread-safe face of a connection to NATS."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar, TypeVarTuple

from mono_sync._durations import DEFAULT, Deadline, Timeout
from mono_sync.adapter import (
    ConnectionConfig,
    Listening,
    Message,
    Payload,
    ServerInfo,
    check_payload,
    check_subject,
    encode_headers,
    encode_publish,
)
from mono_sync.connection._inbox import Inbox
from mono_sync.connection._session import Session
from mono_sync.connection._state import ConnectionState, StateBoard, StateListener
from mono_sync.errors import ClosedError, ConnectionClosedError, NoRespondersError, OperationTimeoutError
from mono_sync.server import EmbeddedServer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_log = logging.getLogger("mono_sync.connection")

_CLOSE_TIMEOUT = 5.0
_CLOSE_GRACE = 0.5  # past the deadline, and only if the loop is stuck
_MARGIN = 1.0

_live: weakref.WeakSet[CoreConnection] = weakref.WeakSet()
_inherited: list[Any] = []
"""What a forked child got from its parent: kept, because collecting it would close sockets that the parent uses."""


class CoreConnection:
    """A connection to NATS: publish, request, and the calls that keep it in order. Thread-safe.

    It reconnects by itself, for ever unless configured otherwise, with growing, jittered pauses over all known servers.
    While it does, calls wait within their deadlines. A call whose deadline passes before its message could be handed to
    the socket has sent nothing and never will.

    Args:
        config: the options.
        server: an embedded server that belongs to this connection: `open` starts it and connects to it, `close` stops
            it.

    Nothing starts before `open` or ``with``. In a forked child an open connection opens itself anew on first use.
    """

    def __init__(self, config: ConnectionConfig | None = None, *, server: EmbeddedServer | None = None) -> None:
        self._config = config or ConnectionConfig()
        self._server = server
        self._lock = threading.RLock()
        self._board = StateBoard()
        self._session: Session | None = None
        self._opening: Session | None = None
        self._server_starts = False
        self._closing = False
        self._forked = False
        _live.add(self)

    # --- opening and closing

    def open(self, *, timeout: Timeout = DEFAULT) -> None:
        """Start the embedded server, if there is one, and connect. Does nothing when open already.

        Args:
            timeout: total deadline; omitted: ``connect_timeout`` of the configuration. Start and stop of the embedded
                server have deadlines of their own, see `EmbeddedServerConfig`.

        Raises:
            ConnectFailedError: no server accepted us; names the reason for each.
            AuthenticationError: every server that answered refused the credentials.
            ConnectionClosedError: it has been closed; make a new one.
            ServerError: the embedded server could not be started.
            UnsupportedByServerError: the embedded server is too old for one of its options.
            OperationTimeoutError: another thread was opening it until the deadline.
        """
        _install_fork_hook()
        deadline = Deadline.of(timeout, self._config.open_timeout)
        with self._locked(deadline, "connecting to NATS"):
            if self._closing:
                raise ConnectionClosedError(f"{self!r} was closed and cannot be opened again: make a new one")
            if self._session is None:
                self._open(deadline)

    def _open(self, deadline: Deadline) -> None:
        config = self._config
        try:
            if self._server is not None:
                if not self._forked:
                    remaining = deadline.remaining
                    self._start_server(self._server)
                    deadline = Deadline(remaining)  # the server's start has had its own
                config = _for_server(config, self._server)
            session = self._opening = Session(config, self._board)
            if self._closing:
                raise ConnectionClosedError(f"{self!r} was closed while it was being opened")
            session.loop.run(  # it keeps the deadline itself, and then knows what each server said
                session.link.open, deadline, deadline=deadline.plus(_MARGIN), operation="connecting to NATS"
            )
            self._session = session
            if self._closing:  # else a `close` that has not waited for the lock would leave it open
                raise ConnectionClosedError(f"{self!r} was closed while it was being opened")
        except BaseException as error:
            self._session = None
            if self._opening is not None:
                self._opening.loop.stop(timeout=_MARGIN)
            if self._server is not None:
                self._server.stop()
            if self._closing and isinstance(error, ClosedError):
                raise ConnectionClosedError(f"{self!r} was closed while it was being opened") from error
            raise
        finally:
            self._opening = None

    def _start_server(self, server: EmbeddedServer) -> None:
        self._server_starts = True
        try:
            if self._closing:
                raise ConnectionClosedError(f"{self!r} was closed while it was being opened")
            server.start()
        finally:
            self._server_starts = False

    def close(self, *, timeout: Timeout = DEFAULT) -> None:
        """Close for good: every waiting call raises `ConnectionClosedError`. Idempotent, and bounded.

        Bytes that the socket does not take in time are dropped; `drain` waits for them. Stops the embedded server if it
        belongs to this connection.

        Args:
            timeout: total deadline; omitted: 5 seconds. What has not ended by then ends in the background. The stop of
                the embedded server has a bound of its own, see `EmbeddedServer.stop`.
        """
        deadline = Deadline.of(timeout, _CLOSE_TIMEOUT)
        patience = deadline.plus(_CLOSE_GRACE)
        self._closing = True
        if self._server_starts and self._server is not None:
            self._server.stop()  # ends the start, in the `open` of another thread, which holds the lock
        if (opening := self._opening) is not None:
            opening.loop.stop(timeout=patience)  # the same
        with contextlib.suppress(OperationTimeoutError), self._locked(deadline, "closing the connection"):
            pass  # that `open` has ended
        session, self._session = self._session, None
        if session is not None:
            self._end(session, deadline, patience)
        self._board.set(ConnectionState.CLOSED)
        self._board.join(deadline.remaining)
        if self._server is not None:
            self._server.stop()

    def _end(self, session: Session, deadline: Deadline, patience: Deadline) -> None:
        """Close the link and stop the loop, which takes next to no time unless bytes are left or something is stuck."""
        remaining = deadline.remaining
        grace = _CLOSE_TIMEOUT / 2 if remaining is None else remaining / 2
        try:
            session.loop.run(session.link.close, grace, deadline=patience, operation="closing the connection")
        except (OperationTimeoutError, ClosedError) as error:
            level = logging.DEBUG if session.loop.closed else logging.WARNING  # closed: the interpreter exits
            _log.log(level, "closing %r: %s", self, error)
        finally:
            session.loop.stop(timeout=patience)

    def drain(self, *, timeout: Timeout = DEFAULT) -> None:
        """Refuse new messages, let the requests under way get their answers and everything sent arrive, then close.

        Args:
            timeout: total deadline; as for `close`, the stop of the embedded server has a bound of its own.

        Raises:
            OperationTimeoutError: it did not get that far in time; the connection is closed all the same.
            ConnectionLostError: the connection broke meanwhile; what was published before may be lost. It is closed.
        """
        deadline = Deadline.of(timeout, self._config.call_timeout)
        session = self._session
        try:
            if session is not None:
                session.run(session.link.drain, deadline=deadline, operation="draining the connection")
        except ConnectionClosedError:
            pass  # closed by somebody else meanwhile: there is nothing left to drain
        finally:
            remaining = deadline.remaining  # closing is one step of draining: no reason to take longer than by itself
            self.close(timeout=_CLOSE_TIMEOUT if remaining is None else min(remaining, _CLOSE_TIMEOUT))

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- messages

    def publish(
        self,
        subject: str,
        data: Payload = b"",
        *,
        reply: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: Timeout = DEFAULT,
    ) -> None:
        """Hand a message to the socket; whether anybody receives it is not known (at most once).

        Returns when the message has been handed to the socket, the last part of it perhaps to its queue inside this
        process; `flush` waits until the server has read it.

        Raises:
            MessageError: the message cannot be sent: subject, headers or size.
            OperationTimeoutError: no connection, or a socket that takes no more, until the deadline. It is never sent.
            ConnectionClosedError: the connection is closed, or not open yet.
        """
        deadline = Deadline.of(timeout, self._config.call_timeout)
        check_subject(subject)
        data, block = check_payload(data), b"" if headers is None else encode_headers(headers)
        operation = f"publish to {subject}"
        session = self._live_session(deadline, operation)
        command = encode_publish(
            subject, data, check_subject(reply) if reply else "", block, session.link.info.max_payload
        )
        session.publish(command, deadline, operation)

    def request(
        self,
        subject: str,
        data: Payload = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout: Timeout = DEFAULT,
    ) -> Message:
        """Send a message and return the first answer.

        Raises:
            NoRespondersError: nobody is subscribed to the subject.
            MessageError: the message cannot be sent: subject, headers or size.
            OperationTimeoutError: no answer until the deadline; the request may have been processed.
            ConnectionLostError: the connection broke before the answer came; the request may have been processed.
            PermissionDeniedError: our user may not publish on the subject.
            ConnectionClosedError: the connection is closed, or was closed meanwhile, or is not open yet.
        """
        deadline = Deadline.of(timeout, self._config.call_timeout)
        check_subject(subject)
        return self.exchange(
            subject, check_payload(data), b"" if headers is None else encode_headers(headers), deadline
        )

    def flush(self, *, timeout: Timeout = DEFAULT) -> None:
        """Wait until the server has read everything that was published before on the present connection.

        What was on its way when an earlier connection broke may be lost; `add_listener` tells when one breaks.

        Raises:
            OperationTimeoutError: it did not answer in time.
            ConnectionLostError: the connection broke meanwhile; what was published before may be lost.
            ConnectionClosedError: the connection is closed, or was closed meanwhile, or is not open yet.
        """
        deadline = Deadline.of(timeout, self._config.call_timeout)
        session = self._live_session(deadline, "flush")
        session.run(session.link.flush, deadline=deadline, operation="flush")

    def rtt(self, *, timeout: Timeout = DEFAULT) -> float:
        """Return the seconds that a round trip to the server takes, threads included.

        Raises:
            OperationTimeoutError: it did not answer in time.
            ConnectionLostError: the connection broke meanwhile.
            ConnectionClosedError: the connection is closed, or was closed meanwhile, or is not open yet.
        """
        start = time.perf_counter()
        self.flush(timeout=timeout)
        return time.perf_counter() - start

    # --- what is known of it

    @property
    def config(self) -> ConnectionConfig:
        """The options it was made with."""
        return self._config

    @property
    def server(self) -> EmbeddedServer | None:
        """The embedded server that belongs to this connection, if there is one."""
        return self._server

    @property
    def state(self) -> ConnectionState:
        """The present state; it may be another one by the time you look at it."""
        return self._board.state

    @property
    def is_connected(self) -> bool:
        """Whether the state is CONNECTED."""
        return self._board.state is ConnectionState.CONNECTED

    @property
    def server_info(self) -> ServerInfo:
        """The server it talks to, or talked to last.

        Raises:
            ConnectionClosedError: the connection is closed, or not open yet.
            OperationTimeoutError: another thread was opening it for longer than the default timeout.
        """
        session = self._session or self._live_session(Deadline(self._config.call_timeout), "server_info")
        return session.link.info

    def add_listener(self, listener: StateListener) -> None:
        """Call ``listener(state)`` after every change of the state, in order.

        Listeners run one after the other on a thread of the connection, so they may use every blocking call; an
        exception in one is logged.
        """
        self._board.add(listener)

    def remove_listener(self, listener: StateListener) -> None:
        """Call ``listener`` no more; unknown ones are ignored."""
        self._board.remove(listener)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot pickle {self!r}: it belongs to this process, connect anew in the other one")

    def __repr__(self) -> str:
        where = self._server if self._server is not None else ",".join(a.url for a in self._config.addresses)
        return f"<{type(self).__name__} {self._config.name!r} to {where} {self.state.name}>"

    # --- for the layers above, not for users

    def exchange(
        self, subject: str, data: bytes, header_block: bytes, deadline: Deadline, *, server: str = ""
    ) -> Message:
        """Make a `request` of parts that are known to be right.

        With ``server``, the identity of one, it is sent to that one only: `OtherServerError` where we have meanwhile
        connected to another, and nothing was sent.
        """
        operation = f"request {subject}"
        session = self._session or self._live_session(deadline, operation)
        request = session.link.new_request(subject, data, header_block, server)
        message = session.request(request, deadline, operation)
        if message.status == 503 and not message.data:
            raise NoRespondersError(subject)
        return message

    def new_id(self, deadline: Deadline) -> str:
        """Return a text that no other call in any process gets."""
        return self.source_of_ids(deadline)()

    def source_of_ids(self, deadline: Deadline) -> Callable[[], str]:
        """Return a function that returns such texts, for who needs many: soon, for it is of the present process."""
        return self._live_session(deadline, "new_id").link.new_id

    def inbox(self, deadline: Deadline) -> Inbox:
        """Return a context manager that receives on a subject of its own until ``deadline``."""
        return Inbox(self._live_session(deadline, "inbox"), deadline)

    def start_listening(self, listening: Listening, deadline: Deadline) -> None:
        """Begin a subscription whose messages are handed over on the loop thread."""
        operation = f"subscribe {listening.subject}"
        session = self._live_session(deadline, operation)
        session.run(session.link.listen, listening, deadline=deadline, operation=operation)

    def stop_listening(self, listening: Listening) -> None:
        """End a subscription, without waiting for it; nothing when the connection is gone."""
        session = self._session
        if session is not None:
            session.loop.post(session.link.unlisten, listening)

    def _live_session(self, deadline: Deadline, operation: str) -> Session:
        session = self._session
        if session is not None:
            return session
        with self._locked(deadline, operation):  # another thread may be opening it
            session = self._session
        if session is not None:
            return session
        if self._closing:
            raise ConnectionClosedError(f"{self!r} is closed")
        if not self._forked:
            raise ConnectionClosedError(f"{self!r} is not open yet: call open() or use it as a context manager")
        self.open(timeout=deadline)
        return self._live_session(deadline, operation)

    @contextlib.contextmanager
    def _locked(self, deadline: Deadline, operation: str) -> Iterator[None]:
        """Hold the lock, which an `open` keeps as long as it takes.

        Raises:
            OperationTimeoutError: it was not to be had in time.
        """
        remaining, lock = deadline.remaining, self._lock
        if not lock.acquire(timeout=-1 if remaining is None else remaining):
            raise OperationTimeoutError(operation, deadline.timeout)
        try:
            yield
        finally:
            lock.release()

    def _forget_parent(self) -> None:
        """In a forked child: drop what belongs to the parent without touching it; first use opens anew."""
        _inherited.append((self._session, self._board, self._lock))
        self._forked = self._forked or self._session is not None
        self._session = None
        self._lock = threading.RLock()
        self._board = self._board.for_child()

    def __del__(self, warn: Any = warnings.warn) -> None:
        if getattr(self, "_session", None) is not None:
            warn(f"unclosed {self!r}: call close() or use it as a context manager", ResourceWarning)


def _for_server(config: ConnectionConfig, server: EmbeddedServer) -> ConnectionConfig:
    """Point the options at an embedded server, which has a token of its own and no TLS."""
    return dataclasses.replace(
        config, servers=server.url, token=server.token, user=None, password=None, nkey=None, credentials=None, tls=None
    )


def _forget_parent() -> None:
    for connection in list(_live):
        connection._forget_parent()  # noqa: SLF001  # this module's own class


@functools.cache
def _install_fork_hook() -> None:  # twice, by threads at the same moment, would do no harm
    os.register_at_fork(after_in_child=_forget_parent)
