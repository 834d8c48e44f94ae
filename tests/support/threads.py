"""Calls on threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Background(threading.Thread):
    """A call on a daemon thread of its own, whose result or exception the test asks for."""

    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        super().__init__(target=self._note, args=(call, *args), name="test-background", daemon=True)
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def _note(self, call: Callable[..., Any], *args: Any) -> None:
        try:
            self._result = call(*args)
        except BaseException as error:
            self._error = error

    def error(self, timeout: float = 20.0) -> BaseException | None:
        """Wait for the end, and return what it raised."""
        self.join(timeout)
        assert not self.is_alive(), f"still running after {timeout:g} s"
        return self._error

    def result(self, timeout: float = 20.0) -> Any:
        """Wait for the end, and return or raise what came of it."""
        error = self.error(timeout)
        if error is not None:
            raise error
        return self._result


class Repeated:
    """Calls functions again and again, each on a thread of its own, until the end of the ``with``."""

    def __init__(self, functions: Iterable[Callable[[], object]]) -> None:
        self._functions = list(functions)
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(len(self._functions))

    def __enter__(self) -> None:
        self._results = [self._pool.submit(self._repeat, function) for function in self._functions]

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for result in self._results:
            result.result()

    def _repeat(self, function: Callable[[], object]) -> None:
        while not self._stop.is_set():
            function()
