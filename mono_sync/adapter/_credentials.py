"""Files with credentials, checked before nats-py sees them: its reader never ends on a file without a JWT."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mono_sync.errors import ConfigurationError

_SEED = re.compile(r"SU[A-Z2-7]{56}")
_MARKERS = ("BEGIN NATS USER JWT", "BEGIN USER NKEY SEED")


def _read(path: str | os.PathLike[str], what: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigurationError(f"cannot read the {what} {os.fspath(path)}: {reason}") from error


def read_credentials(path: str | os.PathLike[str]) -> str:
    """Return the text of a ``.creds`` file.

    Raises:
        ConfigurationError: it cannot be read, or lacks the JWT or the seed.
    """
    text = _read(path, "credentials file")
    for marker in _MARKERS:
        if marker not in text:
            raise ConfigurationError(f"{os.fspath(path)} is no credentials file: it has no line '{marker}'")
    return text


def read_seed(nkey: str | os.PathLike[str]) -> str:
    """Return an NKEY user seed, given itself (str) or as a file (path object).

    Raises:
        ConfigurationError: the file cannot be read, or it is no user seed; the message does not repeat it.
    """
    seed = nkey if isinstance(nkey, str) else _read(nkey, "NKEY file")
    if not _SEED.fullmatch(seed.strip()):
        raise ConfigurationError("nkey is not the seed of a user: 58 characters that begin with SU")
    return seed.strip()
