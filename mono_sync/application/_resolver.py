"""The order in which modules start."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from mono_sync.errors import CircularDependencyError, MissingDependencyError


def start_order(dependencies: Mapping[str, Sequence[str]], explain: Callable[[str, str], str]) -> list[str]:
    """Return the modules in their start order, the same every time.

    Of all modules whose dependencies have started, the one that was registered first is next.

    Args:
        dependencies: for each module, in the order of registration, the names it depends on.
        explain: ``explain(module, dependency)`` says why a name is no module's; empty where there is nothing to say.

    Raises:
        MissingDependencyError: a name that no module has; further ones are in its notes.
        CircularDependencyError: modules depend on each other in a circle.
    """
    _check_complete(dependencies, explain)
    rank = {name: number for number, name in enumerate(dependencies)}
    sorter = TopologicalSorter({name: dict.fromkeys(needed) for name, needed in dependencies.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        raise CircularDependencyError(_written_out(error.args[1], rank)) from None
    order: list[str] = []
    ready: list[tuple[int, str]] = []
    while sorter.is_active():
        for name in sorter.get_ready():
            heapq.heappush(ready, (rank[name], name))
        _, first = heapq.heappop(ready)
        order.append(first)
        sorter.done(first)
    return order


def _check_complete(dependencies: Mapping[str, Sequence[str]], explain: Callable[[str, str], str]) -> None:
    missing = [
        MissingDependencyError(module, name, explain(module, name) or _did_you_mean(name, dependencies))
        for module, needed in dependencies.items()
        for name in dict.fromkeys(needed)
        if name not in dependencies
    ]
    if missing:
        first, *others = missing
        for other in others:
            first.add_note(str(other))
        raise first


def _did_you_mean(name: str, known: Mapping[str, object]) -> str:
    import difflib  # noqa: PLC0415  # only errors need it

    close = difflib.get_close_matches(name, known, n=1)
    return f"no module of that name is registered; did you mean {close[0]!r}?" if close else ""


def _written_out(cycle: Sequence[str], rank: Mapping[str, int]) -> list[str]:
    """Turn graphlib's circle, in which each one is needed by the next, to "depends on", first registered first."""
    circle = list(reversed(cycle))[:-1]
    first = circle.index(min(circle, key=rank.__getitem__))
    return [*circle[first:], *circle[:first], circle[first]]
