"""What the user reads at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from mono_sync.demo._auditor import Audit
from mono_sync.demo._indexer import IndexStatistics
from mono_sync.demo._text import counted, printable, size_text

_SHOWN = 5


@dataclass(slots=True)
class Report:
    """Seconds and findings of each step, in the order of the work; `text` makes them readable."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Take the time of the block."""
        self.lines.setdefault(step, [])
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = time.perf_counter() - begun

    def started(self, server: str, modules: int, plugins: int) -> None:
        """Say what has been started."""
        self.lines["start"] = [f"{server}; {counted(plugins, 'plugin')}, {counted(modules, 'module')}"]

    def stored(self, files: int, size: int, threads: int) -> None:
        """Say what has been stored."""
        seconds = self.seconds["store"]
        rates = f"{size_text(size / seconds)}/s, {files / seconds:,.0f} files/s"
        self.lines["store"] = [f"{counted(files, 'file')}, {size_text(size)}, by {counted(threads, 'thread')}: {rates}"]

    def indexed(self, index: IndexStatistics, hit_rate: float, threads: int) -> None:
        """Say what the index has cost."""
        if not index.writes:
            self.lines["index"] = ["no words, so nothing was written"]
            return
        rate = index.writes / self.seconds["index"]
        work = f"{counted(index.words, 'word')}, by {counted(threads, 'thread')}"
        attempts = f"{index.attempts_per_success:.2f} attempts per success, at most {index.most_attempts}"
        self.lines["index"] = [
            f"{work}: {counted(index.writes, 'write')}, {rate:,.0f} writes/s",
            f"{counted(index.conflicts, 'conflict')}, each retried: {attempts}; cache hit rate {hit_rate:.1%}",
        ]

    def verified(self, audit: Audit, size: int) -> None:
        """Say what the audit has found."""
        rate = size_text(size / self.seconds["verify"])
        self.lines["verify"] = [
            f"{counted(audit.objects, 'object')}, {size_text(size)}, read again: {rate}/s",
            f"{counted(audit.words, 'word')}, {audit.distinct:,} distinct, compared with {counted(audit.keys, 'key')}",
        ]
        self.faults += audit.faults
        if audit.faults:
            self.notes.append("this also happens when two demos share their buckets: each needs a --bucket of its own")
        if audit.changed:
            self.notes.append(f"changed since they were stored, so compared with that: {_some(audit.changed)}")

    def skipped(self, reasons: Mapping[str, str]) -> None:
        """Say what was left out."""
        if reasons:
            self.notes.append(f"skipped: {_some([f'{name} ({reason})' for name, reason in sorted(reasons.items())])}")

    def text(self) -> str:
        """Return the report."""
        lines = [""]
        for step, seconds in self.seconds.items():
            first, *others = self.lines[step] or [""]
            lines.append(f"  {step:<7}{seconds:>8.2f} s   {first}".rstrip())
            lines += [f"{'':<20}{other}" for other in others]
        lines.append(f"  {'total':<7}{sum(self.seconds.values()):>8.2f} s")
        lines += ["", *(f"Note: {note}." for note in self.notes)]
        if self.faults:
            lines.append(f"VERIFICATION FAILED: {_some(self.faults)}")
        else:
            lines.append("Verified: every object is what was stored, and every word is counted right.")
        return "\n".join(lines)


def _some(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return "; ".join(map(printable, items[:_SHOWN])) + (f"; and {more:,} more" if more > 0 else "")
