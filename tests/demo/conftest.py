"""What the tests of the demo share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import mono_sync
from mono_sync.__main__ import main

Run = Callable[..., tuple[int, str, str]]

FILES = {
    "a.txt": b"the cat and the dog",
    "sub/b.txt": "The bird, the CAT; grün grÜn\n".encode() * 40,
    "sub/deep/empty.txt": b"",
    "binary.bin": b"\0the\1cat" * 100_000,
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with FILES."""
    root = tmp_path / "files"
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process; return exit code, output and error output."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main(["demo", *map(str, arguments)])
        except SystemExit as error:
            code = int(error.code or 0)
        output, errors = capsys.readouterr()
        return code, output, errors

    return run


@pytest.fixture
def start_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command as a process of its own, in which every warning is an error; it ends with the test.

    ``through`` is a command that starts it in its turn.
    """
    started = []

    def start(*arguments: object, stdout: int = subprocess.PIPE, through: Sequence[str] = ()) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*through, sys.executable, "-W", "error", "-m", "mono_sync", "demo", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(Path(mono_sync.__file__).parent.parent)},
            cwd=tmp_path_factory.mktemp("elsewhere"),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:  # closes the pipes and waits
            process.kill()
