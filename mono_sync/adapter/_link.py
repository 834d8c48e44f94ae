"""One connection to NATS as the loop thread sees it: when a message may leave, and who waits for which answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from enum import Enum
from threading import get_ident
from typing import Any, Protocol

from mono_sync._durations import Deadline
from mono_sync.adapter._config import ConnectionConfig
from mono_sync.adapter._info import ServerInfo
from mono_sync.adapter._inlet import Inlet
from mono_sync.adapter._message import Message, encode_publish
from mono_sync.adapter._scanner import Sink
from mono_sync.adapter._wire import Wire
from mono_sync.adapter.client import NatsClient, connect
from mono_sync.errors import ConnectionClosedError, ConnectionLostError, NatsConnectionError, PermissionDeniedError

_log = logging.getLogger("mono_sync.connection")

_PATIENCE = 0.005  # most answers come sooner; who waits at the socket does not learn of one that came past him


class LinkState(Enum):
    """What a link tells its listener."""

    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    CLOSED = "closed"


class Waiter(Protocol):
    """Somebody who waits for an answer; only the first of `succeed` and `fail` counts. Any thread."""

    @property
    def waits(self) -> bool:
        """Whether he has neither been answered nor given up."""

    def succeed(self, result: Any) -> bool:
        """Hand him the answer; return whether he still waited for it."""

    def fail(self, error: Exception) -> None:
        """Tell him that there will be none."""


class NotSentError(Exception):
    """A message could not be sent from the calling thread; nothing of it has left."""


class OtherServerError(ConnectionLostError):
    """What was for one server only was not sent, because the connection leads to another one by now."""


class Request:
    """A request, as a command of the wire, from before it is sent until after its end.

    Attributes:
        subject: where it goes.
        reply: where its answer is to come.
        data: the command.
        server: identity of the only server that it may be sent to; empty: any.
        sent: whether anything of it may have left the process.
    """

    __slots__ = ("data", "reply", "sent", "server", "subject", "waiter")

    def __init__(self, subject: str, reply: str, data: bytes, server: str = "") -> None:
        self.subject: str = subject
        self.reply: str = reply
        self.data: bytes = data
        self.server: str = server
        self.sent: bool = False
        self.waiter: Waiter | None = None

    @property
    def waits(self) -> bool:
        """Whether somebody waits for its answer."""
        return self.waiter is not None and self.waiter.waits

    def claim(self) -> bool:
        """Note that it is being sent; return whether that is still wanted."""
        self.sent = True  # before the look: who gives up after it must see this
        if self.waiter is not None and self.waiter.waits:
            return True
        self.sent = False
        return False

    def refuse(self) -> bool:
        """Learn that nothing of it was sent."""
        self.sent = False
        self.fail(NotSentError())
        return True

    def fail(self, error: Exception) -> None:
        """Tell who waits that there will be no answer."""
        if self.waiter is not None:
            self.waiter.fail(error)


class _LoopWaiter:
    """A coroutine that waits."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    @property
    def waits(self) -> bool:
        return not self.answer.done()

    def succeed(self, result: Message) -> bool:
        if not self.waits:
            return False
        self.answer.set_result(result)
        return True

    def fail(self, error: Exception) -> None:
        if self.waits:
            self.answer.set_exception(error)


class Listening:
    """A subscription or an inbox: messages go to ``sink``; ``lost`` is told when the connection breaks or closes.

    Attributes:
        asked: subjects of messages that are answered here: ``lost`` learns of it when the server refuses one.
    """

    __slots__ = ("asked", "lost", "sink", "subject", "subscription")

    def __init__(self, subject: str, sink: Sink, lost: Callable[[NatsConnectionError], None]) -> None:
        self.subject: str = subject
        self.sink: Sink = sink
        self.lost: Callable[[NatsConnectionError], None] = lost
        self.subscription: object | None = None
        self.asked: set[str] = set()


class Link:
    """Sends commands when the connection can take them, and matches answers to requests.

    The plain methods up to `close_inbox` are for any thread, all else belongs to the loop thread. Deadlines are the
    caller's: each coroutine may be cancelled at any point, and what had not been handed to the socket by then is never
    sent.

    Answers come on subjects of one token behind the link's own prefix, what is for inboxes on such of two: two
    subscriptions serve all calls, so that neither a request nor an inbox costs the server, or a reconnect, anything.
    """

    def __init__(self, config: ConnectionConfig, on_state: Callable[[LinkState], None]) -> None:
        self._config = config
        self._on_state = on_state
        self._client: NatsClient | None = None
        self._token = secrets.token_urlsafe(9)
        self._prefix = f"{config.inbox_prefix}.{self._token}."
        self._numbers = itertools.count(1)
        self._requests: dict[str, Request] = {}
        self._last_caller = 0
        self._inboxes: dict[str, Listening] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = False  # connected, and all subscriptions are known to the server
        self._listening: set[Listening] = set()
        self._changes: set[asyncio.Future[None]] = set()
        self._closed_reason: str | None = None
        self._draining = False
        self._release: asyncio.Task[None] | None = None

    # --- from any thread

    @property
    def info(self) -> ServerInfo:
        """The server of the present or the last connection."""
        client = self._client
        if client is None or self._closed_reason is not None:
            client = self._connected_client()  # which says what is wrong
        return client.info

    def new_id(self) -> str:
        """Return a text that no other call in any process gets."""
        return f"{self._token}{next(self._numbers):x}"

    def new_reply(self) -> str:
        """Return a subject for one answer, and for one inbox."""
        return f"{self._prefix}{next(self._numbers)}"

    def new_request(self, subject: str, data: bytes, header_block: bytes, server: str = "") -> Request:
        """Build a request whose parts are right; with ``server`` it is for that one only."""
        reply = f"{self._prefix}{next(self._numbers)}"
        command = encode_publish(subject, data, reply, header_block, self.info.max_payload)
        return Request(subject, reply, command, server)

    def exchange(self, waiter: Waiter, request: Request, deadline: Deadline) -> None:
        """Send a request from the calling thread; the message on its reply subject is for the waiter.

        Who is alone in waiting for an answer does so here for a moment, which is the quickest way to it.

        The waiter gets `NotSentError` where that is impossible at the moment: `request` then waits until it is
        possible. Whoever gives up, or is done, calls `forget`.
        """
        request.waiter = waiter
        self._requests[request.reply] = request
        client = self._client
        wire = self._wire  # first: if it is not the one of what follows, it is closed
        if client is None or wire is None or request.server not in ("", client.info.id):
            request.refuse()
        elif (inlet := client.inlet) is None or not self._is_alone():
            wire.put(request)
        else:
            self._exchange_alone(waiter, request, deadline, wire, inlet)

    def _is_alone(self) -> bool:
        """Return whether the calling thread is alone in making requests, as far as can be seen."""
        me, last = get_ident(), self._last_caller
        self._last_caller = me
        return me == last and len(self._requests) == 1

    def _exchange_alone(self, waiter: Waiter, request: Request, deadline: Deadline, wire: Wire, inlet: Inlet) -> None:
        """Send a request, and take its answer at the socket if it comes soon."""
        remaining, message = deadline.remaining, None
        try:
            inlet.hold(request)
            wire.put(request)
            if request.sent:
                message = inlet.fetch(request.reply, _PATIENCE if remaining is None else min(_PATIENCE, remaining))
        finally:
            inlet.let_go(request)
        if message is not None and self._requests.pop(request.reply, None) is not None:
            waiter.succeed(message)

    def transmit(self, command: bytes, refused: Callable[[], bool] | None = None) -> bool:
        """Send a command from the calling thread; False if that is impossible: `publish` waits until it is possible.

        Nothing is sent either on a connection that the sender has ``refused``, because an earlier one has broken.
        """
        wire = self._wire  # first: if it is not the one that was asked about, it is closed
        return wire is not None and not (refused is not None and refused()) and wire.send(command)

    @property
    def _wire(self) -> Wire | None:
        """The way to the socket, for those who may send at the moment."""
        return self._client.wire if self._ready and self._client is not None else None

    def forget(self, request: Request) -> None:
        """Leave an answer alone that nobody waits for any more."""
        self._requests.pop(request.reply, None)
        if self._draining and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._wake)

    def open_inbox(self, name: str, inbox: Listening) -> None:
        """Let messages of a name reach an inbox.

        The name is a subject of `new_reply`, for what is sent to one token behind it, or that of a consumer, whose
        messages carry the subjects under which they were stored.
        """
        self._inboxes[name] = inbox

    def close_inbox(self, name: str) -> None:
        """Drop what may still come; idempotent."""
        self._inboxes.pop(name, None)

    # --- opening and closing

    async def open(self, deadline: Deadline) -> None:
        """Connect and subscribe the inbox of all requests."""
        self._loop = asyncio.get_running_loop()
        client = await connect(self._config, self, deadline)
        self._client = client
        self._release = asyncio.create_task(_release_at_the_end(client))
        await client.listen(f"{self._prefix}*", self._answer)
        await client.listen(f"{self._prefix}*.*", self._deliver)
        self._ready = True
        self._on_state(LinkState.CONNECTED)

    async def drain(self) -> None:
        """Refuse new messages, wait for the answers under way and until the server has read everything sent."""
        self._draining = True
        self._ready = False
        while any(request.waits for request in self._requests.copy().values()):
            async with self._next_change() as change:
                await change
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

    async def publish(self, command: bytes, refused: Callable[[], bool] | None = None) -> None:
        """Hand a command to the socket, as soon as there is one that takes it.

        Raises:
            ConnectionLostError: the sender has ``refused`` the connection, because an earlier one has broken.
        """
        client = await self._writable()
        if refused is not None and refused():
            raise ConnectionLostError("the connection broke before everything was sent")
        client.send(command)

    async def request(self, request: Request) -> Message:
        """Send a request, as soon as there is a socket that takes it, and wait for the message on its reply subject.

        Raises:
            ConnectionLostError: the connection broke after the command was sent.
            OtherServerError: the connection leads to another server than the only one for which it is.
            PermissionDeniedError: the server refused it.
        """
        client = await self._writable()
        if request.server not in ("", client.info.id):
            raise OtherServerError("we have connected to another server meanwhile")
        request.waiter = waiter = _LoopWaiter()
        self._requests[request.reply] = request
        request.sent = True
        try:
            client.send(request.data)
            return await waiter.answer
        finally:
            self.forget(request)

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

    def unlisten(self, listening: Listening) -> None:
        """End a subscription; idempotent."""
        if listening in self._listening:
            self._listening.discard(listening)
            if self._client is not None:
                self._client.unlisten(listening.subscription)  # type: ignore[arg-type]  # nats is not imported here

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
        request = self._requests.pop(message.subject, None)
        if request is not None and request.waiter is not None:
            request.waiter.succeed(message)
            if self._draining:
                self._wake()

    def _deliver(self, message: Message) -> None:
        if message.subject.startswith(self._prefix):
            name = message.subject.rpartition(".")[0]
        else:
            name = consumer_of(message.reply)
        inbox = self._inboxes.get(name)
        if inbox is not None:
            inbox.sink(message)

    # --- the connection's fate, told by the client

    def broken(self) -> None:
        """End the calls in flight: their answers cannot come any more."""
        _log.warning("connection to %s lost; reconnecting", self._server)
        self._ready = False
        self._fail_in_flight(
            [request for request in self._requests.copy().values() if request.sent],
            lambda: ConnectionLostError("the connection to NATS broke before the answer came"),
        )
        self._on_state(LinkState.RECONNECTING)

    def reconnected(self) -> None:
        """Let the calls go on that waited for a connection."""
        _log.info("connected again, to %s", self._server)
        self._ready = not self._draining
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
        """End the requests on a subject that the server refused."""
        refused = [request for request in self._requests.copy().values() if request.subject == subject]
        for request in refused:
            request.fail(PermissionDeniedError(subject))
        asking = [listening for listening in self._all_listening() if subject in listening.asked]
        for listening in asking:
            listening.lost(PermissionDeniedError(subject))
        if not refused and not asking:
            _log.error("NATS refused a message: %s", reason)

    @property
    def _server(self) -> str:
        return "NATS" if self._client is None else self._client.info.url

    def _all_listening(self) -> list[Listening]:
        return [*self._listening, *set(self._inboxes.copy().values())]

    def _end_waiters(self) -> None:
        self._ready = False
        reason = self._closed_reason or "the connection is closed"
        self._fail_in_flight(list(self._requests.copy().values()), lambda: ConnectionClosedError(reason))
        self._wake()

    def _fail_in_flight(self, requests: list[Request], error: Callable[[], NatsConnectionError]) -> None:
        for request in requests:
            request.fail(error())  # each waiter raises an instance of its own
        for listening in self._all_listening():
            listening.lost(error())
        if self._client is not None:
            self._client.fail_pings(error)

    def _wake(self) -> None:
        for change in self._changes:
            if not change.done():
                change.set_result(None)


def consumer_of(reply: str) -> str:
    """Return the name of the consumer that delivered a message, which its reply subject holds (NATS ADR-15)."""
    tokens = reply.split(".")
    if len(tokens) < 9:
        return ""
    return tokens[3] if len(tokens) == 9 else tokens[5]  # with domain and account in front


async def _release_at_the_end(client: NatsClient) -> None:
    """Drop the socket when the loop ends under an open connection: its owner is gone, or the interpreter exits."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        client.tear_down()
