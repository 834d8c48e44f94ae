"""redis-py and its connection pool, on a Redis of our own that writes nothing to disk."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import redis

from benchmarks.peers.contender import KEY, VALUE, Blocking
from tests.fixtures.waiting import wait_until
from tests.support.network import LOOPBACK, unused_port


class RedisPy(Blocking):
    """One connection per thread that calls at the same time, as redis-py's default pool has it."""

    name = "redis-py"

    def __init__(self, port: int) -> None:
        self._client = redis.Redis(host=LOOPBACK, port=port)

    def get(self) -> bytes:
        value = self._client.get(KEY)
        assert isinstance(value, bytes)
        return value

    def set(self) -> None:
        self._client.set(KEY, VALUE)

    def answers(self) -> bool:
        """Return whether the server is there."""
        try:
            return bool(self._client.ping())
        except redis.ConnectionError:
            return False

    def server_version(self) -> str:
        return str(self._client.info("server")["redis_version"])

    def close(self) -> None:
        self._client.close()


@contextmanager
def running_redis(binary: str, folder: Path) -> Iterator[RedisPy]:
    """Run a redis-server for the time of the ``with``, and yield a client of it."""
    port = unused_port()
    command = [
        binary,
        "--bind",
        LOOPBACK,
        "--port",
        str(port),
        "--dir",
        str(folder),
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            with closing(RedisPy(port)) as client:
                wait_until(client.answers, "redis-server answers")
                yield client
        finally:
            process.terminate()
