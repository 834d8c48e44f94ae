"""Names of a package that are imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType


def on_demand(
    package: str, names_of: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and the ``__dir__`` of a package that has some of its names on demand.

    Type checkers find the same names in imports under ``TYPE_CHECKING``. An import that is interrupted leaves nothing
    half done: the next one who asks begins it again.

    Args:
        package: the ``__name__`` of the package.
        names_of: the modules that have the names.
    """
    module_of = {name: module for module, names in names_of.items() for name in names}

    def itself() -> ModuleType:
        return sys.modules[package]

    def get(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=itself())
        value = getattr(import_module(module_of[name]), name)
        setattr(itself(), name, value)  # next time it is found there
        return value

    def directory() -> list[str]:
        return sorted({*vars(itself()), *module_of})

    return get, directory
