"""What the user sees while the demo works: one line that changes on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from mono_sync.demo._text import counted, size_text

_ON_TERMINAL = 0.1
_ELSEWHERE = 2.0


class Progress:
    """Shows how far a step is. Its steps may be advanced from any thread.

    Args:
        out: where to write.
        clock: seconds, for tests.
    """

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._terminal = out.isatty()
        self._interval = _ON_TERMINAL if self._terminal else _ELSEWHERE

    @contextmanager
    def step(self, title: str, files: int, size: int) -> Iterator[Callable[[int], None]]:
        """Show a step; the block gets a function to be called with the size of each file that is done.

        However the block ends, the last line says how far it got.
        """
        done_files = done_size = 0
        lock = threading.Lock()
        shown = self._clock()

        def line() -> str:
            share = done_size / size if size else done_files / max(1, files)
            of_size = f"{size_text(done_size):>8} of {size_text(size)}"
            return f"{title:<10}{done_files:>7,} of {counted(files, 'file')} {of_size}  {share:>4.0%}"

        def advance(file_size: int) -> None:
            nonlocal done_files, done_size, shown
            with lock:
                done_files += 1
                done_size += file_size
                if self._clock() - shown >= self._interval:
                    shown = self._clock()
                    self._write(line(), last=False)

        if self._terminal:
            self._write(line(), last=False)
        try:
            yield advance
        finally:
            with lock:
                self._write(line(), last=True)

    def _write(self, line: str, *, last: bool) -> None:
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            self._out.write(f"\r{line[:width]}\x1b[K" + ("\n" if last else ""))
        else:
            self._out.write(line + "\n")
        self._out.flush()
