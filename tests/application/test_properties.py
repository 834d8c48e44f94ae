"""For any modules and any fault: dependencies first, exact reverse back, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mono_sync import ModuleStartError
from mono_sync.application import ApplicationState, MonoApplication
from mono_sync.application._resolver import start_order
from mono_sync.connection import ConnectionState
from mono_sync.server import EmbeddedServer
from tests.application.conftest import on_server
from tests.application.support import Dependent, Journal, Middleware, Plugin, names_started, names_stopped

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass
class Plan:
    """What is registered, in this order: plugins "p…", middleware "w…", modules "m…" with their dependencies."""

    order: list[str]
    dependencies: dict[str, list[str]]

    def expected(self) -> list[str]:
        modules = {name: self.dependencies[name] for name in self.order if name.startswith("m")}
        return [
            *(name for name in self.order if name.startswith("p")),
            *(name for name in self.order if name.startswith("w")),
            *start_order(modules, lambda module, name: ""),
        ]

    def register(self, app: MonoApplication, journal: Journal, acts: dict[str, dict[str, BaseException]]) -> None:
        for name in self.order:
            its = acts.get(name, {})
            if name.startswith("p"):
                app.register_plugin(Plugin(journal, name, **its), name)
            elif name.startswith("w"):
                app.register(Middleware(journal, name, **its))
            else:
                app.register(Dependent(journal, name, self.dependencies[name], **its))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    names = [f"m{number}" for number in range(draw(st.integers(1, 7)))]
    dependencies = {
        name: draw(st.lists(st.sampled_from(names[:number]), max_size=4)) if number else []
        for number, name in enumerate(names)
    }
    others = [f"p{number}" for number in range(draw(st.integers(0, 2)))]
    others += [f"w{number}" for number in range(draw(st.integers(0, 2)))]
    return Plan(draw(st.permutations(names + others)), dependencies)


@few
@given(plan=plans())
def test_any_modules_start_dependencies_first_and_stop_in_exact_reverse(
    nats_server: EmbeddedServer, plan: Plan
) -> None:
    journal = Journal()
    app = on_server(nats_server)
    plan.register(app, journal, {})
    app.start()
    started = names_started(journal)
    assert started == plan.expected()
    for name, needed in plan.dependencies.items():
        assert all(started.index(one) < started.index(name) for one in needed)
    app.stop()
    assert names_stopped(journal) == started[::-1]


@few
@given(plan=plans(), data=st.data())
def test_any_failing_start_stops_exactly_what_had_started(
    nats_server: EmbeddedServer, plan: Plan, data: st.DataObject
) -> None:
    journal = Journal()
    app = on_server(nats_server)
    expected = plan.expected()
    position = data.draw(st.integers(0, len(expected) - 1), label="position of the failure")
    bad = expected[position]
    phases = ["start", *(["set_container"] if bad.startswith("p") else [])]
    phases += ["set_dependency_container"] if plan.dependencies.get(bad) else []
    phase = data.draw(st.sampled_from(phases), label="phase")
    also = data.draw(st.sets(st.sampled_from(expected)), label="whose stop fails")
    error = ValueError("boom")
    acts: dict[str, dict[str, BaseException]] = {name: {"stop": OSError(name)} for name in also}
    acts.setdefault(bad, {})[phase] = error
    plan.register(app, journal, acts)
    with pytest.raises(ModuleStartError) as caught:
        app.start()
    assert (caught.value.module, caught.value.phase, caught.value.__cause__) == (bad, phase, error)
    touched = expected[: position + 1]
    assert names_started(journal) == (touched if phase == "start" else touched[:-1])
    assert names_stopped(journal) == touched[::-1]
    assert [text.split("'")[1] for text in caught.value.rollback_errors] == [
        name for name in touched[::-1] if name in also
    ]
    assert app.state is ApplicationState.FAILED
    assert app.connection.state is ConnectionState.CLOSED


@few
@given(plan=plans(), data=st.data())
def test_any_failing_stops_keep_no_other_from_stopping(
    nats_server: EmbeddedServer, plan: Plan, data: st.DataObject
) -> None:
    journal = Journal()
    app = on_server(nats_server)
    expected = plan.expected()
    bad = data.draw(st.sets(st.sampled_from(expected), min_size=1), label="whose stop fails")
    plan.register(app, journal, {name: {"stop": SystemExit(name)} for name in bad})
    app.start()
    with pytest.raises(ExceptionGroup) as caught:
        app.stop()
    assert names_stopped(journal) == expected[::-1]
    assert [str(error.__cause__) for error in caught.value.exceptions] == [
        name for name in expected[::-1] if name in bad
    ]
    assert app.state is ApplicationState.STOPPED
