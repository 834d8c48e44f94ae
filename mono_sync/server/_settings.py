"""Write the configuration file of a nats-server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from mono_sync.errors import UnsupportedByServerError
from mono_sync.server._binary import Binary
from mono_sync.server._config import EmbeddedServerConfig

_SYNC_SINCE: Final = (2, 10, 0)
_LOG_COUNT_SINCE: Final = (2, 11, 0)
_LIMITS_CONSUMERS_SINCE: Final = (2, 15, 0)
_LOG_BYTES: Final = 8 * 1024 * 1024


def settings_text(
    config: EmbeddedServerConfig, binary: Binary, *, port: int, token: str, run_dir: Path, store_dir: Path, log: Path
) -> str:
    """Return the configuration in NATS's syntax; a port of -1 is a free one, written to a file in ``run_dir``.

    Raises:
        UnsupportedByServerError: ``sync_interval`` is given and the server does not know it.
    """
    jetstream = {"store_dir": quoted(str(store_dir))}
    if config.max_memory is not None:
        jetstream["max_memory_store"] = str(config.max_memory)
    if config.max_file is not None:
        jetstream["max_file_store"] = str(config.max_file)
    if config.sync_interval is not None:
        jetstream["sync_interval"] = _sync_interval(config, binary)
    if binary.number >= _LIMITS_CONSUMERS_SINCE:  # else 1,000 for each stream, and every watcher is one
        jetstream["limits"] = _block({"default_max_consumers": "-1"})
    settings = {
        "listen": quoted(f"127.0.0.1:{port}"),
        "authorization": _block({"token": quoted(token)}),
        "jetstream": _block(jetstream),
        "ports_file_dir": quoted(str(run_dir)),
        "logfile": quoted(str(log)),
        "logtime": "true",
        "log_size_limit": str(_LOG_BYTES),
    }
    if binary.number >= _LOG_COUNT_SINCE:
        settings["logfile_max_num"] = "2"
    if config.max_payload is not None:
        settings["max_payload"] = str(config.max_payload)
    return "".join(f"{name}: {value}\n" for name, value in settings.items())


def _sync_interval(config: EmbeddedServerConfig, binary: Binary) -> str:
    if binary.number < _SYNC_SINCE:
        raise UnsupportedByServerError("sync_interval", ".".join(map(str, _SYNC_SINCE)), binary.version)
    if config.sync_interval == "always":
        return quoted("always")
    assert isinstance(config.sync_interval, float)
    return quoted(f"{round(config.sync_interval * 1e9)}ns")


def _block(settings: dict[str, str]) -> str:
    return "{ " + ", ".join(f"{name}: {value}" for name, value in settings.items()) + " }"


def quoted(value: str) -> str:
    """Return a string as NATS's configuration syntax reads it back: quoted, so that it is never a variable."""
    special = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(special.get(character, character) for character in value) + '"'


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(os.fsencode(text))
