"""The running part of a loop thread: all that the thread itself holds."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final

from mono_sync._durations import Deadline
from mono_sync._threads import WaitedForThread, frame_of, start_thread
from mono_sync.errors import ClosedError, LoopStartError
from mono_sync.loop._call import Call

_log = logging.getLogger("mono_sync.loop")

_DRAIN_SHARE: Final = 0.8  # of the time that a stop may take; the rest is for closing and joining
_WORKER_GRACE: Final = 0.5  # for jobs in the loop's executor, which nothing can interrupt: a stalled DNS look-up, say
_EXIT_TIMEOUT: Final = 3.0  # for all loop threads together
_EXIT_PATIENCE: Final = 5.0  # see Core.refuse


class Core:
    """What thread and callers share. It knows nothing of the `LoopThread`, so that one can be collected."""

    def __init__(
        self, name: str, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None, start_timeout: float
    ) -> None:
        self.pid: int = os.getpid()
        self.calls: dict[Call[Any], bool] = {}
        self.loop: asyncio.AbstractEventLoop | None = None
        self.failure: BaseException | None = None
        self.up: threading.Event = threading.Event()  # the loop runs, or has failed to
        self.ended: threading.Event = threading.Event()
        self.stopping: bool = False
        self.exiting: bool = False  # stopping because the interpreter exits
        self.start_deadline: Deadline = Deadline(start_timeout)
        self.thread: threading.Thread = threading.Thread(
            target=self._main, args=(loop_factory,), name=name, daemon=True
        )
        self._drain_timeout = _EXIT_TIMEOUT
        self._winding_up: asyncio.Task[None] | None = None
        self._wound_up = False

    # --- from other threads

    def launch(self, bound: float) -> None:
        """Start the thread, and return at the latest after ``bound`` seconds, also if it does not run."""
        _stop_at_exit(self)
        try:
            start_thread(self.thread, bound)
        except LoopStartError:
            pass  # a slow machine, perhaps: whoever waits for `up` decides when to give up
        except BaseException as error:
            self.fail_start(error)
            raise

    def fail_start(self, error: BaseException) -> None:
        """Give up a start: everybody who waits for it learns why, and a thread that comes up late ends at once."""
        self.failure = error
        self.request_stop()
        _live.pop(self, None)
        self.up.set()

    def post(self, callback: Callable[[], object]) -> bool:
        """Run ``callback`` on the loop soon; return whether there is a loop left."""
        assert self.loop is not None
        try:
            self.loop.call_soon_threadsafe(callback)
        except RuntimeError:  # closed
            return False
        return True

    def request_stop(self, timeout: float | None = _EXIT_TIMEOUT) -> None:
        """Let the thread end in good order, which should take less than ``timeout`` seconds; does not wait."""
        if not self.stopping and timeout is not None:
            self._drain_timeout = timeout * _DRAIN_SHARE
        self.stopping = True
        if self.loop is not None:  # else the thread sees `stopping` when it gets there
            self.post(self._begin_to_stop)

    def join(self, deadline: Deadline) -> bool:
        """Wait until the thread has ended; return whether it has."""
        if self.ended.wait(deadline.remaining):
            self.thread.join(deadline.remaining)
            return not self.thread.is_alive()
        return False

    def forget(self) -> None:
        """Leave the thread alone from now on, also at interpreter exit."""
        _live.pop(self, None)

    def closed_error(self) -> ClosedError:
        error = ClosedError(f"the event-loop thread {self.thread.name!r} is not running any more")
        error.__cause__ = self.failure
        return error

    def refuse(self, call: Call[Any]) -> None:
        """End a call that a stop has overtaken.

        At interpreter exit only daemon threads can still wait. They end with the process, and an exception in them
        would only print a traceback; so they go on waiting, but not for ever: an exit handler might join them.
        """
        if not self.exiting:
            call.fail(self.closed_error())

    def refuse_new_call(self) -> ClosedError:
        """Return the error for a call that comes after the stop; a daemon thread at exit gets it late, as above."""
        thread = threading.current_thread()
        if self.exiting and thread.daemon and not isinstance(thread, WaitedForThread):
            time.sleep(_EXIT_PATIENCE)
        return self.closed_error()

    def fail_calls(self) -> None:
        """Wake whoever still waits."""
        for call in list(self.calls):
            call.fail(self.closed_error())

    def stack(self) -> str:
        """Return where the thread is, for a log."""
        frame = frame_of(self.thread.ident or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else "(it does not run)\n"

    # --- in the thread

    def _main(self, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None) -> None:
        try:
            loop = (loop_factory or asyncio.new_event_loop)()
        except BaseException as error:  # for those who wait for the start
            self.fail_start(error)
            self.ended.set()
            return
        executor, workers = _equip(loop, self.thread.name)
        try:
            self.loop = loop
            loop.call_soon(self.up.set)
            if self.stopping:
                loop.call_soon(self._begin_to_stop)
            self._serve(loop)
            if executor is not None:
                _dismiss(executor, workers)
        finally:
            loop.close()
            self.stopping = True
            self.up.set()
            self.ended.set()
            if self.exiting and self.calls:
                time.sleep(_EXIT_PATIENCE)
            self.fail_calls()
            _live.pop(self, None)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._wound_up:  # somebody on the loop may have called loop.stop()
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:  # asyncio lets these two end the loop
                _log.error("a task of the event-loop thread raised %s; the loop goes on", type(error).__name__)

    def _begin_to_stop(self) -> None:
        if self._winding_up is None and not self._wound_up:  # several stops may have been asked for
            loop = asyncio.get_running_loop()
            self._winding_up = loop.create_task(self._wind_up(loop), name="stopping the event-loop thread")
            self._winding_up.add_done_callback(self._finish)

    def _finish(self, winding_up: asyncio.Task[None]) -> None:
        self._wound_up = True
        self._winding_up = None
        asyncio.get_running_loop().stop()
        if not winding_up.cancelled() and (error := winding_up.exception()) is not None:
            _log.error("stopping the event-loop thread failed: %r", error)

    async def _wind_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel what still runs and let it end, so that nothing is destroyed while pending.

        A task that ignores being cancelled keeps the thread, but not those who wait for it or for the stop.
        """
        deadline = Deadline(self._drain_timeout)
        pause = max(self._drain_timeout / 4, 0.05)
        reported = False
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=pause)
            if deadline.expired and not reported:
                reported = True
                self._report(asyncio.all_tasks() - {asyncio.current_task()})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(pause, deadline.remaining or 0)):
                await loop.shutdown_asyncgens()
        await asyncio.sleep(0)  # transports that the tasks closed at their end need a pass to let go of the socket

    def _report(self, tasks: set[asyncio.Task[Any]]) -> None:
        if tasks and not self.exiting:
            names = ", ".join(sorted(task.get_name() for task in tasks))
            _log.warning("%s: cancelled, but refuse to end: %s", self.thread.name, names)
            self.fail_calls()


def _equip(loop: asyncio.AbstractEventLoop, name: str) -> tuple[Executor | None, list[threading.Thread]]:
    """Give the loop an executor whose threads we know: the loop's own can only be waited for without a limit."""
    workers: list[threading.Thread] = []
    try:
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  # its import registers a hook for the exit

        executor = ThreadPoolExecutor(
            thread_name_prefix=f"{name}-worker", initializer=lambda: workers.append(threading.current_thread())
        )
    except RuntimeError:  # the interpreter exits: too late for more threads, but not for the loop
        return None, workers
    loop.set_default_executor(executor)
    return executor, workers


def _dismiss(executor: Executor, workers: list[threading.Thread]) -> None:
    executor.shutdown(wait=False, cancel_futures=True)
    grace = Deadline(_WORKER_GRACE)
    for worker in workers:
        worker.join(grace.remaining)
        if worker.is_alive():
            _log.warning("%s is busy with a job that cannot be interrupted; it ends with it", worker.name)


# --- interpreter exit

_live: dict[Core, None] = {}
"""The cores whose threads run. No lock guards it, so none can be inherited locked by a forked child; it also keeps what
a child inherits from being collected, which would disturb the parent."""
_hooked: list[bool] = []


def _stop_at_exit(core: Core) -> None:
    _live[core] = None
    if not _hooked:  # twice would do no harm
        _hooked.append(True)
        atexit.register(_stop_all)


def _stop_all() -> None:
    """Let every loop thread end while the interpreter still can: signal all, then wait for all."""
    cores = [core for core in list(_live) if core.pid == os.getpid()]
    for core in cores:
        core.exiting = True
        core.request_stop()
    deadline = Deadline(_EXIT_TIMEOUT)
    for core in cores:
        core.ended.wait(deadline.remaining)
