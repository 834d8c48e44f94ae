"""Looking where a thread is."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
from contextlib import suppress

import pytest

from mono_sync import _threads
from mono_sync._threads import frame_of
from tests.support.signals import Stop
from tests.support.steps import Signalled


def test_frame_is_that_of_the_thread_and_none_of_a_thread_that_does_not_run() -> None:
    assert frame_of(threading.get_ident()) is not None
    assert frame_of(0) is None


@pytest.mark.parametrize("collects", [True, False])
def test_whether_garbage_is_collected_stays_as_it_was_whenever_an_interrupt_comes(*, collects: bool) -> None:
    def stop() -> None:
        raise Stop

    for moment in itertools.count(1):
        with Signalled(moment, stop, [_threads]) as signalled:
            (gc.enable if collects else gc.disable)()
            with suppress(Stop):
                frame_of(threading.get_ident())
            assert gc.isenabled() == collects
        if not signalled.happened:
            break
    assert moment > (3 if sys.version_info < (3, 12) else 1)
