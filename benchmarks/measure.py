"""How long something takes against a peer, in turns, and the row of the table that comes of it."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Protocol, TypeAlias

from pytest_benchmark.fixture import BenchmarkFixture

Run: TypeAlias = Callable[[], float]
"""Does something once or many times, and returns the seconds of one time."""

Loop: TypeAlias = Literal["asyncio", "uvloop"]
Thread: TypeAlias = Literal["main", "worker"]

_PAUSE = 0.001


# --- runs


def repeated(call: Callable[[], object], calls: int) -> Run:
    """One thread calls again and again; the mean."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls

    return run


def spaced(sample: Callable[[], float], samples: int) -> Run:
    """Samples with a pause before each, in which every other thread comes to rest; their median."""

    def run() -> float:
        taken = []
        for _ in range(samples):
            time.sleep(_PAUSE)
            taken.append(sample())
        return statistics.median(taken)

    return run


def in_threads(call: Callable[[], object], threads: int, calls: int) -> Run:
    """So many threads call at once; the time from the first call to the last answer, divided by all calls."""

    def run() -> float:
        barrier = threading.Barrier(threads)

        def work(_number: int) -> tuple[float, float]:
            barrier.wait()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            return start, time.perf_counter()

        with ThreadPoolExecutor(threads) as pool:
            spans = list(pool.map(work, range(threads)))
        whole = max(end for _, end in spans) - min(start for start, _ in spans)
        return whole / (threads * calls)

    return run


def on_thread(thread: Thread, function: Callable[[], None]) -> None:
    """Call a function in the main thread or in another."""
    if thread == "main":
        function()
    else:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(function).result()


# --- what is measured, and what came of it


@dataclass(frozen=True, slots=True)
class Goals:
    """What a figure must reach, and what is aimed at.

    Attributes:
        must: at most this.
        aim: better at most this.
        at_least: both are to be exceeded instead.
    """

    must: float | None = None
    aim: float | None = None
    at_least: bool = False

    def shown(self, goal: float | None) -> str:
        return "" if goal is None else f"{'≥' if self.at_least else '≤'} {goal:g}"

    def reached(self, value: float) -> str:
        """Name the goals that a value reaches."""
        goals = {"must": self.must, "aim": self.aim}
        given = {name: goal for name, goal in goals.items() if goal is not None}
        reached = [name for name, goal in given.items() if (value >= goal if self.at_least else value <= goal)]
        return " and ".join(reached) or ("no" if given else "")


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the table, before it is measured.

    Attributes:
        title: what is done.
        peer: who does it as well.
        goals: for the ratio: of the two times where it is to be small, of the two speeds where it is to be large.
        per_second: whether times are shown as calls per second.
    """

    title: str
    peer: str
    goals: Goals = Goals()
    per_second: bool = False

    def shown(self, seconds: float) -> str:
        if self.per_second:
            return f"{1 / seconds:,.0f}/s"
        for unit, size in (("s", 1.0), ("ms", 1e-3)):
            if seconds >= size:
                return f"{seconds / size:.3g} {unit}"
        return f"{seconds * 1e6:.0f} µs"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table, as text."""

    figure: str
    ours: str
    peer: str
    ratio: str
    must: str
    aim: str
    reached: str


class Record(Protocol):
    """Keeps a row for the table, and in the JSON together with further facts."""

    def __call__(self, row: Row, /, **facts: Any) -> None: ...


class Compare(Protocol):
    """Runs both in turns, and keeps the row of a figure."""

    def __call__(self, figure: Figure, ours: Run, peer: Run, *, rounds: int) -> None: ...


def compare(benchmark: BenchmarkFixture, record: Record, figure: Figure, ours: Run, peer: Run, *, rounds: int) -> None:
    """Run ours and the peer in turns, after one run of each that does not count, and record what came of it."""
    mine: list[float] = []
    theirs: list[float] = []
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        lambda: mine.append(ours()), setup=lambda: theirs.append(peer()), rounds=rounds, warmup_rounds=1
    )
    if benchmark.enabled:
        row, facts = result(figure, mine[1:], theirs[1:])
        record(row, **facts)


def result(figure: Figure, ours: Sequence[float], peer: Sequence[float]) -> tuple[Row, dict[str, object]]:
    """Return the row of paired times, and the numbers behind it: medians of the times and of the pairs' ratios."""
    pairs = list(zip(ours, peer, strict=True))
    ratios = [theirs / mine if figure.goals.at_least else mine / theirs for mine, theirs in pairs]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    mine, theirs = statistics.median(ours), statistics.median(peer)
    row = Row(
        figure=figure.title,
        ours=figure.shown(mine),
        peer=f"{figure.shown(theirs)} {figure.peer}",
        ratio=f"{ratio:#.3g} ({low:#.3g} to {high:#.3g})",
        must=figure.goals.shown(figure.goals.must),
        aim=figure.goals.shown(figure.goals.aim),
        reached=figure.goals.reached(ratio),
    )
    return row, {
        "ours_seconds": mine,
        "peer_seconds": theirs,
        "ratio_quartiles": [low, ratio, high],
        "pairs_seconds": pairs,
    }


def table(rows: Iterable[Row]) -> list[str]:
    """Return the lines of a Markdown table whose columns are aligned."""
    head = tuple(field.name for field in fields(Row))
    body = [tuple(asdict(row).values()) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))} |"

    return [line(head), f"|{'|'.join('-' * (width + 2) for width in widths)}|", *map(line, body)]
