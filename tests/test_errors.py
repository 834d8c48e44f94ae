"""The tree of errors is the one that is drawn, and every error survives pickling and copying."""

from __future__ import annotations

import builtins
import copy
import errno
import inspect
import pickle
import re
from typing import Any, NamedTuple, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mono_sync import errors
from mono_sync.errors import (
    BucketFullError,
    BucketSealedError,
    KeyExistsError,
    MonoError,
    ObjectExistsError,
    ObjectNotFoundError,
)


class Drawn(NamedTuple):
    depth: int
    parent: str | None
    others: tuple[str, ...]  # the other bases


DRAWN_LINE = re.compile(r"(?P<branch> {4}[│├└─ ]*)(?P<name>\w+Error)\b(?: {2,}\(?(?P<other>\w+Error)\)?(?: |$))?")
ATTRIBUTES = re.compile(r"^Attributes:\n((?: {4}.*\n?)+)", re.MULTILINE)


def read_tree(docstring: str) -> dict[str, Drawn]:
    tree: dict[str, Drawn] = {}
    path: list[str] = []  # from the root down to the line before
    for line in docstring.splitlines():
        found = re.match(
            r"(?P<branch> {4}[│├└─ ]*)(?P<name>\w+Error)\b(?: {2,}\(?(?P<other>\w+Error)\)?(?: |$))?", line
        )
        if found:
            depth = len(found["branch"]) // 4 - 1
            del path[depth:]
            tree[found["name"]] = Drawn(depth, path[-1] if path else None, (found["other"],) if found["other"] else ())
            path.append(found["name"])
    return tree


TREE = read_tree(errors.__doc__ or "")
CLASSES: dict[str, Any] = {
    name: item for name, item in vars(errors).items() if inspect.isclass(item) and issubclass(item, BaseException)
}
few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # for each of 50 classes
every_class = pytest.mark.parametrize("cls", list(CLASSES.values()), ids=list(CLASSES))


def strategy_for(hint: Any) -> st.SearchStrategy[Any]:
    numbers = st.floats(allow_nan=False)  # NaN is unequal to itself, so it could not be compared
    if hint is float:
        return numbers
    if hint == float | None:
        return st.none() | numbers
    return st.from_type(hint)


def instances_of(cls: type[MonoError]) -> st.SearchStrategy[MonoError]:
    hints = get_type_hints(cls.__init__)
    return st.builds(cls, **{name: strategy_for(hints[name]) for name in inspect.signature(cls).parameters})


def facts(item: object) -> object:
    """Return what can be compared: an exception is only ever equal to itself."""
    if isinstance(item, MonoError):
        return type(item), str(item), item.args, facts(vars(item))
    if isinstance(item, dict):
        return {key: facts(value) for key, value in item.items()}
    return item


def test_the_drawing_names_exactly_the_classes() -> None:
    assert set(TREE) == set(CLASSES)
    assert len(TREE) > 40


def test_all_names_exactly_the_classes() -> None:
    assert errors.__all__ == sorted(CLASSES)


def test_the_only_root_is_mono_error() -> None:
    assert [name for name, drawn in TREE.items() if drawn.depth == 0] == ["MonoError"]


@pytest.mark.parametrize("name", [name for name in TREE if name != "MonoError"])
def test_class_stands_where_it_is_drawn(name: str) -> None:
    parent, *others = (base.__name__ for base in CLASSES[name].__bases__)
    assert (parent, tuple(others)) == (TREE[name].parent, TREE[name].others)
    assert issubclass(CLASSES[name], MonoError)


@pytest.mark.parametrize("name", [name for name, drawn in TREE.items() if drawn.others])
def test_except_with_the_drawn_builtin_catches_the_error(name: str) -> None:
    other: type[BaseException] = getattr(builtins, TREE[name].others[0], None) or CLASSES[TREE[name].others[0]]
    assert issubclass(CLASSES[name], other)


@every_class
@few
@given(data=st.data())
def test_pickled_error_keeps_type_message_and_facts(cls: type[MonoError], data: st.DataObject) -> None:
    error = data.draw(instances_of(cls))
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is cls
        assert facts(again) == facts(error)


@every_class
@few
@given(data=st.data())
def test_copied_error_keeps_type_message_and_facts(cls: type[MonoError], data: st.DataObject) -> None:
    error = data.draw(instances_of(cls))
    for again in (copy.copy(error), copy.deepcopy(error)):
        assert type(again) is cls
        assert facts(again) == facts(error)


@every_class
@few
@given(data=st.data())
def test_str_of_an_error_is_its_message(cls: type[MonoError], data: st.DataObject) -> None:
    error = data.draw(instances_of(cls))
    assert error.args == (str(error),)
    assert repr(error).startswith(f"{cls.__name__}(")


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (ObjectNotFoundError("b", "k"), errno.ENOENT),
        (KeyExistsError("b", "k"), errno.EEXIST),
        (ObjectExistsError("b", "k"), errno.EEXIST),
        (BucketFullError("b", "maximum bytes exceeded"), errno.ENOSPC),
        (BucketSealedError("b"), errno.EPERM),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_that_files_have_too_have_their_number(error: OSError, number: int) -> None:
    assert error.errno == number
    assert pickle.loads(pickle.dumps(error)).errno == number


@pytest.mark.parametrize("cls", [cls for cls in CLASSES.values() if "message" in inspect.signature(cls).parameters])
def test_the_given_message_is_the_message(cls: type[MonoError]) -> None:
    others = {name: "x" for name in inspect.signature(cls).parameters if name != "message"}
    assert str(cls(message="what went wrong", **others)) == "what went wrong"


def documented_attributes(cls: type[MonoError]) -> set[str]:
    found: set[str] = set()
    for base in cls.__mro__:
        section = ATTRIBUTES.search(inspect.cleandoc(vars(base).get("__doc__") or ""))
        if section and base.__module__ == errors.__name__:
            found.update(re.findall(r"^ {4}(\w+):", section[1], re.MULTILINE))
    return found


@every_class
@few
@given(data=st.data())
def test_the_documented_facts_are_the_attributes(cls: type[MonoError], data: st.DataObject) -> None:
    assert set(vars(data.draw(instances_of(cls)))) == documented_attributes(cls)
