"""Modules that misbehave: what had started is stopped again, what can be stopped is stopped, in bounded time."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mono_sync import (
    ConnectFailedError,
    ModuleStartError,
    ModuleStopError,
    MonoError,
    OperationTimeoutError,
    ServerError,
)
from mono_sync.application import ApplicationState, MonoApplication
from mono_sync.connection import ConnectionState
from mono_sync.server import EmbeddedServerConfig
from tests.application.conftest import MakeApp
from tests.application.support import (
    BOUND,
    Dependent,
    Gate,
    Journal,
    Middleware,
    Part,
    Plugin,
    PluginUser,
    Provider,
)
from tests.fixtures.leaks import no_more_threads_than, our_threads
from tests.fixtures.processes import NEVER_READY, fake_binary
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.support.network import LOOPBACK, silent, unused_port
from tests.support.threads import Background

NASTY = [ValueError("boom"), SystemExit(3), KeyboardInterrupt("boom"), GeneratorExit("boom"), BaseException("boom")]
nasty = pytest.mark.parametrize("error", NASTY, ids=lambda error: type(error).__name__)


def failed(app: MonoApplication) -> ModuleStartError:
    with pytest.raises(ModuleStartError) as caught:
        app.start()
    assert app.state is ApplicationState.FAILED
    assert app.connection.state is ConnectionState.CLOSED
    return caught.value


def stop_errors(app: MonoApplication) -> list[ModuleStopError]:
    with pytest.raises(ExceptionGroup) as caught:
        app.stop()
    assert app.state is ApplicationState.STOPPED
    assert app.connection.state is ConnectionState.CLOSED
    errors = []
    for error in caught.value.exceptions:
        assert isinstance(error, ModuleStopError)
        errors.append(error)
    return errors


# --- a start that fails


def test_the_failing_third_of_five_modules_stops_the_first_three_in_reverse(
    app: MonoApplication, journal: Journal
) -> None:
    app.register_plugin(Plugin(journal, "kv"), "kv")
    app.register(Middleware(journal, "audit"))
    for number in range(1, 6):
        app.register(Part(journal, f"m{number}", **({"start": ValueError("boom")} if number == 3 else {})))
    error = failed(app)
    assert (error.module, error.phase, error.rollback_errors) == ("m3", "start", ())
    assert isinstance(error.__cause__, ValueError)
    assert str(error) == "'m3' failed in start: ValueError: boom"
    assert journal.of("start", "stop") == [
        "kv.start",
        "audit.start",
        "m1.start",
        "m2.start",
        "m3.start",
        "m3.stop",
        "m2.stop",
        "m1.stop",
        "audit.stop",
        "kv.stop",
    ]


@nasty
def test_whatever_a_start_raises_fails_the_start(app: MonoApplication, journal: Journal, error: BaseException) -> None:
    app.register(Part(journal, "base"))
    app.register(Part(journal, "orders", start=error))
    assert failed(app).__cause__ is error
    assert journal == ["base.start", "orders.start", "orders.stop", "base.stop"]


@pytest.mark.parametrize(
    ("module", "phase"),
    [
        (lambda journal, error: Provider(journal, "bad", register_services=error), "register_services"),
        (lambda journal, error: PluginUser(journal, "bad", set_plugin=error), "set_plugin"),
        (
            lambda journal, error: Dependent(journal, "bad", ["good"], set_dependency_container=error),
            "set_dependency_container",
        ),
        (lambda journal, error: Middleware(journal, "bad", start=error), "start"),
        (lambda journal, error: Part(journal, "bad", start=error), "start"),
    ],
)
def test_the_error_names_module_and_phase(
    app: MonoApplication, journal: Journal, module: Callable[[Journal, BaseException], Part], phase: str
) -> None:
    app.register_plugin(Plugin(journal, "kv"), "kv")
    app.register(Part(journal, "good"))
    error = ValueError("boom")
    app.register(module(journal, error))
    caught = failed(app)
    assert (caught.module, caught.phase, caught.__cause__) == ("bad", phase, error)
    assert journal.of("stop")[0] == "bad.stop", "the failing one is stopped too"
    assert journal.of("stop")[-1] == "kv.stop"


@pytest.mark.parametrize("phase", ["set_container", "start"])
def test_a_failing_plugin_is_named_by_its_alias(app: MonoApplication, journal: Journal, phase: str) -> None:
    app.register_plugin(Plugin(journal, "first"), "first")
    app.register_plugin(Plugin(journal, "fs-jetstream", **{phase: ValueError("boom")}), "backup")
    app.register_plugin(Plugin(journal, "third"), "third")
    app.register(Part(journal, "orders"))
    error = failed(app)
    assert (error.module, error.phase) == ("backup", phase)
    assert journal.of("stop") == ["fs-jetstream.stop", "first.stop"]
    assert not [entry for entry in journal if entry.startswith(("third", "orders"))]


def test_errors_of_the_rollback_are_listed_and_logged_and_do_not_end_it(
    app: MonoApplication, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    app.register_plugin(Plugin(journal, "kv", stop=SystemExit("plugin")), "kv")
    app.register(Part(journal, "base"))
    app.register(Part(journal, "middle", stop=KeyError("gone")))
    app.register(Part(journal, "top", start=ValueError("boom"), stop=OSError("top")))
    error = failed(app)
    assert error.module == "top"
    assert isinstance(error.__cause__, ValueError)
    assert error.rollback_errors == (
        "'top' failed in stop: OSError: top",
        "'middle' failed in stop: KeyError: 'gone'",
        "'kv' failed in stop: SystemExit: plugin",
    )
    assert journal.of("stop") == ["top.stop", "middle.stop", "base.stop", "kv.stop"]
    for text in error.rollback_errors:
        assert f"application 'mono': {text}" in caplog.text


def test_an_error_that_cannot_show_itself_is_reported_all_the_same(app: MonoApplication, journal: Journal) -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    app.register(Part(journal, "orders", start=MuteError()))
    error = failed(app)
    assert "'orders' failed in start: " in str(error)
    assert "MuteError" in str(error)


def test_a_method_that_returns_a_coroutine_has_failed(app: MonoApplication, journal: Journal) -> None:
    async def work() -> None: ...

    class Sneaky(Part):
        def start(self) -> None:
            return work()  # type: ignore[return-value]

    app.register(Sneaky(journal, "orders"))
    assert "it returned a coroutine and did nothing" in str(failed(app))


# --- a start that hangs


def test_a_start_that_hangs_is_given_up_and_everything_stopped(
    make_app: MakeApp, journal: Journal, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(start_timeout=1.4)  # enough to connect on a busy machine
    app.register(Part(journal, "base"))
    app.register(Part(journal, "stuck", start=gate))
    app.register(Part(journal, "never"))
    begin = time.monotonic()
    error = failed(app)
    assert 1.4 <= time.monotonic() - begin < 2.4
    assert (error.module, error.phase) == ("stuck", "start")
    assert isinstance(error.__cause__, OperationTimeoutError)
    assert "start_timeout=1.4 s is the time of all steps together, at " in str(error)
    assert journal == ["base.start", "stuck.start", "stuck.stop", "base.stop"]
    assert "start() of 'stuck' hangs and is given up" in caplog.text
    assert "self._released.wait(BOUND)" in caplog.text


def test_stop_may_free_a_start_that_hangs(make_app: MakeApp, journal: Journal, gate: Gate) -> None:
    app = make_app(start_timeout=1.4)
    app.register(Part(journal, "stuck", start=gate, stop=gate.release))
    failed(app)
    assert gate.left.wait(BOUND)


def test_the_start_timeout_is_for_all_steps_together(make_app: MakeApp, journal: Journal) -> None:
    app = make_app(start_timeout=2.5)
    for number in range(10):
        app.register(Part(journal, f"m{number}", start=lambda: time.sleep(0.6)))
    begin = time.monotonic()
    assert failed(app).module in ("m3", "m4")
    assert time.monotonic() - begin < 4.5


def test_a_rollback_that_hangs_too_is_bounded_by_the_shutdown_timeout(
    make_app: MakeApp, journal: Journal, gate: Gate
) -> None:
    app = make_app(start_timeout=1.4, shutdown_timeout=1.2)
    app.register(Part(journal, "base", stop=gate))
    app.register(Part(journal, "stuck", start=gate, stop=gate))
    begin = time.monotonic()
    error = failed(app)
    assert time.monotonic() - begin < 1.4 + 1.2 + 1
    assert "stop() of 'stuck' timed out" in error.rollback_errors[0]
    assert "stop() of 'base' timed out" in error.rollback_errors[1]


# --- server and connection


def test_an_unreachable_server_fails_the_start_of_the_application(journal: Journal) -> None:
    port = unused_port()
    app = MonoApplication(servers=f"nats://{LOOPBACK}:{port}", start_timeout=3.0)
    app.register_plugin(Plugin(journal, "kv"), "kv")
    error = failed(app)
    assert (error.module, error.phase) == ("application", "connect")
    assert isinstance(error.__cause__, ConnectFailedError)
    assert f"{LOOPBACK}:{port}" in str(error)
    assert not journal


def test_a_silent_server_fails_the_start_with_the_connections_own_words(journal: Journal) -> None:
    with silent() as deaf:
        app = MonoApplication(servers=deaf.url, start_timeout=2.0)
        app.register(Part(journal, "orders"))
        error = failed(app)
        assert (error.module, error.phase) == ("application", "connect")
        assert isinstance(error.__cause__, ConnectFailedError)
        assert error.__cause__.failures == {deaf.url: "no answer in time"}
    assert not journal


def test_a_server_binary_that_is_none_fails_the_start(tmp_path: Path, journal: Journal) -> None:
    app = MonoApplication(server=EmbeddedServerConfig(binary=tmp_path / "nothing"))
    app.register(Part(journal, "orders"))
    error = failed(app)
    assert (error.module, error.phase) == ("application", "connect")
    assert isinstance(error.__cause__, ServerError)
    assert not journal


def test_a_server_that_died_does_not_hold_the_stop(run_nats_server: RunNatsServer, journal: Journal) -> None:
    server = run_nats_server()
    app = MonoApplication(servers=server.url, shutdown_timeout=5.0)
    app.register(Part(journal, "orders"))
    app.start()
    server.kill()
    wait_until(lambda: not app.connection.is_connected, "the connection notices", BOUND)
    begin = time.monotonic()
    app.stop()
    assert time.monotonic() - begin < 2
    assert app.state is ApplicationState.STOPPED
    assert journal == ["orders.start", "orders.stop"]


def test_a_server_that_stalls_does_not_hold_the_stop_past_its_timeout(
    run_nats_server: RunNatsServer, journal: Journal
) -> None:
    server = run_nats_server()
    app = MonoApplication(servers=server.url, shutdown_timeout=1.0)
    app.register(Part(journal, "orders"))
    app.start()
    server.pause()
    begin = time.monotonic()
    (error,) = stop_errors(app)
    assert time.monotonic() - begin < 2
    assert (error.module, error.phase) == ("application", "drain")
    assert "draining the connection timed out" in str(error)  # the connection's own words
    assert journal == ["orders.start", "orders.stop"]


# --- a stop that fails


@nasty
def test_whatever_a_stop_raises_the_others_are_stopped(
    app: MonoApplication, journal: Journal, error: BaseException
) -> None:
    app.register_plugin(Plugin(journal, "kv"), "kv")
    app.register(Part(journal, "base"))
    app.register(Part(journal, "orders", stop=error))
    app.register(Part(journal, "top"))
    app.start()
    (stop_error,) = stop_errors(app)
    assert (stop_error.module, stop_error.phase, stop_error.__cause__) == ("orders", "stop", error)
    assert journal.of("stop") == ["top.stop", "orders.stop", "base.stop", "kv.stop"]


def test_all_errors_of_a_stop_come_together_in_order(app: MonoApplication, journal: Journal) -> None:
    errors = {name: ValueError(name) for name in ("kv", "audit", "base", "top")}
    app.register_plugin(Plugin(journal, "kv", stop=errors["kv"]), "kv")
    app.register(Middleware(journal, "audit", stop=errors["audit"]))
    app.register(Part(journal, "base", stop=errors["base"]))
    app.register(Dependent(journal, "top", ["base"], stop=errors["top"]))
    app.start()
    assert [(error.module, error.__cause__) for error in stop_errors(app)] == [
        (name, errors[name]) for name in ("top", "base", "audit", "kv")
    ]


def test_errors_of_a_stop_can_be_told_apart_by_except_star(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders", stop=ValueError("boom")))
    app.start()
    seen: list[str] = []
    try:
        app.stop()
    except* ModuleStopError as group:
        seen.extend(str(error) for error in group.exceptions)
    assert seen == ["'orders' failed in stop: ValueError: boom"]


def test_errors_of_a_stop_are_raised_once(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders", stop=ValueError("boom")))
    app.start()
    stop_errors(app)
    app.stop()
    assert journal == ["orders.start", "orders.stop"]


# --- a stop that hangs


def test_a_stop_that_hangs_is_given_up_and_the_others_are_stopped(
    make_app: MakeApp, journal: Journal, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(shutdown_timeout=1.0)
    app.register_plugin(Plugin(journal, "kv"), "kv")
    app.register(Part(journal, "base"))
    app.register(Part(journal, "stuck", stop=gate))
    app.start()
    begin = time.monotonic()
    (error,) = stop_errors(app)
    assert time.monotonic() - begin < 2.0
    assert (error.module, error.phase) == ("stuck", "stop")
    assert isinstance(error.__cause__, OperationTimeoutError)
    assert journal.of("stop") == ["stuck.stop", "base.stop", "kv.stop"]
    assert "stop() of 'stuck' hangs and is given up: its share of shutdown_timeout=1.0 s" in caplog.text
    assert "self._released.wait(BOUND)" in caplog.text


def test_when_every_stop_hangs_each_has_its_turn_within_the_timeout(
    make_app: MakeApp, journal: Journal, gate: Gate
) -> None:
    app = make_app(shutdown_timeout=1.0)
    app.register_plugin(Plugin(journal, "kv", stop=gate), "kv")
    app.register(Middleware(journal, "audit", stop=gate, on_module_lifecycle=gate))
    for number in range(6):
        app.register(Part(journal, f"m{number}", stop=gate))
    gate.release()
    app.start()
    gate.__init__()  # type: ignore[misc]  # closed again
    begin = time.monotonic()
    errors = stop_errors(app)
    assert time.monotonic() - begin < 2.0
    assert [error.module for error in errors] == ["m5", "m4", "m3", "m2", "m1", "m0", "audit", "kv"]
    assert [entry for entry in journal if entry.endswith(".stop")] == [
        *(f"m{number}.stop" for number in range(5, -1, -1)),
        "audit.stop",
        "kv.stop",
    ]


def test_a_slow_stop_may_use_most_of_the_timeout(make_app: MakeApp, journal: Journal) -> None:
    app = make_app(shutdown_timeout=2.0)
    for number in range(3):
        app.register(Part(journal, f"m{number}"))
    app.register(Part(journal, "slow", stop=lambda: time.sleep(0.9)))
    app.start()
    app.stop()


def test_a_middleware_hook_that_hangs_is_called_once(
    make_app: MakeApp, journal: Journal, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app()
    app.register(Middleware(journal, "audit", on_module_lifecycle=gate))
    for number in range(4):
        app.register(Part(journal, f"m{number}"))
    begin = time.monotonic()
    app.start()
    app.stop()
    assert time.monotonic() - begin < 3
    assert journal.of("on_module_lifecycle") == ["audit.on_module_lifecycle"]
    assert "on_module_lifecycle() of 'audit' hangs and is given up: a hook gets 1 s" in caplog.text


# --- interrupts


def interrupt_when(gate: Gate) -> Background:
    return gate.when_entered(lambda: os.kill(os.getpid(), signal.SIGINT))


def test_ctrl_c_during_start_stops_everything_and_goes_on(make_app: MakeApp, journal: Journal, gate: Gate) -> None:
    app = make_app(shutdown_timeout=1.0)
    app.register(Part(journal, "base"))
    app.register(Part(journal, "slow", start=gate))
    thread = interrupt_when(gate)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        app.start()
    assert time.monotonic() - begin < 2
    assert thread.error() is None
    assert app.state is ApplicationState.FAILED
    assert app.connection.state is ConnectionState.CLOSED
    assert journal == ["base.start", "slow.start", "slow.stop", "base.stop"]


def test_errors_of_the_rollback_after_ctrl_c_are_notes_of_the_interrupt(
    make_app: MakeApp, journal: Journal, gate: Gate
) -> None:
    app = make_app(shutdown_timeout=0.5)
    app.register(Part(journal, "slow", start=gate, stop=ValueError("boom")))
    thread = interrupt_when(gate)
    with pytest.raises(KeyboardInterrupt) as caught:
        app.start()
    assert thread.error() is None
    assert caught.value.__notes__ == ["during rollback: 'slow' failed in stop: ValueError: boom"]


def test_a_step_that_ends_soon_after_ctrl_c_is_not_stopped_while_it_starts(
    app: MonoApplication, journal: Journal, gate: Gate
) -> None:
    ends: list[bool] = []
    app.register(Part(journal, "slow", start=gate, stop=lambda: ends.append(gate.left.is_set())))
    thread = gate.when_entered(lambda: os.kill(os.getpid(), signal.SIGINT), gate.release)
    with pytest.raises(KeyboardInterrupt):
        app.start()
    assert thread.error() is None
    assert ends == [True]


def test_a_stop_that_ctrl_c_interrupted_is_continued_by_the_next(
    app: MonoApplication, journal: Journal, gate: Gate
) -> None:
    app.register(Part(journal, "base"))
    app.register(Part(journal, "stuck", stop=gate))
    app.register(Part(journal, "top"))
    app.start()
    thread = interrupt_when(gate)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        app.stop()
    assert time.monotonic() - begin < 1.5
    assert thread.error() is None
    assert app.state.name == "STOPPING"
    assert journal.of("stop") == ["top.stop", "stuck.stop"]
    app.stop()
    assert app.state is ApplicationState.STOPPED
    assert journal.of("stop") == ["top.stop", "stuck.stop", "base.stop"]
    assert app.connection.state is ConnectionState.CLOSED


def test_a_rollback_that_ctrl_c_interrupted_is_continued_by_stop(
    app: MonoApplication, journal: Journal, gate: Gate
) -> None:
    app.register(Part(journal, "base"))
    app.register(Part(journal, "stuck", stop=gate, start=ValueError("boom")))
    thread = interrupt_when(gate)
    with pytest.raises(KeyboardInterrupt):
        app.start()
    assert thread.error() is None
    assert app.state is ApplicationState.FAILED
    assert app.connection.is_connected
    app.stop()
    assert app.state is ApplicationState.FAILED
    assert app.connection.state is ConnectionState.CLOSED
    assert journal == ["base.start", "stuck.start", "stuck.stop", "base.stop"]


# --- leaving a with block


def test_an_error_of_the_body_is_not_masked_by_errors_of_the_stop(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders", stop=ValueError("boom")))
    app.register(Part(journal, "base", stop=OSError("bang")))
    error = KeyError("body")
    with pytest.raises(KeyError) as caught, app:
        raise error
    assert caught.value is error
    assert error.__notes__ == [
        "while stopping application 'mono': 'base' failed in stop: OSError: bang",
        "while stopping application 'mono': 'orders' failed in stop: ValueError: boom",
    ]
    assert app.state is ApplicationState.STOPPED


def test_errors_of_the_stop_are_raised_after_a_body_without_errors(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders", stop=ValueError("boom")))
    with pytest.raises(ExceptionGroup, match="application 'mono' did not stop cleanly"), app:
        assert app.state is ApplicationState.RUNNING


def test_a_body_is_not_entered_when_the_start_fails(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders", start=ValueError("boom")))
    with pytest.raises(ModuleStartError), app:
        journal.append("body")
    assert "body" not in journal


def test_every_error_of_the_lifecycle_is_a_mono_error(app: MonoApplication, journal: Journal) -> None:
    app.register(Part(journal, "orders", start=ValueError("boom")))
    with pytest.raises(MonoError):
        app.start()


def test_start_and_stop_are_logged(app: MonoApplication, journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    app.register(Part(journal, "orders"))
    with caplog.at_level(logging.INFO, "mono_sync.application"), app:
        pass
    assert "application 'mono' started in " in caplog.text
    assert "application 'mono' stopped in " in caplog.text


def test_a_server_that_never_gets_ready_leaves_nothing_behind_when_the_start_is_given_up(tmp_path: Path) -> None:
    binary, before = fake_binary(tmp_path, NEVER_READY), our_threads()
    server = EmbeddedServerConfig(binary=binary, start_timeout=30)
    app = MonoApplication(server=server, start_timeout=0.5, shutdown_timeout=5)
    with pytest.raises(ModuleStartError) as caught:
        app.start()
    assert caught.value.phase == "connect"
    assert app.state is ApplicationState.FAILED
    wait_until(lambda: no_more_threads_than(before), "its threads have ended")
