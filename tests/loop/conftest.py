from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mono_sync.loop import LoopThread
from tests.support.threads import Background

MakeLoop = Callable[..., LoopThread]


@pytest.fixture
def make_loop() -> Iterator[MakeLoop]:
    """Make loop threads that are stopped after the test."""
    made: list[LoopThread] = []

    def make(*args: Any, **options: Any) -> LoopThread:
        made.append(LoopThread(*args, **options))
        return made[-1]

    yield make
    for loop in made:
        loop.stop()


@pytest.fixture
def loop(make_loop: MakeLoop) -> LoopThread:
    """A loop thread that runs already, so that short deadlines are not spent on its start."""
    loop = make_loop()
    loop.start()
    return loop


@pytest.fixture
def background() -> Iterator[Callable[..., Background]]:
    """Run a function in a thread of its own, which must have ended with the test."""
    running: list[Background] = []

    def run(fn: Callable[..., Any], *args: Any) -> Background:
        running.append(Background(fn, *args))
        return running[-1]

    yield run
    for one in running:
        one.join(10)
        assert not one.is_alive()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Something that code on the loop thread can block on; open after the test at the latest."""
    event = threading.Event()
    yield event
    event.set()
