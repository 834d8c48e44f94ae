"""The consumers that a cluster was asked for, of which one is taken."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Final

from mono_sync.connection._answers import Json
from mono_sync.connection._inbox import Question

_LIFETIME: Final = 30_000_000_000  # without a pull
_MOST: Final = 8
_NO_ANSWER: Final = "d"


class Candidates:
    """The consumers of one client, each under a name of its own: messages of others are not taken for those of one.

    Args:
        stream: its name.
        old: names of earlier ones that may still be there.

    Attributes:
        name: of the one that was taken; empty until then.
    """

    def __init__(self, stream: str, old: Sequence[str]) -> None:
        self.name: str = ""
        self._stream = stream
        self._old = list(old)
        self._asked_for: dict[str, str] = {}  # names by the tags of the questions

    @property
    def names(self) -> list[str]:
        """All under which the server may have one; of many the latest, the others end by themselves."""
        return [*self._old, *self._asked_for.values(), *filter(None, [self.name])][-_MOST:]

    def __contains__(self, tag: str) -> bool:
        """Whether a question for one had this tag, and has not been answered."""
        return tag in self._asked_for

    def create(self, config: Json, tags: Sequence[str]) -> list[Question]:
        """Return questions for new ones, and for the end of some that nobody waits for any more."""
        given_up = [self._asked_for.pop(tag) for tag in list(self._asked_for)[:-_MOST]]
        return [*(self._creation(config, tag) for tag in tags), *map(self._deletion, given_up)]

    def pop(self, tag: str) -> str | None:
        """Return the name of the one that an answered question was for; None: it was about something else."""
        return self._asked_for.pop(tag, None)

    def take(self, name: str) -> None:
        """Keep this one, and none of the others."""
        self._old, self.name = self.names, name
        self._asked_for.clear()

    def delete_others(self) -> list[Question]:
        """Return questions for the end of all but the one that was taken."""
        old, self._old = self._old, []
        return [self._deletion(name) for name in old]

    def _creation(self, config: Json, tag: str) -> Question:
        name = self._asked_for[tag] = f"mono_sync_{secrets.token_hex(11)}"
        body = {"stream_name": self._stream, "config": config | {"name": name, "inactive_threshold": _LIFETIME}}
        return f"$JS.API.CONSUMER.CREATE.{self._stream}.{name}", json.dumps(body).encode(), b"", tag

    def _deletion(self, name: str) -> Question:
        return f"$JS.API.CONSUMER.DELETE.{self._stream}.{name}", b"", b"", _NO_ANSWER
