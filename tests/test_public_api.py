"""What a user can see of mono_sync: names, docstrings, annotations, version."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mono_sync

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(path.parent.name for path in ROOT.glob("mono_sync/*/__init__.py"))
CHECKED_SPECIAL = {"__enter__", "__exit__", "__init__", "__call__"}


def ours(item: object) -> bool:
    return (getattr(item, "__module__", None) or "").partition(".")[0] == "mono_sync"


def function_of(member: object) -> Callable[..., Any] | None:
    """Return the function behind a method, class method, static method or property."""
    if isinstance(member, property):
        return member.fget
    function = inspect.unwrap(member.__func__) if isinstance(member, (classmethod, staticmethod)) else member
    return function if inspect.isfunction(function) else None


def members_of(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the public methods and properties that a class has from mono_sync, inherited ones included."""
    seen: set[str] = set()
    for base in cls.__mro__:
        if not ours(base):
            continue
        for name, member in vars(base).items():
            function = function_of(member)
            public = not name.startswith("_") or name in CHECKED_SPECIAL
            if function is not None and public and name not in seen and ours(function):
                seen.add(name)
                yield name, function


def public_items() -> dict[str, Any]:
    return {name: getattr(mono_sync, name) for name in mono_sync.__all__}


CALLABLES: dict[str, Any] = {
    name: item for name, item in public_items().items() if inspect.isclass(item) or inspect.isfunction(item)
}
CLASSES: dict[str, type] = {name: item for name, item in CALLABLES.items() if inspect.isclass(item)}
MEMBERS = {f"{name}.{member}": (cls, member) for name, cls in CLASSES.items() for member, _ in members_of(cls)}


def test_all_is_sorted_without_duplicates() -> None:
    assert list(mono_sync.__all__) == sorted(set(mono_sync.__all__))


def test_all_is_exactly_what_the_package_exports() -> None:
    exported = {
        name
        for name, item in vars(mono_sync).items()
        if not name.startswith("_")
        and not isinstance(item, types.ModuleType)
        and name not in {"annotations", "TYPE_CHECKING"}
    }
    assert set(mono_sync.__all__) == exported


def test_every_error_is_public() -> None:
    errors = importlib.import_module("mono_sync.errors")
    assert set(errors.__all__) <= set(mono_sync.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_layer_lists_its_names(package: str) -> None:
    layer = importlib.import_module(f"mono_sync.{package}")
    assert list(layer.__all__) == sorted(set(layer.__all__))
    assert all(hasattr(layer, name) for name in layer.__all__)


@pytest.mark.parametrize("name", CALLABLES)
def test_public_name_has_a_docstring(name: str) -> None:
    doc = CALLABLES[name].__doc__
    assert doc
    assert not doc.startswith(f"{name}("), "that is what dataclass writes where the author wrote nothing"
    assert doc != "An enumeration.", "that is what Enum writes where the author wrote nothing"


@pytest.mark.parametrize("qualified", [name for name in MEMBERS if not name.endswith("__")])
def test_public_member_has_a_docstring(qualified: str) -> None:
    cls, member = MEMBERS[qualified]
    assert inspect.getdoc(inspect.getattr_static(cls, member)) or inspect.getdoc(getattr(cls, member))


@pytest.mark.parametrize("name", CALLABLES)
def test_annotations_of_public_name_resolve_at_run_time(name: str) -> None:
    typing.get_type_hints(CALLABLES[name])


@pytest.mark.parametrize("qualified", MEMBERS)
def test_annotations_of_public_member_resolve_at_run_time(qualified: str) -> None:
    cls, member = MEMBERS[qualified]
    typing.get_type_hints(dict(members_of(cls))[member])


def test_changelog_speaks_of_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = re.search(r"^## \[Unreleased\]\n+Will become (\S+)\.$|^## \[(\d\S*)\]", changelog, re.MULTILINE)
    assert newest
    assert mono_sync.__version__ in newest.groups()


@pytest.fixture
def distribution() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution("mono-sync")
    except importlib.metadata.PackageNotFoundError:
        if "TOX_ENV_NAME" in os.environ:
            raise
        pytest.skip("mono-sync is not installed here; tox installs it")


def test_installed_metadata_has_this_version(distribution: importlib.metadata.Distribution) -> None:
    assert distribution.version == mono_sync.__version__


def test_installed_distribution_holds_every_file(distribution: importlib.metadata.Distribution) -> None:
    if '"editable": true' in (distribution.read_text("direct_url.json") or ""):
        pytest.skip("an editable installation holds no files")
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "mono_sync").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert sources
    assert sources <= {file.as_posix() for file in distribution.files or ()}


def test_installed_console_script_starts_main(distribution: importlib.metadata.Distribution) -> None:
    scripts = {entry.name: entry for entry in distribution.entry_points if entry.group == "console_scripts"}
    assert scripts["mono-sync"].value == "mono_sync.__main__:main"
    assert callable(scripts["mono-sync"].load())
