"""The short ways of a request, from the calling thread to the socket and from the socket to the waiter, and what works
where one of them cannot be had.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trustme

import mono_sync
from mono_sync import Connection, ConnectionLostError, KVBucketConfig, OperationTimeoutError
from mono_sync._durations import Deadline
from mono_sync.adapter import Message, _inlet, _outlet
from mono_sync.adapter._link import Link
from mono_sync.adapter._scanner import Sink
from mono_sync.adapter.client import NatsClient
from tests.connection.conftest import Connect, flush_after_restart, on_each_loop
from tests.fixtures.servers import RawServer, RunNatsServer
from tests.fixtures.waiting import wait_until

JETSTREAM = "jetstream: enabled"

pytestmark = on_each_loop


def _link(connection: Connection) -> Link:
    assert connection._session is not None
    return connection._session.link


def _client(connection: Connection) -> NatsClient:
    client = _link(connection)._client
    assert client is not None
    return client


Lanes = tuple[bool, bool, bool]


def _lanes(connection: Connection) -> Lanes:
    """Tell whether callers write to the socket, whether answers come past nats-py, and whether callers read them."""
    client = _client(connection)
    assert client.wire is not None
    assert client._socket is not None
    return client.wire.is_direct, client._socket.scans, client.inlet is not None


@pytest.fixture(params=["both", "no socket", "no parser", "neither"])
def expected(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Lanes:
    """Break what the lanes need; return which of them is left."""
    if request.param in ("no socket", "neither"):
        monkeypatch.setattr(_outlet, "duplicate", lambda _transport, _mode: None)
        monkeypatch.setattr(_inlet, "duplicate", lambda _transport, _mode: None)
    if request.param in ("no parser", "neither"):
        monkeypatch.setattr(NatsClient, "_parser_is_idle", lambda _client: False)
    return request.param in ("both", "no parser"), request.param in ("both", "no socket"), request.param == "both"


@pytest.fixture
def _no_collection() -> Iterator[None]:
    """Nothing is collected: what a handler raises in the callback of a weak set, Python only reports."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def server(run_nats_server: RunNatsServer) -> RawServer:
    return run_nats_server(JETSTREAM)


def test_requests_of_many_threads_get_their_own_answers(server: RawServer, connect: Connect, expected: Lanes) -> None:
    connection = connect(server.url)
    kv = connection.kv(KVBucketConfig("b", storage="memory"))
    sizes = [0, 1, 100, 5_000, 300_000, 900_000]

    def work(number: int) -> None:
        for size in sizes:
            value = bytes([number]) * size
            kv.set(f"k{number}", value)
            assert kv.get(f"k{number}") == value

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert _lanes(connection) == expected
    assert not _link(connection)._requests


def test_a_new_connection_has_its_lanes_again(server: RawServer, connect: Connect, expected: Lanes) -> None:
    connection = connect(server.url)
    kv = connection.kv(KVBucketConfig("b"))
    kv.set("k", b"before")
    server.kill()
    server.start()
    flush_after_restart(connection)
    kv.set("k", b"after")
    assert kv.get("k") == b"after"
    assert kv.keys() == ["k"]
    assert _lanes(connection) == expected


def test_requests_go_on_when_a_full_socket_takes_bytes_again(
    server: RawServer, connect: Connect, expected: Lanes
) -> None:
    connection = connect(server.url)
    kv = connection.kv(KVBucketConfig("b", storage="memory"))
    server.pause()
    with ThreadPoolExecutor(16) as pool:
        writes = [pool.submit(kv.put_with_revision, f"k{n}", bytes(900_000), timeout=30) for n in range(16)]
        wait_until(lambda: _client(connection).congested, "the socket is full")
        server.resume()
        revisions = [write.result(30) for write in writes]
    assert sorted(revisions) == list(range(1, 17))
    wait_until(lambda: not _client(connection).congested, "all sent")
    assert kv.get("k3") == bytes(900_000)
    assert _lanes(connection) == expected


def test_requests_over_tls_are_handed_to_the_loop(run_nats_server: RunNatsServer, connect: Connect) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with certificate.private_key_and_cert_chain_pem.tempfile() as pem:
        server = run_nats_server(f'{JETSTREAM}\ntls {{ cert_file: "{pem}", key_file: "{pem}" }}')
        connection = connect(f"tls://localhost:{server.port}", tls=trusting)
        kv = connection.kv(KVBucketConfig("b", storage="memory"))
        kv.set("k", bytes(900_000))
        assert kv.get("k") == bytes(900_000)
        assert _lanes(connection) == (False, True, False)
        assert connection._session is not None
        for _ in range(10):  # whoever waits for the socket to be free does not wait where it is
            connection.publish("x", b"x")
            connection._session.run(_client(connection).drained, deadline=Deadline(5), operation="test")


def test_a_request_makes_no_task(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    kv = connection.kv(KVBucketConfig("b", storage="memory"))
    tasks: list[str] = []

    def count(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        tasks.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **options)

    assert connection._session is not None
    loop = connection._session.loop
    loop.call(lambda: asyncio.get_running_loop().set_task_factory(count), deadline=Deadline(5), operation="test")
    for _ in range(50):
        kv.set("k", b"v")
        assert kv.get("k") == b"v"
    assert tasks == []


def test_a_single_thread_has_its_answers_past_the_loop(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    kv = connection.kv(KVBucketConfig("b", storage="memory"))
    client, passed = _client(connection), list[Message]()
    for sid, sink in client._sinks.items():

        def note(message: Message, sink: Sink = sink) -> None:
            passed.append(message)
            sink(message)

        client._sinks[sid] = note
    for _ in range(50):
        kv.set("k", b"v", timeout=20)
        assert kv.get("k", timeout=20) == b"v"
    assert len(passed) < 20  # one may be late, or come together with another message


def test_whoever_gives_up_leaves_nothing_behind(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    server.pause()
    for _ in range(5):
        with pytest.raises(OperationTimeoutError):
            connection.request("$JS.API.INFO", timeout=0.02)
    assert not _link(connection)._requests
    server.resume()
    assert connection.request("$JS.API.INFO").data


def test_a_late_answer_is_dropped(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    server.pause()
    with pytest.raises(OperationTimeoutError):
        connection.request("$JS.API.INFO", timeout=0.02)
    server.resume()
    assert b"memory" in connection.request("$JS.API.INFO").data
    connection.flush()


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need the main thread")
@pytest.mark.usefixtures("_no_collection")
def test_an_interrupt_ends_a_request_and_leaves_nothing_behind(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    server.pause()
    previous = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        wait_until(lambda: _link(connection)._requests, "a request")
        signal.pthread_kill(main, signal.SIGUSR1)

    waits = threading.Thread(target=interrupt)
    waits.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            connection.request("$JS.API.INFO", timeout=20)
    finally:
        waits.join(20)
        signal.signal(signal.SIGUSR1, previous)
    assert not _link(connection)._requests
    server.resume()
    assert connection.request("$JS.API.INFO").data


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need the main thread")
def test_a_signal_handler_may_use_the_connection_that_it_interrupts(server: RawServer, connect: Connect) -> None:
    connection = connect(server.url)
    kv = connection.kv(KVBucketConfig("b", storage="memory"))
    main, enough, handled = threading.main_thread().ident, threading.Event(), []
    assert main is not None

    handling = [False]

    def handler(*_: object) -> None:
        if handling[0]:
            return  # signals may come faster than they are handled
        handling[0] = True
        connection.publish("x", b"x", timeout=20)
        connection.flush(timeout=20)
        kv.set("handler", bytes(50_000), timeout=20)
        handled.append(kv.get("handler", timeout=20))
        handling[0] = False

    def signals() -> None:
        while not enough.wait(0.002):
            signal.pthread_kill(main, signal.SIGUSR1)

    def others() -> None:
        for _ in range(200):
            kv.set("other", bytes(20_000), timeout=20)

    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        with ThreadPoolExecutor(3) as pool:
            work = [pool.submit(signals), pool.submit(others), pool.submit(others)]
            while len(handled) < 50:
                kv.set("main", bytes(50_000), timeout=20)
                assert kv.get("main", timeout=20) == bytes(50_000)
            enough.set()
            for done in work:
                done.result(20)
    finally:
        enough.set()
        signal.signal(signal.SIGUSR1, previous)
    assert handled[-1] == bytes(50_000)


def test_every_request_ends_in_a_storm_of_restarts(server: RawServer, connect: Connect, expected: Lanes) -> None:
    connection = connect(server.url, reconnect_wait=0.01)
    enough = threading.Event()

    def work(_: int) -> tuple[int, int]:
        answered = lost = 0
        while not enough.is_set():
            try:
                connection.request("$JS.API.INFO", timeout=20)
                answered += 1
            except (ConnectionLostError, mono_sync.NoRespondersError):
                lost += 1
        return answered, lost

    with ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(work, number) for number in range(8)]
        for _ in range(5):
            connection.request("$JS.API.INFO", timeout=20)
            server.kill()
            server.start()
            flush_after_restart(connection)
        enough.set()
        answered, lost = map(sum, zip(*(worker.result(20) for worker in workers), strict=True))
    assert answered > 50
    assert lost >= 5
    assert not _link(connection)._requests
    assert _lanes(connection) == expected
