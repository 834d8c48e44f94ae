"""The states of an application."""

from __future__ import annotations

from enum import Enum


class ApplicationState(Enum):
    """What may be assumed of an application.

    The ways through: CREATED, STARTING, RUNNING, STOPPING, STOPPED; from STARTING to FAILED when a step of the start
    fails, or to STOPPED when somebody stops it meanwhile; from CREATED straight to STOPPED. No way leads back: an
    application is not restarted, a new one is made.
    """

    CREATED = "created"
    """Nothing runs. Modules and plugins can be registered, in this state only."""

    STARTING = "starting"
    """``start()`` is at work, or undoing its work after a failure. Some modules may run, others not."""

    RUNNING = "running"
    """Connection, plugins, middleware and modules have started. The connection may still be reconnecting."""

    STOPPING = "stopping"
    """``stop()`` is at work, or was interrupted; calling it again goes on where it was interrupted."""

    STOPPED = "stopped"
    """All that had started had its ``stop()`` called, the connection is closed. The application never leaves this
    state."""

    FAILED = "failed"
    """``start()`` failed; what had started has been stopped again, the connection is closed. The application never
    leaves this state."""
