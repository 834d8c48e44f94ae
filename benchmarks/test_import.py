"""What ``import mono_sync`` costs against ``import nats``, each in fresh interpreters taking turns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import Compare, Figure, Goals


def import_time(module: str, cache: Path) -> float:
    """Return the seconds that an import takes, the start of the interpreter left out."""
    program = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(cache)  # both from compiled files, as a user has them after the first run
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout)


@pytest.mark.benchmark(group="import")
def test_import(compare: Compare, tmp_path: Path) -> None:
    figure = Figure("import mono_sync", "import nats", Goals(must=1.5))
    compare(figure, lambda: import_time("mono_sync", tmp_path), lambda: import_time("nats", tmp_path), rounds=15)
