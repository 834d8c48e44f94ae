"""Signals and finalizers that come in the middle of a request, and raise or make requests of their own."""

from __future__ import annotations

import contextlib
import gc
import ssl
import threading
from collections.abc import Callable, Iterator

import pytest
import trustme

from mono_sync import BlockingCallError, Connection, KVBucket, KVBucketConfig
from tests.connection.conftest import Connect, on_each_loop
from tests.fixtures.servers import RawServer, RunNatsServer
from tests.support.signals import Stop, Storm
from tests.support.threads import Repeated

SIZES = (10, 50_000, 900_000)

pytestmark = on_each_loop


class Work:
    """Requests that check their answers, and what a signal handler does meanwhile."""

    def __init__(self, connection: Connection, server: RawServer, *, slow: bool) -> None:
        self.connection = connection
        self.server = server
        self.slow = slow
        self.kv: KVBucket = connection.kv(KVBucketConfig("b", storage="memory"))
        self.armed = False
        self.handled = 0
        self.stalls = 0

    def do(self, key: str) -> None:
        for size in SIZES:
            self.kv.set(key, bytes(size), timeout=20)
            assert len(self.kv.get(key, timeout=20) or b"") == size

    def others(self) -> Repeated:
        """Threads that do it meanwhile; the server may stand still every now and then, so that the socket fills."""
        functions: list[Callable[[], object]] = [lambda: self.do("one"), lambda: self.do("two")]
        return Repeated([*functions, self.stall] if self.slow else functions)

    def stall(self) -> None:
        self.stalls = threading.get_ident()
        self.server.pause()
        threading.Event().wait(0.02)
        self.server.resume()
        threading.Event().wait(0.02)

    def interrupt(self) -> None:
        self.handled += 1
        if self.armed:
            self.armed = False
            raise Stop

    def use(self) -> None:
        self.connection.publish("x", bytes(100_000), timeout=20)
        self.do("handler")
        self.handled += 1

    def use_and_interrupt(self) -> None:
        self.kv.set("handler", bytes(self.handled % 1000 * 100), timeout=20)
        self.interrupt()

    def is_interrupted(self) -> bool:
        """Do it, and return whether a handler ended it."""
        try:
            self.armed = True
            self.do("main")
            self.armed = False
        except Stop:
            return True
        return False

    def check(self) -> None:
        """Check that nothing is left of what was interrupted."""
        self.do("main")
        self.connection.flush(timeout=20)
        session = self.connection._session
        assert session is not None
        client = session.link._client
        assert client is not None
        assert client.wire is not None
        assert not client.wire._gate.locked()
        assert not client.congested


@pytest.fixture(params=["plain", "slow", "tls"])
def work(request: pytest.FixtureRequest, run_nats_server: RunNatsServer, connect: Connect) -> Work:
    if request.param != "tls":
        server = run_nats_server("jetstream: enabled")
        return Work(connect(server.url), server, slow=request.param == "slow")
    authority = trustme.CA()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with authority.issue_cert("localhost").private_key_and_cert_chain_pem.tempfile() as pem:
        server = run_nats_server(f'jetstream: enabled\ntls {{ cert_file: "{pem}", key_file: "{pem}" }}')
    return Work(connect(f"tls://localhost:{server.port}", tls=trusting), server, slow=False)


# Where Python itself runs a callback, of a weak set or of a collection (hypothesis has one), it reports what a handler
# raises, and goes on.
swallowed_by_python = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function (WeakSet|gc_cumulative_time):pytest.PytestUnraisableExceptionWarning"
)


@swallowed_by_python
def test_a_signal_handler_may_raise(work: Work) -> None:
    with work.others(), Storm(work.interrupt):
        assert sum(work.is_interrupted() for _ in range(200)) > 40
    work.check()


def test_a_signal_handler_may_make_requests(work: Work) -> None:
    with work.others(), Storm(work.use):
        while work.handled < 20:
            work.do("main")
    work.check()


@swallowed_by_python
def test_a_signal_handler_may_make_requests_and_raise(work: Work) -> None:
    with work.others(), Storm(work.use_and_interrupt):
        assert sum(work.is_interrupted() for _ in range(100)) > 20
    work.check()


class Chatty:
    """Garbage that makes requests when it is collected, in whatever thread that happens."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._itself = self

    def __del__(self) -> None:
        if threading.get_ident() == self._work.stalls:
            return  # nobody would let the server go on
        with contextlib.suppress(BlockingCallError):  # in the loop thread
            self._work.connection.publish("x", bytes(1000), timeout=20)
            self._work.kv.set("garbage", b"collected", timeout=20)
            self._work.handled += 1


@pytest.fixture
def _busy_collector() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(30, 5, 1000)
    yield
    gc.set_threshold(*before)
    gc.collect()


@pytest.mark.parametrize("work", ["plain", "slow"], indirect=True)  # with TLS most of it is collected on the loop
@pytest.mark.usefixtures("_busy_collector")
def test_a_finalizer_may_make_requests(work: Work) -> None:
    with work.others():
        while work.handled < 200:
            Chatty(work)
            work.kv.set("main", b"x" * 100, timeout=20)
    work.check()
