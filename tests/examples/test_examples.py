"""The examples do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mono_sync

EXAMPLES = Path(__file__).parents[2] / "examples"
OUTPUT = {
    "counter.py": r"4 threads, 400 increments, [1-9]\d* conflicts\nvisits = 400\n",
    "custom_plugin.py": (
        r"5 questions, 2 calculated: \[500, 400, 500, 500, 400\]\n"
        r"all prices have expired, and the clean-up thread has removed them\n"
        r"1 question more, 3 calculated: 500\n"
    ),
    "multiple_instances.py": (
        r"read 31 bytes from primary\n"
        r"the primary storage has lost report\.pdf\n"
        r"read 31 bytes from backup\n"
        r"read 31 bytes from primary\n"
    ),
}


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(OUTPUT)


@pytest.mark.parametrize("name", OUTPUT)
def test_example_prints_what_it_promises_without_a_warning(name: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        env={**os.environ, "PYTHONPATH": str(Path(mono_sync.__file__).parent.parent)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert re.fullmatch(OUTPUT[name], run.stdout), run.stdout
    assert not run.stderr


@pytest.mark.parametrize("name", OUTPUT)
def test_example_says_how_to_run_it(name: str) -> None:
    assert f"\nRun it: python examples/{name}\n" in (EXAMPLES / name).read_text("utf-8")
