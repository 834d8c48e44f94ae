"""Start and stop of an application on the embedded server, and how much of it is the server alone."""

from __future__ import annotations

import time
from typing import Literal

import pytest

import mono_sync
from benchmarks.measure import Compare, Figure


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


def measure(target: mono_sync.MonoApplication | mono_sync.EmbeddedServer, step: Literal["start", "stop"]) -> float:
    """Start and stop, and return the seconds of one of the two."""
    begin = time.perf_counter()
    target.start()
    started = time.perf_counter()
    target.stop()
    return started - begin if step == "start" else time.perf_counter() - started


@pytest.mark.benchmark(group="application on the embedded server")
@pytest.mark.parametrize("step", ["start", "stop"])
def test_application(compare: Compare, step: Literal["start", "stop"]) -> None:
    compare(
        Figure(f"{step} of an application", "its server alone"),
        lambda: measure(new_application(), step),
        lambda: measure(mono_sync.EmbeddedServer(), step),
        rounds=10,
    )
