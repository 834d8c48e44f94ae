"""The end of the interpreter: what other threads, other loop threads and exit handlers make of it."""

from __future__ import annotations

import pytest

from tests.loop.test_exit import run

SILENT = {
    "a daemon thread that calls again and again": """
        use()
        def body():
            while True:
                use()
        for _ in range(4):
            threading.Thread(target=body, daemon=True).start()
        time.sleep(0.1)
    """,
    "an exit handler that starts the first loop thread": """
        from mono_sync import LoopStartError
        def handler():
            try:
                outcome = use()
            except LoopStartError as error:  # Python 3.12 refuses new threads by then
                outcome = error
            print("told:", outcome)
        atexit.register(handler)
    """,
    "a handler registered between two starts": """
        other = LoopThread("mono_sync-loop-other")
        use()
        atexit.register(lambda: print("told:", use(), other.call(int, deadline=Deadline(5), operation="x")))
        other.start()
    """,
    "an object that stops it when the interpreter takes it down": """
        class Owner:
            def __del__(self):
                loop.stop()
        owner = Owner()
        use()
    """,
    "its executor was used": """
        async def job():
            await asyncio.get_running_loop().run_in_executor(None, int)
        loop.run(job, deadline=Deadline(5), operation="job")
    """,
    "a loop that is stuck": """
        def block():
            time.sleep(60)
        threading.Thread(
            target=lambda: loop.call(block, deadline=Deadline(None), operation="block"), daemon=True
        ).start()
        time.sleep(0.2)
    """,
    "many loops that are stuck": """
        def block():
            time.sleep(60)
        for number in range(8):
            stuck = LoopThread()
            stuck.start()
            globals()[f"stuck{number}"] = stuck
            threading.Thread(
                target=lambda stuck=stuck: stuck.call(block, deadline=Deadline(None), operation="block"), daemon=True
            ).start()
        time.sleep(0.2)
    """,
    "an asyncio program": """
        async def main():
            print("told:", use())
        asyncio.run(main())
    """,
}


@pytest.mark.parametrize("program", SILENT.values(), ids=SILENT.keys())
def test_it_ends_silently(program: str) -> None:
    done = run(program)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("told:") == program.count("told:")


def test_an_exit_handler_that_joins_a_daemon_thread_in_a_call_does_not_hang() -> None:
    done = run("""
        begun = threading.Event()
        async def wait():
            begun.set()
            await forever()
        def body():
            try:
                loop.run(wait, deadline=Deadline(None), operation="wait")
            except ClosedError:
                print("closed")
        waiting = threading.Thread(target=body, daemon=True)
        atexit.register(waiting.join)
        use()
        waiting.start()
        begun.wait()
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")


def test_one_that_was_dropped_and_never_stopped_says_so_and_nothing_else() -> None:
    done = run("""
        use()
        del loop
    """)
    assert done.returncode == 0
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ResourceWarning: <LoopThread 'mono_sync-loop-exit' running> was never stopped: call stop()"
    assert done.stderr.count("Warning:") == 1


def test_it_works_and_ends_with_uvloop() -> None:
    """In a process of its own: uvloop keeps a pipe for as long as the process lives."""
    done = run("""
        import uvloop
        from mono_sync import OperationTimeoutError
        def attempt(fn, *args, timeout):
            try:
                return fn(*args, deadline=Deadline(timeout), operation="attempt")
            except BaseException as error:
                return type(error).__name__
        for _ in range(20):
            loop = LoopThread(loop_factory=uvloop.new_event_loop)
            assert isinstance(loop.call(asyncio.get_running_loop, deadline=Deadline(5), operation="x"), uvloop.Loop)
            assert attempt(loop.run, one, timeout=None) == 1
            assert attempt(loop.run, forever, timeout=0.01) == "OperationTimeoutError"
            assert attempt(loop.call, sys.exit, timeout=5) == "SystemExit"
            async def leave():
                global left
                left = asyncio.create_task(forever())
            loop.run(leave, deadline=Deadline(5), operation="leave")
            loop.stop()
            assert left.cancelled()
            assert threading.active_count() == 1
        loop = LoopThread(loop_factory=uvloop.new_event_loop)
        use()
    """)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_exception_in_a_thread_is_all_that_is_seen() -> None:
    done = run("""
        def body():
            use()
            raise ValueError("mine")
        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
    """)
    assert done.returncode == 0
    assert done.stderr.strip().endswith("ValueError: mine")
    assert done.stderr.count("Traceback") == 1


def test_ctrl_c_in_a_call_that_nobody_catches_ends_the_program_at_once() -> None:
    done = run("""
        started = threading.Event()
        async def wait():
            started.set()
            await forever()
        def interrupt():
            started.wait()
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=interrupt, daemon=True).start()
        loop.run(wait, deadline=Deadline(None), operation="wait")
    """)
    assert done.returncode == -2
    assert done.stderr.strip().endswith("KeyboardInterrupt")
    assert done.stderr.count("Traceback") == 1
