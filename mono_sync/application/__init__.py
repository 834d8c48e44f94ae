"""The application: modules and plugins that start and stop together on one connection."""

from __future__ import annotations

from mono_sync.application._app import MonoApplication
from mono_sync.application._health import ApplicationHealth, HealthStatus, ModuleHealth
from mono_sync.application._protocols import (
    DependentModule,
    HealthCheckableModule,
    MiddlewareModule,
    Module,
    ModuleLifecycleEvent,
    PluginModule,
    ServiceProviderModule,
    UsePluginModule,
)
from mono_sync.application._states import ApplicationState

__all__ = [
    "ApplicationHealth",
    "ApplicationState",
    "DependentModule",
    "HealthCheckableModule",
    "HealthStatus",
    "MiddlewareModule",
    "Module",
    "ModuleHealth",
    "ModuleLifecycleEvent",
    "MonoApplication",
    "PluginModule",
    "ServiceProviderModule",
    "UsePluginModule",
]
