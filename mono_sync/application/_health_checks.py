"""Asks modules how they are, all at once and with a bound."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable
from typing import Any, Protocol

from mono_sync._threads import start_thread
from mono_sync.application._health import HealthStatus, ModuleHealth
from mono_sync.application._jobs import Job, Outcome, describe

_log = logging.getLogger("mono_sync.application")


class Checkable(Protocol):
    """A registered module."""

    @property
    def name(self) -> str: ...
    @property
    def module(self) -> Any: ...
    def has(self, hook: str, /) -> bool: ...


class HealthChecks:
    """Runs the health checks of an application. Thread-safe.

    Each check has a thread of its own, so that one that hangs delays no other. A check that still hangs is not started
    again: at most one thread per module can be stuck.
    """

    def __init__(self) -> None:
        self._jobs: dict[tuple[int, str], Job] = {}  # by process too: a forked child has none of its parent's threads

    def run(self, modules: Iterable[Checkable], timeout: float) -> dict[str, ModuleHealth]:
        """Ask every module that can be asked. Returns within ``timeout`` seconds."""
        asked = [(module, self._begin(module) if module.has("health") else None) for module in modules]
        return {
            module.name: ModuleHealth(healthy=True) if job is None else _finish(job, timeout) for module, job in asked
        }

    def _begin(self, module: Checkable) -> Job:
        """Start a check; one that runs already answers for this call too."""
        key = os.getpid(), module.name
        job = Job(module.module.health, f"health() of {module.name!r}")
        running = self._jobs.setdefault(key, job)
        if running is not job:
            return running
        thread = threading.Thread(
            target=_check, args=(job, self._jobs, key), name=f"mono_sync-health-{module.name}", daemon=True
        )
        try:
            start_thread(thread)
        except RuntimeError as error:
            job.fail(error)
            del self._jobs[key]
        return job


def _check(job: Job, jobs: dict[tuple[int, str], Job], key: tuple[int, str]) -> None:
    job.execute()
    del jobs[key]  # by nobody else, so that there is never a second check beside this one


def _finish(job: Job, timeout: float) -> ModuleHealth:
    outcome = job.wait(max(0.0, timeout - job.seconds))
    if outcome is not None:
        return _read(outcome)
    message = f"health() has not answered for {job.seconds:.1f} s"
    _log.warning("%s: %s. Its stack:\n%s", job.label, message, "".join(job.stack().format()))
    return ModuleHealth(healthy=False, message=message, supports_health=True)


def _read(outcome: Outcome) -> ModuleHealth:
    status = outcome.result
    if outcome.error is not None:
        message = f"health() failed: {describe(outcome.error)}"
    elif not isinstance(status, HealthStatus):
        message = f"health() returned {type(status).__name__}, not HealthStatus"
    else:
        return ModuleHealth(status.healthy, status.message, status.details, supports_health=True)
    return ModuleHealth(healthy=False, message=message, supports_health=True)
