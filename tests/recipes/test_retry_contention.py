"""The default policy when many write the same key of a real server at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from mono_sync import KVBucket, RetryPolicy
from mono_sync.server import EmbeddedServer
from tests.fixtures.processes import Program

THREADS, PROCESSES, TIMES = 64, 4, 10

CHILD = """
import sys
from mono_sync import RetryPolicy, connect
server, token, name, times = sys.argv[1:]
with connect(server, token=token) as connection:
    kv = connection.kv(name)

    @RetryPolicy()
    def add():
        entry = kv.get_entry("counter")
        kv.update("counter", b"%d" % (int(entry.value) + 1), entry.revision)

    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(times)):
        add()
"""


def test_the_defaults_let_64_threads_and_4_processes_add_to_one_counter(
    kv: KVBucket, nats_server: EmbeddedServer
) -> None:
    kv.create("counter", b"0")

    def add_often() -> None:
        for _ in range(TIMES):
            for attempt in RetryPolicy():
                with attempt:
                    entry = kv.get_entry("counter")
                    kv.update("counter", b"%d" % (int(entry.value) + 1), entry.revision)

    with ExitStack() as stack:
        arguments = (nats_server.url, nats_server.token, kv.name, str(TIMES))
        programs = [stack.enter_context(Program(CHILD, *arguments)) for _ in range(PROCESSES)]
        assert [program.line() for program in programs] == ["ready"] * PROCESSES
        pool = stack.enter_context(ThreadPoolExecutor(THREADS))
        results = [pool.submit(add_often) for _ in range(THREADS)]
        for program in programs:
            program.send("go")
        assert [program.finish() for program in programs] == [(0, "", "")] * PROCESSES
        for result in results:
            result.result()
    assert kv.get("counter") == b"%d" % ((THREADS + PROCESSES) * TIMES)
