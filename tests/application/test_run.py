"""`run`: the life of a program between its start and the signal that ends it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from mono_sync import ApplicationStateError, ModuleStartError
from mono_sync.application import ApplicationState, MonoApplication
from mono_sync.connection import ConnectionState
from tests.application.conftest import MakeApp
from tests.application.support import Gate, Journal, Part
from tests.fixtures.processes import Program, is_running
from tests.fixtures.waiting import wait_until
from tests.support.threads import Background

SIGNALS = (signal.SIGINT, signal.SIGTERM)
every_signal = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)


@pytest.fixture(autouse=True)
def _handlers_are_restored() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def when_running(app: MonoApplication, act: object) -> Background:
    def wait() -> None:
        wait_until(lambda: app.state is ApplicationState.RUNNING, "it runs")
        assert callable(act)
        act()

    return Background(wait)


@every_signal
def test_a_signal_ends_run_in_good_order(app: MonoApplication, journal: Journal, number: signal.Signals) -> None:
    app.register(Part(journal, "orders"))
    sender = when_running(app, lambda: send(number))
    app.run()
    assert sender.error() is None
    assert app.state is ApplicationState.STOPPED
    assert journal == ["orders.start", "orders.stop"]


def test_stop_by_another_thread_ends_run(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders"))
    stopper = when_running(app, app.stop)
    app.run()
    assert stopper.error() is None
    assert app.state is ApplicationState.STOPPED
    assert journal == ["orders.start", "orders.stop"]


@every_signal
def test_a_signal_during_the_start_aborts_it(
    app: MonoApplication, journal: Journal, gate: Gate, number: signal.Signals
) -> None:
    app.register(Part(journal, "base"))
    app.register(Part(journal, "slow", start=gate))
    app.register(Part(journal, "never"))

    sender = gate.when_entered(lambda: send(number), gate.release)
    app.run()
    assert sender.error() is None
    assert app.state is ApplicationState.STOPPED
    assert app.connection.state is ConnectionState.CLOSED
    assert journal == ["base.start", "slow.start", "slow.stop", "base.stop"]


def test_a_signal_during_a_start_that_hangs_is_answered_in_bounded_time(
    make_app: MakeApp, journal: Journal, gate: Gate
) -> None:
    app = make_app(shutdown_timeout=0.8)
    app.register(Part(journal, "stuck", start=gate))
    sender = gate.when_entered(lambda: send(signal.SIGTERM))
    begin = time.monotonic()
    app.run()
    assert time.monotonic() - begin < 2
    assert sender.error() is None
    assert journal == ["stuck.start", "stuck.stop"]


def test_a_second_signal_during_the_stop_interrupts_at_once(app: MonoApplication, journal: Journal, gate: Gate) -> None:
    app.register(Part(journal, "base"))
    app.register(Part(journal, "stuck", stop=gate))

    def interrupt() -> None:
        wait_until(lambda: app.state is ApplicationState.RUNNING, "it runs")
        send(signal.SIGTERM)
        gate.wait_entered()
        send(signal.SIGINT)

    sender = Background(interrupt)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="SIGINT after SIGTERM"):
        app.run()
    assert time.monotonic() - begin < 2
    assert sender.error() is None
    assert app.state is ApplicationState.STOPPING
    app.stop()
    assert journal == ["base.start", "stuck.start", "stuck.stop", "base.stop"]


def test_handlers_are_restored_when_the_start_fails(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders", start=ValueError("boom")))
    with pytest.raises(ModuleStartError):
        app.run()


def test_errors_of_the_stop_are_raised(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders", stop=ValueError("boom")))
    sender = when_running(app, lambda: send(signal.SIGTERM))
    with pytest.raises(ExceptionGroup, match="did not stop cleanly"):
        app.run()
    assert sender.error() is None


def test_handlers_of_the_user_are_restored(app: MonoApplication, journal: Journal) -> None:
    def mine(number: int, frame: object) -> None: ...

    previous = signal.signal(signal.SIGTERM, mine)
    try:
        sender = when_running(app, lambda: send(signal.SIGTERM))
        app.run()
        assert sender.error() is None
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_run_on_another_thread_is_refused(app: MonoApplication) -> None:
    error = Background(app.run).error()
    assert isinstance(error, ApplicationStateError)
    assert "run() works in the main thread only, where signals arrive: use start() and stop()" in str(error)
    assert app.state is ApplicationState.CREATED


def test_run_of_a_running_application_is_refused(app: MonoApplication) -> None:
    app.start()
    with pytest.raises(ApplicationStateError, match="cannot be started twice"):
        app.run()
    assert app.state is ApplicationState.RUNNING


PROGRAM = """
import sys
from mono_sync import MonoApplication

class Module:
    name = "orders"
    def start(self):
        print("server", app.connection.server.pid, flush=True)
        print("started", flush=True)
    def stop(self):
        print("stopped", flush=True)

app = MonoApplication()
app.register(Module())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@every_signal
def test_a_program_that_runs_an_application_ends_cleanly_on_a_signal(number: signal.Signals) -> None:
    with Program(PROGRAM + "app.run()\nprint('end', app.state.name, flush=True)") as program:
        server = int(program.line().split()[1])
        assert program.line() == "started"
        program.signal(number)
        code, out, err = program.finish()
    assert (code, err) == (0, "")
    assert out.split() == ["stopped", "end", "STOPPED"]
    wait_until(lambda: not is_running(server), "its server has ended")


def test_a_program_can_stop_its_application_when_the_interpreter_ends() -> None:
    with Program(PROGRAM + "import atexit\napp.start()\natexit.register(app.stop)") as program:
        server = int(program.line().split()[1])
        assert program.line() == "started"
        assert program.line() == "stopped"
        code, _, err = program.finish()
    assert (code, err) == (0, "")
    wait_until(lambda: not is_running(server), "its server has ended")


WAIT = """
import time
with app:
    print("inside", flush=True)
    while True:
        time.sleep(0.1)
"""


def test_ctrl_c_in_a_program_that_waits_in_a_with_block_stops_everything() -> None:
    with Program(PROGRAM + WAIT) as program:
        server = int(program.line().split()[1])
        assert program.line() == "started"
        assert program.line() == "inside"
        program.signal(signal.SIGINT)
        code, out, err = program.finish()
    assert code == -signal.SIGINT
    assert out.split() == ["stopped"]
    assert err.strip().endswith("KeyboardInterrupt")
    wait_until(lambda: not is_running(server), "its server has ended")


EARLY_HANDLER = """
import atexit
from mono_sync import KVBucketConfig, MonoApplication, MonoError

class Module:
    name = "orders"
    def start(self):
        self.kv = app.connection.kv(KVBucketConfig("b"))
    def stop(self):
        try:
            self.kv.set("saved", b"1")
        except MonoError as error:
            print(type(error).__name__, flush=True)

app = MonoApplication()
app.register(Module())
atexit.register(lambda: print(app.state.name, flush=True))
atexit.register(app.stop)
app.start()
"""


def test_an_exit_handler_that_was_registered_too_early_is_told_at_once() -> None:
    started = time.monotonic()
    with Program(EARLY_HANDLER) as program:
        code, out, err = program.finish()
    assert (code, out.split(), err) == (0, ["ConnectionClosedError", "STOPPED"], "")
    assert time.monotonic() - started < 5
