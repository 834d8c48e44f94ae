"""The end of the interpreter, in every order: quick, silent, with the right exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.fixtures.processes import without_slowness

ROOT = Path(__file__).parents[2]

PRELUDE = """
import asyncio, atexit, os, signal, sys, threading, time
from mono_sync import ClosedError, Deadline, LoopThread

loop = LoopThread("mono_sync-loop-exit")

async def one():
    return 1

async def forever():
    await asyncio.get_running_loop().create_future()

def use(timeout=10):
    return loop.run(one, deadline=Deadline(timeout), operation="use")

"""


def run(program: str, *, timeout: float = 20) -> subprocess.CompletedProcess[str]:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", PRELUDE + textwrap.dedent(program)],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
    )
    assert time.monotonic() - start < 8
    done.stderr = without_slowness(done.stderr)
    return done


SILENT = {
    "never used": "",
    "used and stopped": "use(); loop.stop()",
    "used and not stopped": "use()",
    "used and forgotten in a cycle": """
        use()
        holder = [loop]
        holder.append(holder)
    """,
    "tasks left": """
        async def leave():
            global left
            left = asyncio.create_task(forever())
        loop.run(leave, deadline=Deadline(5), operation="leave")
    """,
    "a daemon thread waits for ever": """
        use()
        started = threading.Event()
        async def wait():
            started.set()
            await forever()
        def body():
            loop.run(wait, deadline=Deadline(None), operation="wait")
        threading.Thread(target=body, daemon=True).start()
        started.wait()
    """,
    "an exit handler registered later uses it": """
        use()
        atexit.register(lambda: print("handler", use()))
    """,
    "an exit handler registered before gets an error and no hang": """
        def handler():
            try:
                use()
            except ClosedError:
                print("handler closed")
        atexit.register(handler)
        use()
    """,
    "a thread goes on after the main thread": """
        use()
        def body():
            threading.main_thread().join()
            for _ in range(100):
                use()
            print("handler done")
        threading.Thread(target=body).start()
    """,
    "sys.exit in a thread": """
        use()
        def body():
            use()
            sys.exit(5)
        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
    """,
    "stopped by an exit handler": """
        atexit.register(loop.stop)
        use()
    """,
}


@pytest.mark.parametrize("program", SILENT.values(), ids=SILENT.keys())
def test_it_ends_silently(program: str) -> None:
    done = run(program)
    assert (done.returncode, done.stderr) == (0, "")
    if "handler" in program and "print" in program:
        assert "handler" in done.stdout


def test_an_exception_in_the_main_thread_is_all_that_is_seen() -> None:
    done = run("use()\nraise ValueError('mine')")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("ValueError: mine")
    assert done.stderr.count("Traceback") == 1


def test_sys_exit_keeps_its_code() -> None:
    done = run("use()\nsys.exit(7)")
    assert (done.returncode, done.stderr) == (7, "")


def test_a_child_forked_from_a_running_one_ends_silently() -> None:
    done = run(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        use()
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            use()
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_ends_a_call_at_once_cancels_it_and_leaves_the_loop_usable() -> None:
    program = """
        ended = threading.Event()
        started = threading.Event()

        async def wait():
            started.set()
            try:
                await forever()
            finally:
                ended.set()

        def interrupt():
            started.wait()
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        start = time.monotonic()
        try:
            loop.run(wait, deadline=Deadline(None), operation="wait")
        except KeyboardInterrupt:
            assert time.monotonic() - start < 2
            assert ended.wait(2)
            print("cancelled", use())
    """
    done = run(program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cancelled 1\n", "")


def test_it_dies_of_a_signal_like_any_program() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + "use(); print('up', flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(5) == -signal.SIGTERM
