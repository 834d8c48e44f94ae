"""Applications that nobody stops, and what a forked child has of its parent's."""

from __future__ import annotations

import gc
import os
import re
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable

import pytest

from mono_sync import ForkedError
from mono_sync.application import ApplicationState, MonoApplication
from mono_sync.server import EmbeddedServer
from tests.application.conftest import MakeApp, on_server
from tests.application.support import Checked, Gate, Journal, Part
from tests.application.test_health import WELL
from tests.fixtures.leaks import our_threads
from tests.fixtures.processes import Program, is_running
from tests.fixtures.waiting import wait_until

# --- garbage


def abandoned(server: EmbeddedServer, journal: Journal) -> tuple[list[str], bool]:
    """Start an application, forget it; return the warnings, and whether it was collected at once."""
    app = on_server(server, name="forgotten")
    app.register(Part(journal, "orders"))
    app.start()
    gone = weakref.ref(app)
    gc.collect()
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del app
            collected = gone() is None
            gc.collect()
    finally:
        gc.enable()
    assert all(issubclass(warning.category, ResourceWarning) for warning in caught)
    return [str(warning.message) for warning in caught], collected


def test_an_application_that_is_forgotten_while_it_runs_warns_with_its_name(
    nats_server: EmbeddedServer, journal: Journal
) -> None:
    messages, collected = abandoned(nats_server, journal)
    assert collected, "nothing may keep it alive, no thread and no cycle"
    assert messages[0] == (
        "<MonoApplication 'forgotten' RUNNING> was never stopped: call stop() or use it as a context manager"
    )
    assert journal == ["orders.start"]
    wait_until(lambda: not [name for name in our_threads() if "forgotten" in name], "its threads end")


def silent(make: Callable[[], None]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
        gc.collect()
    assert not [str(warning.message) for warning in caught]


def test_an_application_that_was_never_started_needs_no_stop(nats_server: EmbeddedServer) -> None:
    silent(lambda: on_server(nats_server).register(Part(Journal(), "orders")))


def test_an_application_that_was_stopped_or_has_failed_does_not_warn(nats_server: EmbeddedServer) -> None:
    def stopped() -> None:
        with on_server(nats_server):
            pass

    def failed() -> None:
        app = on_server(nats_server)
        app.register(Part(Journal(), "orders", start=ValueError("boom")))
        with pytest.raises(RuntimeError):
            app.start()

    silent(stopped)
    silent(failed)


def test_after_the_stop_no_thread_is_left(make_app: MakeApp, journal: Journal, gate: Gate) -> None:
    app = make_app(name="clean", shutdown_timeout=0.5)
    app.register(Part(journal, "stuck", stop=gate))
    app.register(Checked(journal, "well", WELL))
    app.start()
    app.health()
    with pytest.raises(ExceptionGroup):
        app.stop()
    gate.release()
    wait_until(lambda: not [name for name in our_threads() if "clean" in name or "health" in name], "threads end")


def test_a_constructor_that_fails_says_only_why() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="name must be"):
            MonoApplication(name="")
        gc.collect()
    assert not caught


# --- the end of the interpreter

NEVER_STOPPED = """
import sys, threading
from mono_sync import MonoApplication

class Module:
    name = "orders"
    def start(self):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    def stop(self):
        print("stopped", flush=True)

app = MonoApplication()
app.register(Module())
app.start()
print(app.connection.server.pid, flush=True)
"""


@pytest.mark.parametrize(
    ("ending", "expected"),
    [("", 0), ("sys.exit(3)", 3), ("raise ValueError('the program failed')", 1)],
    ids=["end", "exit", "exception"],
)
def test_a_program_that_never_stops_its_application_ends_at_once_and_leaves_no_server(
    ending: str, expected: int
) -> None:
    with Program(NEVER_STOPPED + ending) as program:
        server = int(program.line())
        code, out, err = program.finish(timeout=20)
    assert code == expected
    assert out == ""
    reasons = [line.partition(":")[0] for line in err.splitlines() if re.match(r"\w+(Error|Warning|Exit): ", line)]
    assert reasons == [*(["ValueError"] if "failed" in ending else []), "ResourceWarning", "ResourceWarning"]
    assert "ResourceWarning: <MonoApplication 'mono' RUNNING> was never stopped" in err
    wait_until(lambda: not is_running(server), "its server has ended")


def test_a_program_that_hangs_in_a_start_can_be_killed_without_an_orphan() -> None:
    with Program(NEVER_STOPPED + "import time\ntime.sleep(60)") as program:
        server = int(program.line())
        program.kill()
        wait_until(lambda: not is_running(server), "its server has ended", timeout=20)


# --- forks


def in_child(check: Callable[[], None]) -> None:
    """Run a check in a forked child, and fail here if it fails there."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads, which is the point
        pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            check()
            os.write(write, b"ok")
        except BaseException:
            os.write(write, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answers:
        answer = answers.read().decode()
    os.waitpid(pid, 0)
    assert answer == "ok", answer


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
def test_in_a_forked_child_stop_does_nothing_and_the_parent_goes_on(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders"))
    app.start()

    def check() -> None:
        app.stop()
        assert journal == ["orders.start"]

    in_child(check)
    assert app.state is ApplicationState.RUNNING
    assert app.connection.rtt() > 0


@needs_fork
def test_in_a_forked_child_a_started_application_cannot_be_started(app: MonoApplication) -> None:
    app.start()

    def check() -> None:
        with pytest.raises(ForkedError, match="was started by process"):
            app.start()

    in_child(check)


@needs_fork
def test_in_a_forked_child_the_connection_and_health_can_be_used(app: MonoApplication, journal: Journal) -> None:
    app.register(Checked(journal, "orders", WELL))
    app.start()

    def check() -> None:
        assert app.connection.rtt() > 0
        assert app.health().healthy

    in_child(check)


@needs_fork
def test_a_health_check_that_hangs_in_the_parent_does_not_concern_the_child(
    app: MonoApplication, journal: Journal, gate: Gate
) -> None:
    module = Checked(journal, "orders", gate)
    app.register(module)
    app.start()
    app.health(timeout=0.05)

    def check() -> None:
        module.answer = WELL
        assert app.health(timeout=5).modules["orders"].healthy

    in_child(check)


@needs_fork
def test_an_application_that_was_not_started_can_be_started_in_the_child(
    app: MonoApplication, journal: Journal
) -> None:
    app.register(Part(journal, "orders"))
    locked = threading.Event()
    release = threading.Event()

    def hold() -> None:
        with app._control._lock:
            locked.set()
            release.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    assert locked.wait(20)

    def check() -> None:
        app.register(Part(journal, "late"))
        with app:
            assert app.connection.rtt() > 0
        assert journal == ["orders.start", "late.start", "late.stop", "orders.stop"]

    try:
        in_child(check)
    finally:
        release.set()
        holder.join(20)
    assert app.state is ApplicationState.CREATED
    assert not journal


@needs_fork
def test_leaving_a_with_block_in_a_forked_child_stops_nothing(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders"))
    with app:
        in_child(lambda: app.__exit__(None, None, None))
        assert journal == ["orders.start"]
        assert app.connection.rtt() > 0


@needs_fork
def test_a_forked_child_does_not_warn_of_its_parents_application(app: MonoApplication) -> None:
    app.start()

    def check() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            app.__del__()
        assert not caught

    in_child(check)
