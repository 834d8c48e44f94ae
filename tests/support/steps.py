"""Something that happens between two steps of the code under test, as a signal handler or a ``__del__`` would."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, ModuleType, TracebackType
from typing import Any, Self

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


class Signalled:
    """Calls ``action`` the n-th time that the interpreter may run a signal handler in the code of some modules.

    That is when a function begins and when one in C has returned. It does so between no other two steps, on which the
    ``with`` of a lock relies; `interrupted` knows no such difference.

    No garbage is collected meanwhile: what an earlier interrupt has left in a cycle would end at some moment of this
    one, and an error in a ``__del__`` reaches nobody.

    Attributes:
        happened: whether there was such a moment.
    """

    def __init__(self, moment: int, action: Callable[[], object], modules: Iterable[ModuleType]) -> None:
        self.happened: bool = False
        self._left = moment
        self._action = action
        self._files = {module.__file__ for module in modules}

    def __enter__(self) -> Self:
        self._before, self._collects = sys.getprofile(), gc.isenabled()
        gc.disable()
        sys.setprofile(self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        sys.setprofile(self._before)
        if self._collects:
            gc.enable()

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "c_return") or frame.f_code.co_filename not in self._files:
            return
        self._left -= 1
        if self._left == 0:
            self.happened = True
            self._action()
