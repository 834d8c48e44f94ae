"""The server's log file."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Final

_TAIL_BYTES: Final = 64 * 1024


class ServerLog:
    """The log of one embedded server, which may continue that of an earlier run."""

    def __init__(self, path: Path) -> None:
        """Make the file, readable by its owner only."""
        self.path = path
        self._kept: bytes | None = None
        with self.open() as file:
            self._start = file.tell()

    def open(self) -> io.BufferedWriter:
        """Open the file for the server to append to."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return os.fdopen(fd, "ab")

    def keep(self) -> None:
        """Read the end of the file for the last time, before it may be removed."""
        self._kept = self._read()

    def tail(self, lines: int) -> str:
        """Return the last lines that were written by this run."""
        content = self._read() if self._kept is None else self._kept
        return "\n".join(content.decode("utf-8", "replace").splitlines()[-lines:]) if lines > 0 else ""

    def reason(self) -> str:
        """Return the last line that says why the server cannot go on; empty if there is none."""
        for line in reversed(self.tail(100).splitlines()):
            for mark in ("[FTL] ", "nats-server: ", "panic: ", "fatal error: "):
                if mark in line:
                    return line[line.index(mark) + (len(mark) if mark.startswith("[") else 0) :].strip()
        return ""

    def _read(self) -> bytes:
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = self._start if size >= self._start else 0  # smaller: the server has begun a new file
            file.seek(max(start, size - _TAIL_BYTES))
            return file.read()
        return b""
