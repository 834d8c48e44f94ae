"""The state machine: who may start and stop when, from which thread, and what the others get."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mono_sync import ApplicationStateError, ConfigurationError, ConnectionClosedError, ModuleStartError
from mono_sync._threads import frame_of
from mono_sync.adapter import ConnectionConfig
from mono_sync.application import ApplicationState, MonoApplication
from mono_sync.connection import ConnectionState
from mono_sync.server import EmbeddedServerConfig
from tests.application.conftest import MakeApp
from tests.application.support import BOUND, Gate, Journal, Part, Plugin
from tests.fixtures.waiting import wait_until
from tests.support.threads import Background

RUNNING, STOPPED, FAILED = ApplicationState.RUNNING, ApplicationState.STOPPED, ApplicationState.FAILED


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "name must be a str that is not empty"),
        ({"name": None}, "name must be a str that is not empty"),
        ({"start_timeout": 0}, "start_timeout must be more than 0 seconds"),
        ({"start_timeout": -1}, "start_timeout must be a finite number of seconds, not negative"),
        ({"start_timeout": "30"}, "start_timeout must be seconds or a timedelta, not str"),
        ({"shutdown_timeout": 0}, "shutdown_timeout must be more than 0 seconds"),
        ({"shutdown_timeout": 10**400}, "shutdown_timeout must be a finite number"),
        ({"shutdown_timeout": float("inf")}, "shutdown_timeout must be a finite number"),
        ({"server": {"port": 1}}, "server must be EmbeddedServerConfig or None, not dict"),
        ({"connection": {"name": "x"}}, "connection must be ConnectionConfig or None, not dict"),
        ({"servers": "http://somewhere"}, "http"),
        ({"servers": 7}, "servers must be"),
        ({"servers": "nats://a", "server": EmbeddedServerConfig()}, "not both"),
        ({"servers": "nats://a", "connection": ConnectionConfig(servers="nats://b")}, "servers are given twice"),
    ],
)
def test_an_option_that_cannot_be_right_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MonoApplication(**options)


def test_options_are_keywords_only() -> None:
    make: Any = MonoApplication
    with pytest.raises(TypeError):
        make("shop")


def test_without_timeouts_it_starts_and_stops(make_app: MakeApp, journal: Journal) -> None:
    app = make_app(start_timeout=None, shutdown_timeout=None)
    app.register(Part(journal, "orders"))
    app.start()
    app.stop()
    assert journal == ["orders.start", "orders.stop"]


def test_the_connection_carries_the_name_of_the_application() -> None:
    assert MonoApplication(name="shop").connection.config.name == "shop"


def test_without_options_it_has_a_server_of_its_own(monkeypatch: pytest.MonkeyPatch, journal: Journal) -> None:
    monkeypatch.delenv("MONO_SYNC_SERVERS", raising=False)
    app = MonoApplication()
    app.register(Part(journal, "orders"))
    server = app.connection.server
    assert server is not None
    assert not server.alive
    with app:
        assert server.alive
        assert app.connection.rtt() > 0
    assert not server.alive


# --- states


def test_states_of_a_life_without_faults(app: MonoApplication, journal: Journal) -> None:
    seen: list[ApplicationState] = []

    def look() -> None:
        seen.append(app.state)

    app.register_plugin(Plugin(journal, "kv", start=look, stop=look), "kv")
    look()
    with app as entered:
        assert entered is app
        look()
    look()
    assert [state.name for state in seen] == ["CREATED", "STARTING", "RUNNING", "STOPPING", "STOPPED"]


def test_every_state_says_what_may_be_assumed() -> None:
    import ast
    import inspect

    from mono_sync.application import _states

    (cls,) = (node for node in ast.parse(inspect.getsource(_states)).body if isinstance(node, ast.ClassDef))
    documented = [
        first.targets[0].id
        for first, second in zip(cls.body, cls.body[1:], strict=False)
        if isinstance(first, ast.Assign) and isinstance(first.targets[0], ast.Name) and isinstance(second, ast.Expr)
    ]
    assert documented == [state.name for state in ApplicationState]


def test_the_application_shows_name_and_state(make_app: MakeApp) -> None:
    app = make_app(name="shop")
    assert repr(app) == "<MonoApplication 'shop' CREATED>"
    assert app.name == "shop"
    app.start()
    assert repr(app) == "<MonoApplication 'shop' RUNNING>"


def test_starting_twice_is_refused(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders"))
    app.start()
    with pytest.raises(ApplicationStateError, match="'mono' is RUNNING: it cannot be started twice") as caught:
        app.start()
    assert caught.value.state == "RUNNING"
    assert app.state is RUNNING
    assert journal == ["orders.start"]


def test_a_stopped_application_cannot_be_restarted(app: MonoApplication) -> None:
    app.start()
    app.stop()
    with pytest.raises(ApplicationStateError, match="is STOPPED: it cannot be restarted: make a new MonoApplication"):
        app.start()
    assert app.state is STOPPED


def test_an_application_that_failed_cannot_be_restarted(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders", start=ValueError("boom")))
    with pytest.raises(ModuleStartError):
        app.start()
    with pytest.raises(ApplicationStateError, match="is FAILED: it cannot be restarted"):
        app.start()
    assert journal == ["orders.start", "orders.stop"]


def test_stop_before_start_is_the_end(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders"))
    app.stop()
    assert app.state is STOPPED
    assert not journal
    with pytest.raises(ApplicationStateError, match="cannot be restarted"):
        app.start()
    assert app.connection.state is ConnectionState.CLOSED
    with pytest.raises(ConnectionClosedError, match="was closed"):
        app.connection.open()


def test_stopping_again_does_nothing(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders"))
    app.start()
    app.stop()
    app.stop()
    assert journal == ["orders.start", "orders.stop"]


def test_stop_after_a_failed_start_does_nothing(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders", start=ValueError("boom")))
    with pytest.raises(ModuleStartError):
        app.start()
    app.stop()
    assert app.state is FAILED
    assert journal == ["orders.start", "orders.stop"]


# --- several threads


def test_of_concurrent_starts_exactly_one_wins(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders"))
    barrier = threading.Barrier(6)

    def start() -> str:
        barrier.wait(BOUND)
        try:
            app.start()
        except ApplicationStateError:
            return "refused"
        return "started"

    callers = [Background(start) for _ in range(6)]
    assert sorted(caller.result() for caller in callers) == ["refused"] * 5 + ["started"]
    assert journal == ["orders.start"]


def test_concurrent_stops_stop_once_and_all_return_when_it_is_stopped(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders", stop=lambda: time.sleep(0.05)))
    app.start()
    barrier = threading.Barrier(6)

    def stop() -> ApplicationState:
        barrier.wait(BOUND)
        app.stop()
        return app.state

    callers = [Background(stop) for _ in range(6)]
    assert [caller.result() for caller in callers] == [STOPPED] * 6
    assert journal == ["orders.start", "orders.stop"]


def test_concurrent_stops_get_the_same_errors(app: MonoApplication, journal: Journal, gate: Gate) -> None:
    app.register(Part(journal, "first", stop=ValueError("boom")))
    app.register(Part(journal, "orders", stop=gate))
    app.start()
    callers = [Background(app.stop)]
    gate.wait_entered()
    callers += [Background(app.stop) for _ in range(3)]
    wait_until(lambda: waiting_in_stop() == 3, "the others wait", BOUND)
    gate.release()
    errors = [caller.error() for caller in callers]
    assert all(isinstance(error, ExceptionGroup) for error in errors)
    assert len({id(error) for error in errors}) == 4, "each its own, for each gets a traceback of its own"
    assert len({id(error.exceptions[0]) for error in errors if isinstance(error, ExceptionGroup)}) == 1


def waiting_in_stop() -> int:
    """Return how many threads wait for a stop that another one does."""
    count = 0
    for thread in threading.enumerate():
        names = []
        current = frame_of(thread.ident or 0)
        while current is not None:
            names.append(current.f_code.co_qualname)
            current = current.f_back
        if "Control.stop" in names and "Control._perform_stop" not in names and "Event.wait" in names:
            count += 1
    return count


def test_stop_during_start_aborts_it_and_returns_when_all_is_stopped(
    app: MonoApplication, journal: Journal, gate: Gate
) -> None:
    app.register_plugin(Plugin(journal, "kv"), "kv")
    app.register(Part(journal, "base"))
    app.register(Part(journal, "slow", start=gate))
    app.register(Part(journal, "never"))
    starter = Background(app.start)
    gate.wait_entered()
    stopper = Background(app.stop)
    gate.release()
    error = starter.error()
    assert isinstance(error, ApplicationStateError)
    assert str(error) == "application 'mono' was stopped during start"
    assert stopper.error() is None
    assert app.state is STOPPED
    assert app.connection.state is ConnectionState.CLOSED
    assert journal.of("start", "stop") == ["kv.start", "base.start", "slow.start", "slow.stop", "base.stop", "kv.stop"]


def test_stop_during_a_start_that_hangs_is_bounded(make_app: MakeApp, journal: Journal, gate: Gate) -> None:
    app = make_app(shutdown_timeout=0.8)
    app.register(Part(journal, "base"))
    app.register(Part(journal, "stuck", start=gate))
    starter = Background(app.start)
    gate.wait_entered()
    begin = time.monotonic()
    app.stop()
    assert time.monotonic() - begin < 1.8
    assert isinstance(starter.error(), ApplicationStateError)
    assert app.state is STOPPED
    assert journal == ["base.start", "stuck.start", "stuck.stop", "base.stop"]


def test_errors_of_the_rollback_are_notes_of_the_start_that_was_stopped(
    app: MonoApplication, journal: Journal, gate: Gate
) -> None:
    app.register(Part(journal, "slow", start=gate, stop=ValueError("boom")))
    starter = Background(app.start)
    gate.wait_entered()
    stopper = Background(app.stop)
    gate.release()
    error = starter.error()
    assert isinstance(error, ApplicationStateError)
    assert error.__notes__ == ["during rollback: 'slow' failed in stop: ValueError: boom"]
    assert stopper.error() is None


def test_a_stop_at_any_moment_of_a_start_leaves_nothing_running(make_app: MakeApp) -> None:
    for delay in range(12):
        journal = Journal()
        app = make_app()
        for number in range(5):
            app.register(Part(journal, f"m{number}", start=lambda: time.sleep(0.001)))
        starter = Background(app.start)
        threading.Event().wait(delay * 0.001)
        stopper = Background(app.stop)
        error = starter.error()
        assert stopper.error() is None
        assert error is None or isinstance(error, ApplicationStateError)
        assert app.state is STOPPED
        started = [entry.removesuffix(".start") for entry in journal.of("start")]
        assert [entry.removesuffix(".stop") for entry in journal.of("stop")] == started[::-1]
        assert app.connection.state is not ConnectionState.CONNECTED


# --- from the wrong place


def attempt(call: Callable[[], object], errors: list[BaseException]) -> Callable[[], None]:
    def act() -> None:
        try:
            call()
        except Exception as error:
            errors.append(error)

    return act


def test_stop_inside_a_start_of_a_module_is_refused(app: MonoApplication, journal: Journal) -> None:
    errors: list[BaseException] = []
    app.register(Part(journal, "orders", start=attempt(app.stop, errors)))
    app.start()
    assert app.state is RUNNING
    assert "stop() was called by a method of one of its modules and would wait for itself" in str(errors[0])
    assert isinstance(errors[0], ApplicationStateError)


def test_stop_inside_a_stop_of_a_module_is_refused(app: MonoApplication, journal: Journal) -> None:
    errors: list[BaseException] = []
    app.register(Part(journal, "orders", stop=attempt(app.stop, errors)))
    app.start()
    app.stop()
    assert app.state is STOPPED
    assert isinstance(errors[0], ApplicationStateError)


@pytest.mark.parametrize("method", ["start", "stop"])
def test_start_inside_a_method_of_a_module_is_refused(app: MonoApplication, journal: Journal, method: str) -> None:
    errors: list[BaseException] = []
    app.register(Part(journal, "orders", **{method: attempt(app.start, errors)}))
    app.start()
    app.stop()
    assert isinstance(errors[0], ApplicationStateError)


def test_a_thread_of_a_module_may_stop_the_application(app: MonoApplication, journal: Journal) -> None:
    stoppers: list[Background] = []
    app.register(Part(journal, "orders", start=lambda: stoppers.append(Background(app.stop))))
    error = Background(app.start).error()
    assert error is None or isinstance(error, ApplicationStateError)
    assert stoppers[0].error() is None
    assert app.state is STOPPED
    assert journal == ["orders.start", "orders.stop"]


@pytest.fixture
def stop_on_usr1(app: MonoApplication) -> Any:
    previous = signal.signal(signal.SIGUSR1, lambda *_: app.stop())
    yield
    signal.signal(signal.SIGUSR1, previous)


def signal_when(gate: Gate) -> Background:
    return gate.when_entered(lambda: os.kill(os.getpid(), signal.SIGUSR1), gate.release)


def test_stop_in_a_signal_handler_that_interrupts_start_aborts_it(
    app: MonoApplication, journal: Journal, gate: Gate, stop_on_usr1: None
) -> None:
    app.register(Part(journal, "orders", start=gate))
    sender = signal_when(gate)
    with pytest.raises(ApplicationStateError, match="was stopped during start"):
        app.start()
    assert sender.error() is None
    assert app.state is STOPPED
    assert journal == ["orders.start", "orders.stop"]


def test_stop_in_a_signal_handler_that_interrupts_stop_lets_it_go_on(
    app: MonoApplication, journal: Journal, gate: Gate, stop_on_usr1: None
) -> None:
    app.register(Part(journal, "orders", stop=gate))
    app.start()
    sender = signal_when(gate)
    app.stop()
    assert sender.error() is None
    assert app.state is STOPPED
    assert journal == ["orders.start", "orders.stop"]


def test_stop_in_a_signal_handler_stops_a_running_application(
    app: MonoApplication, journal: Journal, stop_on_usr1: None
) -> None:
    app.register(Part(journal, "orders"))
    app.start()
    os.kill(os.getpid(), signal.SIGUSR1)
    wait_until(lambda: app.state is STOPPED, "it is stopped", BOUND)
    assert journal == ["orders.start", "orders.stop"]
