"""What ``import mono_sync`` costs against ``import nats``, each in fresh interpreters taking turns."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 15


def import_time(module: str, cache: Path) -> float:
    """Return the seconds that an import takes, the start of the interpreter left out."""
    program = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(cache)  # both from compiled files, as a user has them after the first run
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout)


@pytest.mark.benchmark(group="import")
def test_import(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    import_time("mono_sync", tmp_path)
    pairs = [(import_time("mono_sync", tmp_path), import_time("nats", tmp_path)) for _ in range(ROUNDS)]
    benchmark.extra_info.update(
        mono_sync_ms=round(statistics.median(ours for ours, _ in pairs) * 1e3, 1),
        nats_ms=round(statistics.median(theirs for _, theirs in pairs) * 1e3, 1),
        ratio=round(statistics.median(ours / theirs for ours, theirs in pairs), 3),
    )
    benchmark.pedantic(import_time, args=("mono_sync", tmp_path), rounds=3, iterations=1)  # type: ignore[no-untyped-call]
