"""Health: of the application, its connection, and everything that is registered."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from mono_sync.application import ApplicationState, HealthStatus, ModuleHealth, MonoApplication
from tests.application.support import BOUND, Checked, Gate, Journal, Middleware, Part, Plugin
from tests.fixtures.servers import RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.support.threads import Background

WELL = HealthStatus(healthy=True)


class CheckedPlugin(Plugin, Checked):
    def __init__(self, journal: Journal, name: str, answer: Any) -> None:
        Checked.__init__(self, journal, name, answer)


class CheckedMiddleware(Middleware, Checked):
    def __init__(self, journal: Journal, name: str, answer: Any) -> None:
        Checked.__init__(self, journal, name, answer)
        self.events = []


def health_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("mono_sync-health-")]


def test_before_the_start_it_is_unhealthy_and_asks_nobody(app: MonoApplication, journal: Journal) -> None:
    app.register(Checked(journal, "orders", ZeroDivisionError()))
    health = app.health()
    assert (health.healthy, health.state, health.connected, health.modules) == (
        False,
        ApplicationState.CREATED,
        False,
        {},
    )


def test_a_running_application_without_modules_is_healthy(app: MonoApplication) -> None:
    app.start()
    health = app.health()
    assert (health.healthy, health.state, health.connected) == (True, ApplicationState.RUNNING, True)


def test_after_the_stop_it_is_unhealthy(app: MonoApplication) -> None:
    app.start()
    app.stop()
    health = app.health()
    assert (health.healthy, health.state, health.connected) == (False, ApplicationState.STOPPED, False)


def test_modules_middleware_and_plugins_are_asked(app: MonoApplication, journal: Journal) -> None:
    app.register(Checked(journal, "orders", HealthStatus(healthy=True, message="fine", details={"open": 3})))
    app.register(CheckedMiddleware(journal, "audit", WELL))
    app.register_plugin(CheckedPlugin(journal, "fs-jetstream", WELL), "files")
    app.register(Part(journal, "plain"))
    app.start()
    health = app.health()
    assert health.healthy
    assert health.modules == {
        "files": ModuleHealth(healthy=True, supports_health=True),
        "orders": ModuleHealth(healthy=True, message="fine", details={"open": 3}, supports_health=True),
        "audit": ModuleHealth(healthy=True, supports_health=True),
        "plain": ModuleHealth(healthy=True, supports_health=False),
    }
    assert list(health.modules) == ["files", "orders", "audit", "plain"]


def test_one_unhealthy_module_makes_the_application_unhealthy(app: MonoApplication, journal: Journal) -> None:
    app.register(Checked(journal, "well", WELL))
    app.register(Checked(journal, "ill", HealthStatus(healthy=False, message="no stock")))
    app.start()
    health = app.health()
    assert not health.healthy
    assert health.connected
    assert health.modules["well"].healthy
    assert (health.modules["ill"].healthy, health.modules["ill"].message) == (False, "no stock")


@pytest.mark.parametrize("error", [ValueError("boom"), SystemExit("boom"), KeyboardInterrupt("boom")])
def test_a_check_that_raises_makes_its_module_unhealthy(
    app: MonoApplication, journal: Journal, error: BaseException
) -> None:
    app.register(Checked(journal, "ill", error))
    app.start()
    health = app.health().modules["ill"]
    assert health == ModuleHealth(
        healthy=False, message=f"health() failed: {type(error).__name__}: boom", supports_health=True
    )


@pytest.mark.parametrize("answer", [None, True, {"healthy": True}])
def test_a_check_that_returns_no_status_makes_its_module_unhealthy(
    app: MonoApplication, journal: Journal, answer: Any
) -> None:
    app.register(Checked(journal, "ill", lambda: answer))
    app.start()
    health = app.health().modules["ill"]
    assert (health.healthy, health.message) == (
        False,
        f"health() returned {type(answer).__name__}, not HealthStatus",
    )


def test_a_check_that_hangs_is_unhealthy_after_the_timeout(
    app: MonoApplication, journal: Journal, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    app.register(Checked(journal, "stuck", gate))
    app.register(Checked(journal, "well", WELL))
    app.start()
    begin = time.monotonic()
    health = app.health(timeout=0.2)
    assert 0.2 <= time.monotonic() - begin < 1
    assert not health.healthy
    assert health.modules["stuck"].message == "health() has not answered for 0.2 s"
    assert health.modules["well"].healthy
    assert "self._released.wait(BOUND)" in caplog.text


def test_checks_that_hang_cost_the_timeout_only_once(app: MonoApplication, journal: Journal, gate: Gate) -> None:
    for number in range(5):
        app.register(Checked(journal, f"m{number}", gate))
    app.start()
    begin = time.monotonic()
    app.health(timeout=0.2)
    assert time.monotonic() - begin < 0.8


def test_a_check_that_hangs_is_not_started_again(app: MonoApplication, journal: Journal, gate: Gate) -> None:
    app.register(Checked(journal, "stuck", gate))
    app.start()
    for _ in range(5):
        assert not app.health(timeout=0.05).healthy
    assert len(health_threads()) == 1


def test_a_check_that_hung_is_asked_again_when_it_has_ended(app: MonoApplication, journal: Journal, gate: Gate) -> None:
    module = Checked(journal, "stuck", gate)
    app.register(module)
    app.start()
    assert not app.health(timeout=0.05).healthy
    module.answer = WELL
    gate.release()
    wait_until(lambda: not health_threads(), "the check ends", BOUND)
    assert app.health().healthy


def test_concurrent_questions_share_one_check(app: MonoApplication, journal: Journal, gate: Gate) -> None:
    calls: list[int] = []

    def answer() -> HealthStatus:
        calls.append(1)
        gate()
        return WELL

    app.register(Checked(journal, "slow", answer))
    app.start()
    first = Background(app.health)
    gate.wait_entered()
    others = [Background(app.health) for _ in range(3)]
    gate.release()
    assert all(asker.result().healthy for asker in [first, *others])
    assert 1 <= len(calls) <= 4
    wait_until(lambda: not health_threads(), "the checks end", BOUND)


def test_health_of_an_application_that_starts_asks_nobody(app: MonoApplication, journal: Journal, gate: Gate) -> None:
    app.register(Checked(journal, "orders", ZeroDivisionError()))
    app.register(Part(journal, "slow", start=gate))
    starter = Background(app.start)
    gate.wait_entered()
    health = app.health()
    gate.release()
    assert starter.error() is None
    assert (health.healthy, health.state, health.modules) == (False, ApplicationState.STARTING, {})


def test_without_its_server_it_is_unhealthy_and_still_tells_of_its_modules(
    run_nats_server: RunNatsServer, journal: Journal
) -> None:
    server = run_nats_server()
    app = MonoApplication(servers=server.url)
    app.register(Checked(journal, "orders", WELL))
    with app:
        server.kill()
        wait_until(lambda: not app.connection.is_connected, "the connection notices", BOUND)
        health = app.health()
    assert (health.healthy, health.state, health.connected) == (False, ApplicationState.RUNNING, False)
    assert health.modules["orders"].healthy


def test_without_a_timeout_it_waits_for_the_answer(app: MonoApplication, journal: Journal, gate: Gate) -> None:
    def answer() -> HealthStatus:
        gate()
        return WELL

    app.register(Checked(journal, "slow", answer))
    app.start()
    gate.when_entered(gate.release)
    assert app.health(timeout=None).healthy
    wait_until(lambda: not health_threads(), "the check ends", BOUND)


@pytest.mark.parametrize("timeout", [-1, "5"])
def test_a_timeout_that_is_none_is_refused(app: MonoApplication, timeout: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="timeout must be"):
        app.health(timeout=timeout)


def test_a_status_that_is_no_bool_is_refused() -> None:
    nothing: Any = "yes"
    with pytest.raises(TypeError, match="healthy must be a bool, not str"):
        HealthStatus(healthy=nothing)


def test_a_status_is_immutable_and_has_details_of_its_own() -> None:
    status: Any = HealthStatus(healthy=True)
    with pytest.raises(AttributeError):
        status.healthy = False
    assert status.details == {}
    assert status.details is not HealthStatus(healthy=True).details
