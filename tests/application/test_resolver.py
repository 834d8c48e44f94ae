"""The order in which modules start: dependencies first, registration order among equals, mistakes named."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mono_sync import CircularDependencyError, MissingDependencyError
from mono_sync.application._resolver import start_order


def order(dependencies: dict[str, list[str]]) -> list[str]:
    return start_order(dependencies, lambda module, name: "")


@st.composite
def acyclic(draw: st.DrawFn) -> dict[str, list[str]]:
    """Draw modules in any order of registration, whose dependencies form no circle."""
    count = draw(st.integers(0, 10))
    names = [f"m{number}" for number in range(count)]
    edges = {
        name: draw(st.lists(st.sampled_from(names[:number]), max_size=5)) if number else []
        for number, name in enumerate(names)
    }
    return {name: edges[name] for name in draw(st.permutations(names))}


def test_nothing_has_an_empty_order() -> None:
    assert order({}) == []


def test_independent_modules_start_in_the_order_of_registration() -> None:
    assert order({"c": [], "a": [], "b": []}) == ["c", "a", "b"]


def test_a_long_chain_starts_from_its_end() -> None:
    assert order({f"m{n}": [f"m{n + 1}"] for n in range(50)} | {"m50": []}) == [f"m{n}" for n in range(50, -1, -1)]


def test_a_module_that_becomes_ready_goes_before_later_registered_ones() -> None:
    assert order({"late": ["base"], "base": [], "other": []}) == ["base", "late", "other"]


def test_a_diamond_starts_each_module_once() -> None:
    assert order({"top": ["left", "right"], "right": ["base"], "left": ["base"], "base": []}) == [
        "base",
        "right",
        "left",
        "top",
    ]


def test_a_dependency_that_is_listed_twice_is_one() -> None:
    assert order({"a": ["b", "b"], "b": []}) == ["b", "a"]


@given(acyclic())
def test_every_module_starts_after_its_dependencies_and_the_first_registered_first(graph: dict[str, list[str]]) -> None:
    result = order(graph)
    assert sorted(result) == sorted(graph)
    started: set[str] = set()
    for name in result:
        ready = [one for one in graph if one not in started and started.issuperset(graph[one])]
        assert name == ready[0]
        started.add(name)


@pytest.mark.parametrize(
    ("graph", "chain"),
    [
        ({"a": ["a"]}, ("a", "a")),
        ({"a": ["b"], "b": ["a"]}, ("a", "b", "a")),
        ({"b": ["a"], "a": ["b"]}, ("b", "a", "b")),
        ({"x": [], "c": ["a"], "b": ["c"], "a": ["b"], "y": ["a"]}, ("c", "a", "b", "c")),
        ({"start": ["one"], "one": ["two"], "two": ["three"], "three": ["two"]}, ("two", "three", "two")),
    ],
)
def test_a_circle_is_written_out_along_the_dependencies(graph: dict[str, list[str]], chain: tuple[str, ...]) -> None:
    with pytest.raises(CircularDependencyError) as caught:
        order(graph)
    assert caught.value.chain == chain
    assert " -> ".join(chain) in str(caught.value)


@given(acyclic().filter(bool), st.data())
def test_every_circle_that_is_reported_is_one(graph: dict[str, list[str]], data: st.DataObject) -> None:
    first = data.draw(st.sampled_from(sorted(graph)))
    last = data.draw(st.sampled_from(sorted(graph)))
    graph[first] = [*graph[first], last]
    graph[last] = [*graph[last], first]
    with pytest.raises(CircularDependencyError) as caught:
        order(graph)
    chain = caught.value.chain
    assert chain[0] == chain[-1]
    assert len(set(chain)) == len(chain) - 1
    assert all(needed in graph[name] for name, needed in itertools.pairwise(chain))


def test_a_missing_dependency_is_named_with_the_module_that_wants_it() -> None:
    with pytest.raises(MissingDependencyError, match="'a' depends on 'warehouse': no module of that name") as caught:
        order({"a": ["b", "warehouse"], "b": []})
    assert (caught.value.module, caught.value.dependency) == ("a", "warehouse")


def test_a_name_that_is_almost_right_is_suggested() -> None:
    with pytest.raises(MissingDependencyError, match="did you mean 'orders'"):
        order({"billing": ["order"], "orders": []})


def test_an_explanation_takes_the_place_of_the_suggestion() -> None:
    with pytest.raises(MissingDependencyError, match="'a' depends on 'kv': kv of a is a plugin"):
        start_order({"a": ["kv"]}, lambda module, name: f"{name} of {module} is a plugin")


def test_further_missing_dependencies_are_in_the_notes() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        order({"a": ["x", "y"], "b": ["z", "x", "x"]})
    assert (caught.value.module, caught.value.dependency) == ("a", "x")
    assert [note.split(":")[0] for note in caught.value.__notes__] == [
        "module 'a' depends on 'y'",
        "module 'b' depends on 'z'",
        "module 'b' depends on 'x'",
    ]


def test_a_missing_dependency_is_reported_before_a_circle() -> None:
    with pytest.raises(MissingDependencyError):
        order({"a": ["b"], "b": ["a"], "c": ["nobody"]})
