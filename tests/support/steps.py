"""Something that happens between two steps of the code under test, as a signal handler or a ``__del__`` would."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from mono_sync.adapter import _inlet, _outlet, _wire

_FILES = {_inlet.__file__, _outlet.__file__, _wire.__file__}


@contextlib.contextmanager
def interrupted(step: int, action: Callable[[], object]) -> Iterator[Callable[[], bool]]:
    """Call ``action`` in this thread before a given step of the lanes' bytecode; yield what tells whether it was."""
    left = step

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in _FILES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                action()
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks at this when it begins to trace, and not later
    sys.settrace(trace)
    try:
        yield lambda: left <= 0
    finally:
        sys.settrace(before)
