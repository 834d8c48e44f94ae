"""Start and stop of an application on the embedded server, and how much of it is the server alone."""

from __future__ import annotations

import statistics
import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import mono_sync

ROUNDS = 20


class Module:
    """A module that does nothing, so that only the frame is measured."""

    name = "empty"

    def start(self) -> None: ...

    def stop(self) -> None: ...


def new_application() -> mono_sync.MonoApplication:
    app = mono_sync.MonoApplication()
    app.register_plugin(mono_sync.KVJetStreamPlugin([mono_sync.KVBucketConfig("kv", storage="memory")]), "kv")
    app.register(Module())
    return app


def measure(target: mono_sync.MonoApplication | mono_sync.EmbeddedServer) -> tuple[float, float]:
    """Return the milliseconds of start and stop."""
    begin = time.perf_counter()
    target.start()
    started = time.perf_counter()
    target.stop()
    return (started - begin) * 1e3, (time.perf_counter() - started) * 1e3


@pytest.mark.benchmark(group="application on the embedded server")
def test_start_and_stop(benchmark: BenchmarkFixture) -> None:
    measure(new_application())
    rounds = [(measure(new_application()), measure(mono_sync.EmbeddedServer())) for _ in range(ROUNDS)]
    for position, step in enumerate(("start", "stop")):
        benchmark.extra_info[f"{step}_ms"] = round(statistics.median(app[position] for app, _ in rounds), 1)
        of_server = statistics.median(server[position] for _, server in rounds)
        benchmark.extra_info[f"{step}_of_the_server_alone_ms"] = round(of_server, 1)
    benchmark.pedantic(lambda: measure(new_application()), rounds=5, iterations=1)  # type: ignore[no-untyped-call]
