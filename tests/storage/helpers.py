"""The server's own view of a bucket, many threads at once, and what breaks or happens at a chosen moment."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

import mono_sync
from mono_sync import Connection, FSBucketConfig, KVBucket, ObjectBucket, Transaction
from mono_sync._durations import Deadline
from mono_sync.adapter import Listening
from mono_sync.connection import JetStream, Json
from tests.fixtures.servers import RawServer
from tests.fixtures.waiting import wait_until
from tests.support.network import Proxy

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)
V = TypeVar("V")
W = TypeVar("W")


class RawStream:
    """A bucket's stream as the server shows it, and changes to it that another client could make."""

    def __init__(self, connection: Connection, stream: str) -> None:
        self.connection = connection
        self.stream = stream

    def api(self, call: str, body: Json | None = None) -> Json:
        return JetStream(self.connection).api(call.format(stream=self.stream), body, Deadline(10))

    def info(self) -> Json:
        return self.api("STREAM.INFO.{stream}")

    @property
    def config(self) -> Json:
        config: Json = self.info()["config"]
        return config

    @property
    def state(self) -> Json:
        state: Json = self.info()["state"]
        return state

    def update(self, **changes: Any) -> None:
        self.api("STREAM.UPDATE.{stream}", self.config | changes)

    def create(self, **config: Any) -> None:
        self.api("STREAM.CREATE.{stream}", {"name": self.stream, **config})

    def delete(self) -> None:
        self.api("STREAM.DELETE.{stream}")

    def purge(self, subject: str) -> None:
        self.api("STREAM.PURGE.{stream}", {"filter": subject})

    def delete_message(self, sequence: int) -> None:
        self.api("STREAM.MSG.DELETE.{stream}", {"seq": sequence})

    def subjects(self, pattern: str) -> dict[str, int]:
        """Return the number of messages of each subject."""
        answer = self.api("STREAM.INFO.{stream}", {"subjects_filter": pattern})
        return dict(answer["state"].get("subjects") or {})

    def consumers(self) -> list[str]:
        names: list[str] = self.api("CONSUMER.NAMES.{stream}").get("consumers") or []
        return names

    def waiting_pulls(self) -> int:
        """Return how many pulls its consumers are keeping until there is something."""
        return sum(int(self.api(f"CONSUMER.INFO.{{stream}}.{name}")["num_waiting"]) for name in self.consumers())

    def put(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        answer = self.connection.request(subject, data, headers=headers)
        assert "error" not in json.loads(answer.data)


def raw_kv(bucket: KVBucket) -> RawStream:
    connection = bucket._connection
    assert isinstance(connection, Connection)
    return RawStream(connection, f"KV_{bucket.name}")


def raw_objects(bucket: ObjectBucket) -> RawStream:
    connection = bucket._connection
    assert isinstance(connection, Connection)
    return RawStream(connection, f"OBJ_{bucket.name}")


def chunk_subjects(bucket: ObjectBucket) -> dict[str, int]:
    return raw_objects(bucket).subjects(f"$O.{bucket.name}.C.>")


def write_at_once(bucket: KVBucket, keys: Iterable[str]) -> None:
    """Write empty values without waiting for an answer to each; return when the bucket has them."""
    connection = bucket._connection
    messages = [f"PUB $KV.{bucket.name}.{key} 0\r\n\r\n".encode() for key in keys]
    host, _, port = connection.server_info.url.partition("://")[2].rpartition(":")
    options = {"auth_token": connection.config.token, "verbose": False}
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(b"CONNECT %b\r\n%bPING\r\n" % (json.dumps(options).encode(), b"".join(messages)))
        wait_until(lambda: raw_kv(bucket).state["messages"] == len(messages), "all are stored", timeout=30)


@contextlib.contextmanager
def api_calls(bucket: KVBucket | ObjectBucket) -> Iterator[Callable[[], list[str]]]:
    """Watch through a second connection which calls of JetStream's API concern the bucket."""
    connection, seen = bucket._connection, list[str]()
    watching = Listening("$JS.API.>", lambda message: seen.append(message.subject), lambda error: None)
    with mono_sync.connect(connection.server_info.url, token=connection.config.token, name="watcher") as watcher:
        watcher.start_listening(watching, Deadline(5))
        watcher.flush()  # the subscription has arrived

        def calls() -> list[str]:
            watcher.flush()  # and so has what was said before
            return [subject.removeprefix("$JS.API.") for subject in seen if bucket._stream in subject.split(".")]

        yield calls


def together(count: int, function: Callable[[int], T]) -> list[T]:
    """Call a function in so many threads at the same moment; return or raise what they do."""
    barrier = threading.Barrier(count)

    def run(number: int) -> T:
        barrier.wait(10)
        return function(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


@contextlib.contextmanager
def refused(kind: type[E], transaction: Transaction[V, W]) -> Iterator[tuple[Transaction[V, W], list[E]]]:
    """Use a transaction whose end raises, and nothing before it; the error is in the list afterwards."""
    caught = list[E]()
    yield transaction.__enter__(), caught
    with pytest.raises(kind) as info:
        transaction.__exit__(None, None, None)
    caught.append(info.value)


class Interrupting(io.BytesIO):
    """A file in which something happens when it has been read up to a position."""

    def __init__(self, content: bytes, at: int, action: Callable[[], object]) -> None:
        super().__init__(content)
        self._at = at
        self._action: Callable[[], object] | None = action

    def read(self, size: int | None = -1, /) -> bytes:
        if self._action is not None and self.tell() >= self._at:
            action, self._action = self._action, None
            action()
        return super().read(size)


class CutProxy(Proxy):
    """Breaks the connection on which a client sends certain bytes for the n-th time.

    Before the server has them, or after it has read them and before any answer comes back. Or only holds back all
    answers from then on.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._pattern = b""
        self._countdown = 0
        self._forward_first = False
        self._mute = False
        self._answering = threading.Event()
        self._answering.set()
        self.cuts = 0

    def cut_at(self, pattern: bytes, *, occurrence: int = 1, after: bool) -> None:
        self._countdown, self._forward_first = occurrence, after
        self._pattern = pattern

    def mute_at(self, pattern: bytes, *, occurrence: int) -> None:
        self._countdown, self._mute = occurrence, True
        self._pattern = pattern

    def __exit__(self, *exception: object) -> None:
        self._answering.set()
        super().__exit__(*exception)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            from_client = source.getsockname() == self._socket.getsockname()  # raises if it has been cut already
            while data := source.recv(1 << 16):
                if not from_client:
                    self._answering.wait()
                elif self._is_cut(data):
                    if self._mute:
                        self._answering.clear()
                        target.sendall(data)
                        continue
                    source.shutdown(socket.SHUT_RDWR)
                    self._part(data, target)
                    break
                target.sendall(data)
        self._end(source, target)

    def _end(self, source: socket.socket, target: socket.socket) -> None:
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _part(self, data: bytes, target: socket.socket) -> None:
        """Do what is still to be done with what was sent last."""
        if self._forward_first:
            target.sendall(data)
            target.shutdown(socket.SHUT_WR)
            while target.recv(1 << 16):  # until the server has read everything and closes
                pass

    def _is_cut(self, data: bytes) -> bool:
        if self._countdown <= 0:
            return False
        self._countdown -= data.count(self._pattern)
        if self._countdown > 0:
            return False
        self.cuts += 1
        return True


class HalvingProxy(CutProxy):
    """Breaks the connection in the middle of what is sent at a time: the server gets what comes before the pattern."""

    def _part(self, data: bytes, target: socket.socket) -> None:
        self._forward_first = True
        super()._part(data[: data.rindex(b"HPUB ", 0, data.index(self._pattern))], target)


class LateProxy(CutProxy):
    """Breaks the connection, and lets what was sent last arrive long after that, as a network may."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._late, self._delivered = threading.Event(), threading.Event()
        self._kept: socket.socket | None = None

    def deliver(self) -> None:
        """Let it arrive."""
        self._late.set()
        assert self._delivered.wait(10)

    def __exit__(self, *exception: object) -> None:
        self._late.set()
        super().__exit__(*exception)

    def _part(self, data: bytes, target: socket.socket) -> None:
        self._kept, self._forward_first = target, True
        try:
            self._late.wait()
            super()._part(data, target)
        finally:
            self._delivered.set()

    def _end(self, source: socket.socket, target: socket.socket) -> None:
        if source is self._kept:  # the other direction
            self._delivered.wait()
        super()._end(source, target)


@contextlib.contextmanager
def through(proxy: CutProxy, connection: Connection, objects: ObjectBucket) -> Iterator[ObjectBucket]:
    """Open the bucket through a connection that the proxy can break."""
    options: dict[str, Any] = {"reconnect_wait": 0.01, "reconnect_max_wait": 0.05}
    with mono_sync.connect(proxy.url, token=connection.config.token, **options) as opened:
        yield opened.objects(objects.name)


def restricting(denied: str) -> str:
    """Return the configuration of a server with a user ``a``, and a user ``u`` who may not publish on a subject."""
    limits = f"permissions: {{ publish: {{ deny: ['{denied}'] }} }}"
    users = f"{{ user: u, password: p, {limits} }}, {{ user: a, password: p }}"
    return f"jetstream: enabled\naccounts {{ A {{ jetstream: enabled, users: [ {users} ] }} }}"


LIVE = bytes(20 * 128 * 1024)


def restart_at_a_removal(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a server forget the bucket ``b`` in memory, and somebody fill it anew, before a message is removed."""
    api = JetStream.api

    def restart_first(jetstream: JetStream, subject: str, *arguments: Any, **options: Any) -> Json:
        if subject.startswith("STREAM.MSG.DELETE."):
            monkeypatch.setattr(JetStream, "api", api)
            server.kill()
            server.start()
            with mono_sync.connect(server.url) as another:
                another.objects(FSBucketConfig("b", storage="memory")).put("live", LIVE)
        return api(jetstream, subject, *arguments, **options)

    monkeypatch.setattr(JetStream, "api", restart_first)
