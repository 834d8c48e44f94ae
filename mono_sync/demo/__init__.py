"""The demo: an application with three plugins and three modules that does real work and verifies all of it.

``python -m mono_sync demo`` runs it. It is written with nothing but the public names of `mono_sync`, so it also shows
how an application is put together: `_run` registers and drives it, `_library`, `_indexer` and `_auditor` are its
modules, and `_cache` is a plugin of its own.
"""

from __future__ import annotations

from mono_sync.demo._cli import add_arguments, run_command

__all__ = ["add_arguments", "run_command"]
