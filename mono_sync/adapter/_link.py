"""One connection to NATS as the loop thread sees it: when a message may leave, and who waits for which answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from enum import Enum

from mono_sync._durations import Deadline
from mono_sync.adapter._config import ConnectionConfig
from mono_sync.adapter._info import ServerInfo
from mono_sync.adapter._message import Message
from mono_sync.adapter.client import NatsClient, Sink, connect
from mono_sync.errors import ConnectionClosedError, ConnectionLostError, NatsConnectionError, PermissionDeniedError

_log = logging.getLogger("mono_sync.connection")


class LinkState(Enum):
    """What a link tells its listener."""

    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    CLOSED = "closed"


class Listening:
    """A subscription of a link: messages go to ``sink``; ``lost`` is told when the connection breaks or closes."""

    __slots__ = ("lost", "sink", "subject", "subscription")

    def __init__(self, subject: str, sink: Sink, lost: Callable[[NatsConnectionError], None]) -> None:
        self.subject: str = subject
        self.sink: Sink = sink
        self.lost: Callable[[NatsConnectionError], None] = lost
        self.subscription: object | None = None


class Link:
    """Sends commands when the connection can take them, and matches answers to requests.

    Everything but `new_reply` belongs to the loop thread. Deadlines are the caller's: each coroutine may be cancelled
    at any point, and what had not been handed to the socket by then is never sent.
    """

    def __init__(self, config: ConnectionConfig, on_state: Callable[[LinkState], None]) -> None:
        self._config = config
        self._on_state = on_state
        self._client: NatsClient | None = None
        self._prefix = f"{config.inbox_prefix}.{secrets.token_hex(11)}."
        self._numbers = itertools.count(1)
        self._requests: dict[str, tuple[asyncio.Future[Message], str]] = {}
        self._listening: set[Listening] = set()
        self._changes: set[asyncio.Future[None]] = set()
        self._closed_reason: str | None = None
        self._draining = False
        self._release: asyncio.Task[None] | None = None

    # --- opening and closing

    async def open(self, deadline: Deadline) -> None:
        """Connect and subscribe the inbox of all requests."""
        client = await connect(self._config, self, deadline)
        self._client = client
        self._release = asyncio.create_task(_release_at_the_end(client))
        await client.listen(f"{self._prefix}*", self._answer)
        self._on_state(LinkState.CONNECTED)

    async def drain(self) -> None:
        """Refuse new messages, wait for the answers under way and until the server has read everything sent."""
        self._draining = True
        waiting = [future for future, _ in self._requests.values()]
        if waiting:
            await asyncio.wait(waiting)
        await self._ping()

    async def close(self, grace: float) -> None:
        """Close for good, also in the middle of reconnecting; every waiter learns of it."""
        if self._closed_reason is not None:
            return
        self._closed_reason = "the connection is closed"
        self._end_waiters()
        if self._client is not None:
            await self._client.shut(grace)
        if self._release is not None:
            self._release.cancel()

    # --- messages

    @property
    def info(self) -> ServerInfo:
        """The server of the present or the last connection."""
        return self._connected_client().info

    def new_reply(self) -> str:
        """Return a subject for one answer; any thread."""
        return f"{self._prefix}{next(self._numbers)}"

    async def publish(self, command: bytes) -> None:
        """Hand a command to the socket, as soon as there is one that takes it."""
        client = await self._writable()
        client.send(command)

    async def request(self, subject: str, reply: str, command: bytes) -> Message:
        """Send a command and wait for the message on its reply subject.

        Raises:
            ConnectionLostError: the connection broke after the command was sent.
            PermissionDeniedError: the server refused it.
        """
        client = await self._writable()
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._requests[reply] = (future, subject)
        try:
            client.send(command)
            return await future
        finally:
            del self._requests[reply]

    async def flush(self) -> None:
        """Wait until the server has read everything that was sent."""
        if self._draining:
            raise ConnectionClosedError("the connection is draining")
        await self._ping()

    async def listen(self, listening: Listening) -> None:
        """Begin a subscription."""
        client = await self._writable()
        listening.subscription = await client.listen(listening.subject, listening.sink)
        self._listening.add(listening)

    async def unlisten(self, listening: Listening) -> None:
        """End a subscription; idempotent."""
        if listening in self._listening:
            self._listening.discard(listening)
            await self._connected_client().unlisten(listening.subscription)  # type: ignore[arg-type]  # nats is not imported here

    async def _ping(self) -> None:
        client = await self._writable(while_draining=True)
        await client.ping()

    async def _writable(self, *, while_draining: bool = False) -> NatsClient:
        """Wait for a connection whose socket takes bytes.

        A command is only ever built into the socket's queue while that queue is empty: whoever gives up while waiting
        here has sent nothing.
        """
        while True:
            client = self._connected_client()
            if self._draining and not while_draining:
                raise ConnectionClosedError("the connection is draining")
            if not client.is_connected:
                async with self._next_change() as change:
                    await change
            elif client.congested:
                await client.drained()
            else:
                return client

    def _connected_client(self) -> NatsClient:
        if self._closed_reason is not None or self._client is None:
            raise ConnectionClosedError(self._closed_reason or "the connection is not open")
        return self._client

    @contextlib.asynccontextmanager
    async def _next_change(self) -> AsyncIterator[asyncio.Future[None]]:
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes.add(change)
        try:
            yield change
        finally:
            self._changes.discard(change)

    def _answer(self, message: Message) -> None:
        entry = self._requests.get(message.subject)
        if entry is not None and not entry[0].done():
            entry[0].set_result(message)

    # --- the connection's fate, told by the client

    def broken(self) -> None:
        """End the calls in flight: their answers cannot come any more."""
        _log.warning("connection to %s lost; reconnecting", self._server)
        self._fail_in_flight(lambda: ConnectionLostError("the connection to NATS broke before the answer came"))
        self._on_state(LinkState.RECONNECTING)

    def reconnected(self) -> None:
        """Let the calls go on that waited for a connection."""
        _log.info("connected again, to %s", self._server)
        self._on_state(LinkState.CONNECTED)
        self._wake()

    def closed(self) -> None:
        """End everything."""
        if self._closed_reason is None:
            self._closed_reason = "the connection closed itself: all attempts to reconnect failed"
            _log.error("connection to %s: all attempts to reconnect failed; it is closed", self._server)
        self._end_waiters()
        self._on_state(LinkState.CLOSED)

    def denied(self, subject: str, reason: str) -> None:
        """End the requests on a subject that the server refused (it tells the subject in lower case)."""
        refused = [(future, name) for future, name in self._requests.values() if name.lower() == subject]
        for future, name in refused:
            if not future.done():
                future.set_exception(PermissionDeniedError(name))
        if not refused:
            _log.error("NATS refused a message: %s", reason)

    @property
    def _server(self) -> str:
        return "NATS" if self._client is None else self._client.info.url

    def _end_waiters(self) -> None:
        self._fail_in_flight(lambda: ConnectionClosedError(self._closed_reason or "the connection is closed"))
        self._wake()

    def _fail_in_flight(self, error: Callable[[], NatsConnectionError]) -> None:
        for future, _ in self._requests.values():
            if not future.done():
                future.set_exception(error())  # each waiter raises an instance of its own
        for listening in self._listening:
            listening.lost(error())
        if self._client is not None:
            self._client.fail_pings(error)

    def _wake(self) -> None:
        for change in self._changes:
            if not change.done():
                change.set_result(None)


async def _release_at_the_end(client: NatsClient) -> None:
    """Drop the socket when the loop ends under an open connection: its owner is gone, or the interpreter exits."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        client.tear_down()
