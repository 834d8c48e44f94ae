"""The only module that imports nats.

nats-py gives us the handshake with all ways to authenticate, TLS, the protocol parser, pings, the pool of servers and
the replay of subscriptions. How bytes leave, what happens to calls in flight and when a connection ends are ours,
because nats-py 2.16 buffers what must not be sent later, waits without limit, and closes for good on errors that one
bad message can cause. `NatsClient` overrides what is needed for that; a contract test fails when a newer nats-py no
longer has what is overridden or touched here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from nats import errors as nats_errors
from nats.aio.client import Client, RawCredentials, Server, Srv
from nats.aio.subscription import Subscription
from nats.protocol import parser

from mono_sync._durations import Deadline
from mono_sync.adapter._address import ServerAddress
from mono_sync.adapter._config import ConnectionConfig
from mono_sync.adapter._credentials import read_credentials, read_seed
from mono_sync.adapter._info import ServerInfo
from mono_sync.adapter._inlet import Inlet
from mono_sync.adapter._message import Message
from mono_sync.adapter._scanner import Sink
from mono_sync.adapter._transport import Transport
from mono_sync.adapter._wire import Wire
from mono_sync.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectFailedError,
    ConnectionClosedError,
    ConnectionLostError,
    InvalidSubjectError,
    MonoError,
    NatsConnectionError,
    OperationTimeoutError,
)

_log = logging.getLogger("mono_sync.connection")

_READ_BUFFER = 1 << 18
_RECONNECT_STEP_TIMEOUT = 2.0
_DENIED_PUBLISH = re.compile(rb'permissions violation for publish to "([^"]*)"', re.IGNORECASE)


class Owner(Protocol):
    """Who is told of the connection's fate, on the loop thread."""

    def broken(self) -> None:
        """The connection broke; attempts to reconnect begin."""

    def reconnected(self) -> None:
        """There is a connection again, with all subscriptions."""

    def closed(self) -> None:
        """It is over."""

    def denied(self, subject: str, reason: str) -> None:
        """The server refused a message; it names the subject in lower case."""


class _NoTlsError(nats_errors.Error):
    """tls:// was asked for and the server offers none."""


class _SinkFuture:
    """Has of a Future what nats-py calls for each message, which so reaches us without queue and task."""

    __slots__ = ("set_result",)

    def __init__(self, sink: Sink) -> None:
        self.set_result = sink

    def cancelled(self) -> bool:
        return False


class NatsClient(Client):
    """nats-py's client with bounded waits, no buffer across reconnects, and no error that ends it for good.

    Every method belongs to the loop thread.
    """

    def __init__(self, config: ConnectionConfig, owner: Owner) -> None:
        super().__init__()
        self._config = config
        self._owner = owner
        self._addresses = {address.location: address for address in config.addresses}
        self._own_pings: set[asyncio.Future[bool]] = set()
        self._sinks: dict[bytes, Sink] = {}
        self._socket: Transport | None = None
        self._shutting = False
        self.info: ServerInfo = ServerInfo.from_wire({}, "")
        """The server of the present or the last connection."""

    # --- what the link uses

    @property
    def wire(self) -> Wire | None:
        """How every thread sends; None without a connection. Subscriptions may not have been replayed yet."""
        return None if self._socket is None else self._socket.wire

    @property
    def inlet(self) -> Inlet | None:
        """How whoever waits for an answer may receive it himself; None where only the loop can."""
        return None if self._socket is None else self._socket.inlet

    @property
    def congested(self) -> bool:
        """Whether bytes of an earlier message still wait for the socket."""
        return self._socket is not None and self._socket.congested

    def send(self, command: bytes) -> None:
        """Hand a complete protocol command to the socket; the caller has seen `is_connected` and `congested`."""
        assert self._socket is not None
        self._socket.write(command)

    async def drained(self) -> None:
        """Wait until the socket has taken all bytes, or the connection is known to be broken."""
        assert self._socket is not None
        try:
            await self._socket.drain()
        except OSError as error:
            await self._process_op_err(error)

    async def ping(self) -> None:
        """Wait for the server's answer to a PING: it has then read everything sent before.

        Raises:
            ConnectionLostError: the connection broke first.
        """
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._own_pings.add(pong)
        try:
            await self._send_ping(pong)
            await pong
        finally:
            self._own_pings.discard(pong)

    def fail_pings(self, error: Callable[[], NatsConnectionError]) -> None:
        """End every `ping` that waits."""
        for pong in self._own_pings:
            if not pong.done():
                pong.set_exception(error())

    async def listen(self, subject: str, sink: Sink) -> Subscription:
        """Subscribe; reconnects keep the subscription."""
        async with _mapped_errors():
            subscription = await self.subscribe(subject, future=_SinkFuture(sink))  # type: ignore[arg-type]
        self._sinks[b"%d" % subscription._id] = sink
        return subscription

    def unlisten(self, subscription: Subscription) -> None:
        """Unsubscribe; messages already on the way are dropped."""
        sid = subscription._id
        self._sinks.pop(b"%d" % sid, None)
        self._remove_sub(sid)
        if self.is_connected and self._socket is not None:
            self._socket.write(b"UNSUB %d\r\n" % sid)

    async def shut(self, grace: float) -> None:
        """Close for good; bytes that the socket does not take within ``grace`` seconds are dropped."""
        if self.congested and not self.is_reconnecting:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self.drained()
        self._pending_data_size = (
            0  # nats-py would wait for the socket, without limit, if this said that bytes are left
        )
        self._shutting = True
        reconnecting = self._reconnection_task
        if reconnecting is not None and not reconnecting.done():  # else it may succeed while nats-py closes
            reconnecting.cancel()
            await asyncio.wait([reconnecting], timeout=grace)
        self.tear_down()
        await self.close()

    # --- how bytes leave: at once or not at all; nothing waits in a buffer that outlives a call or a connection

    async def _send_command(self, cmd: bytes, priority: bool = False) -> None:  # noqa: ARG002  # nats-py's signature
        if self.is_connected and self._transport is not None:  # else: subscriptions are replayed, all others wait
            self._transport.write(cmd)

    async def _flush_pending(self, force_flush: bool = False) -> None:  # noqa: ARG002  # nats-py's signature
        self._pending_data_size = 0

    # --- messages reach us as our own type, headers undecoded: no parser of nats-py's, no fast-mail-parser

    async def _process_headers(self, headers: bytes | None) -> Any:
        return headers

    def _build_message(
        self,
        sid: int,  # noqa: ARG002  # nats-py's signature
        subject: bytes,
        reply: bytes,
        data: bytes,
        headers: Any,
    ) -> Any:
        return Message(subject.decode("utf-8", "replace"), data, reply.decode("utf-8", "replace"), headers or b"")

    # --- one server at a time, with its own credentials, in plaintext only where that was asked for

    async def _select_next_server(self) -> None:
        """Try the only server of a first connection, once; reconnects choose by `_next_server`."""
        self._current_server = self._server_pool[0]
        await self._connect_to_server(self._current_server)

    async def _connect_to_server(self, s: Srv) -> None:
        self.tear_down()
        s.last_attempt = time.monotonic()
        self._use_credentials_of(s)
        if self._config.credentials is not None:  # read anew each time: files with short-lived JWTs are replaced
            assert isinstance(self._user_credentials, RawCredentials)
            self._user_credentials.data = read_credentials(self._config.credentials)
        self._socket = Transport(self._config.pending_size, self._parser_is_idle)
        self._transport = self._socket  # type: ignore[assignment]  # it has all that nats-py uses
        await self._socket.connect(s.uri, _READ_BUFFER, self.options["connect_timeout"])

    def _use_credentials_of(self, server: Srv) -> None:
        address = self._addresses.get(server.uri.netloc)
        source: ServerAddress | ConnectionConfig = self._config
        if address is not None and (address.user or address.token):
            source = address
            self._auth_configured = True
        self.options.update(user=source.user, password=source.password, token=source.token)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        await super()._process_info(info, initial_connection)
        if not initial_connection:
            return
        assert self._current_server is not None
        self.info = ServerInfo.from_wire(info, self._current_server.uri.geturl())
        wanted = self._current_server.uri.scheme == "tls" or "tls" in self.options
        if wanted and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise _NoTlsError("the server offers no TLS, and going on in plaintext was not asked for")
            info["tls_required"] = True

    # --- breaking and coming back

    def _next_server(
        self,
        pool: list[Server],
        info: dict[str, Any],  # noqa: ARG002  # nats-py's signature
    ) -> tuple[Server, float]:
        """Choose the server that failed the fewest times in a row, and how long to wait before trying it."""
        if self._shutting:  # the cancellation has been lost, as `wait_for` of Python 3.11 may lose one
            raise asyncio.CancelledError
        server = min(pool, key=lambda candidate: candidate.reconnects)
        if not server.reconnects:
            return server, 0.0
        pause = min(self._config.reconnect_max, self._config.reconnect_min * 2.0 ** min(server.reconnects - 1, 32))
        return server, pause * random.uniform(0.5, 1.0)  # jitter, not cryptography

    async def _process_op_err(self, e: Exception) -> None:
        if not self._shutting:  # nats-py would begin to reconnect while it closes
            await super()._process_op_err(e)

    async def _attempt_reconnect(self) -> None:
        self.tear_down()  # before nats-py waits, without limit, for unsent bytes of the old connection
        self._owner.broken()
        while self.is_reconnecting:
            try:
                await super()._attempt_reconnect()
                return
            except Exception as error:  # nats-py would stay "reconnecting" for ever, with nobody trying
                _log.warning("reconnecting to NATS: %s", explain(error))
                if self._current_server is not None:
                    self._current_server.reconnects += 1
                await asyncio.sleep(self._config.reconnect_min)
                self._status = Client.CLOSED if self.is_closed else Client.RECONNECTING

    def tear_down(self) -> None:
        """Stop the tasks and drop the socket of the present connection attempt, if there is one."""
        current = asyncio.current_task()
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None and task is not current:
                task.cancel()
        if self._socket is not None:
            self._socket.abort()

    def _parser_is_idle(self) -> bool:
        return not self._ps.buf and self._ps.state == parser.AWAITING_CONTROL_LINE

    async def _read_loop(self) -> None:
        if self._socket is not None:
            self._socket.open_lanes(self._sinks)
        await super()._read_loop()
        task = asyncio.current_task()
        if task is self._reading_task and task is not None and not task.cancelling():
            await self._process_op_err(nats_errors.ProtocolError())  # nothing reads any more: never stay deaf

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():  # the late answer to a ping that was given up
            del self._pongs[0]
            self._pings_outstanding = 0
        else:
            await super()._process_pong()

    async def _process_err(self, err_msg: str) -> None:
        """Reconnect on every error that costs the connection, where nats-py would close for good."""
        line = bytes(self._ps.buf).partition(b"\r\n")[0]  # as it came; what nats-py makes of it is in lower case
        denied = _DENIED_PUBLISH.search(line)
        if denied:
            self._owner.denied(denied[1].decode("utf-8", "replace"), err_msg)
        elif "permissions violation" in err_msg:
            _log.error("NATS refused a subscription: %s", err_msg)
        else:
            _log.warning("NATS ends the connection: %s", err_msg)
            await self._process_op_err(nats_errors.Error(f"nats: {err_msg}"))


# --- the first connection --------------------------------------------------------------------------------------------


async def connect(config: ConnectionConfig, owner: Owner, deadline: Deadline) -> NatsClient:
    """Connect to the first server, in random order, that accepts us; each gets a fair share of the time that is left.

    Raises:
        ConnectFailedError: none did; names the failure of each.
        AuthenticationError: every server that answered refused the credentials.
        ConfigurationError: the credentials cannot be read.
    """
    addresses = random.sample(config.addresses, len(config.addresses))
    failures: dict[str, Exception] = {}
    for position, address in enumerate(addresses):
        remaining = deadline.remaining
        share = config.open_timeout if remaining is None else remaining / (len(addresses) - position)
        client = NatsClient(config, owner)
        try:
            async with asyncio.timeout(share):
                await client.connect(**_options(config, owner, client, address, share))
        except ConfigurationError:
            raise
        except ImportError as error:
            raise ConfigurationError('NKEYs need another package: pip install "mono-sync[nkeys]"') from error
        except Exception as error:  # whatever it was, the next server may do better; it is reported below
            failures[address.url] = error
        else:
            _allow_reconnects(client, config)
            return client
        finally:
            if not client.is_connected:
                await _discard(client)
    raise _connect_failed(failures)


def _options(
    config: ConnectionConfig, owner: Owner, client: NatsClient, address: ServerAddress, timeout: float
) -> dict[str, Any]:
    async def on_reconnected() -> None:
        owner.reconnected()

    async def on_closed() -> None:
        owner.closed()

    async def on_error(error: Exception) -> None:
        _log.info("connection to NATS: %s", explain(error))

    return {
        "servers": [address.url],
        "name": config.name,
        "allow_reconnect": False,  # for this first attempt: nats-py retries for minutes where a caller wants to know
        "connect_timeout": timeout,
        "error_cb": on_error,
        "reconnected_cb": on_reconnected,
        "closed_cb": on_closed,
        "reconnect_to_server_handler": client._next_server,  # our own override
        "ping_interval": config.ping_seconds,
        "user": config.user,
        "password": config.password,
        "token": config.token,
        "nkeys_seed_str": None if config.nkey is None else read_seed(config.nkey),
        "user_credentials": None
        if config.credentials is None
        else RawCredentials(read_credentials(config.credentials)),
        "tls": config.tls,
        "tls_hostname": config.tls_hostname,
        "tls_handshake_first": config.tls_handshake_first,
        "inbox_prefix": config.inbox_prefix,
        "pending_size": 0,
        "dont_randomize": True,
    }


def _allow_reconnects(client: NatsClient, config: ConnectionConfig) -> None:
    discovered = [server.geturl() for server in client.discovered_servers]
    client.set_server_pool(list(dict.fromkeys([address.url for address in config.addresses] + discovered)))
    client.options.update(
        allow_reconnect=True,
        max_reconnect_attempts=-1 if config.max_reconnect_attempts is None else config.max_reconnect_attempts,
        reconnect_time_wait=config.reconnect_min,
        connect_timeout=min(config.open_timeout, _RECONNECT_STEP_TIMEOUT),
    )


async def _discard(client: NatsClient) -> None:
    tasks = [task for task in (client._reading_task, client._ping_interval_task, client._flusher_task) if task]
    client.tear_down()
    await asyncio.gather(*tasks, return_exceptions=True)


def _connect_failed(failures: dict[str, Exception]) -> ConnectFailedError:
    answered = [error for error in failures.values() if not _is_unreachable(error)]
    refused = bool(answered) and all(_is_authorization(error) for error in answered)
    kind = AuthenticationError if refused else ConnectFailedError
    failed = kind({url: explain(error) for url, error in failures.items()})
    failed.__cause__ = next(iter(failures.values()))
    return failed


def _is_authorization(error: Exception) -> bool:
    return isinstance(error, nats_errors.AuthorizationError) or "authorization violation" in str(error).lower()


def _is_unreachable(error: Exception) -> bool:
    return isinstance(error, (OSError, asyncio.TimeoutError)) and not isinstance(error, ssl.SSLError)


def explain(error: BaseException) -> str:
    """Say in one line why a server could not be used."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's TLS certificate is not trusted: {error.verify_message or error.reason}"
    if isinstance(error, ssl.SSLError):
        return f"TLS handshake failed: {error.reason or error}"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if _is_authorization(error if isinstance(error, Exception) else Exception(str(error))):
        return "authorization violation: user, password, token or key is wrong"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error).removeprefix("nats: ").strip("'") or type(error).__name__


# --- errors ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _mapped_errors() -> AsyncIterator[None]:
    """Let nothing of nats leave: most specific first."""
    try:
        yield
    except MonoError:
        raise
    except nats_errors.ConnectionClosedError as error:
        raise ConnectionClosedError("the connection is closed") from error
    except nats_errors.BadSubjectError as error:
        raise InvalidSubjectError("", "not a subject that NATS accepts") from error
    except nats_errors.TimeoutError as error:
        raise OperationTimeoutError("NATS operation", None) from error
    except (nats_errors.StaleConnectionError, nats_errors.OutboundBufferLimitError, OSError) as error:
        raise ConnectionLostError(f"the connection broke: {explain(error)}") from error
    except nats_errors.Error as error:
        raise NatsConnectionError(explain(error)) from error
