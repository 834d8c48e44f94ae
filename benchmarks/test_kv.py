"""Key-value calls from one thread against nats-py driven by ``run_coroutine_threadsafe``."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import mono_sync
from benchmarks.conftest import VALUE, Naive, compare


@pytest.mark.benchmark(group="kv, one thread")
def test_get(benchmark: BenchmarkFixture, bucket: mono_sync.KVBucket, naive: Naive) -> None:
    compare(benchmark, lambda: bucket.get("key"), naive.get, rounds=40, calls=50)


@pytest.mark.benchmark(group="kv, one thread")
def test_put(benchmark: BenchmarkFixture, bucket: mono_sync.KVBucket, naive: Naive) -> None:
    compare(benchmark, lambda: bucket.set("key", VALUE), naive.put, rounds=40, calls=50)
