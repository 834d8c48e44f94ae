"""Reading and writing many keys at a time."""

from __future__ import annotations

from mono_sync._durations import DEFAULT, Timeout
from mono_sync.storage._marks import operation_of
from mono_sync.storage._names import check_pattern
from mono_sync.storage._values import Operation
from mono_sync.storage.kv._single import SingleKeys


class ManyKeys(SingleKeys):
    """The calls of a key-value bucket that concern many keys."""

    def keys(self, pattern: str = ">", *, timeout: Timeout = DEFAULT) -> list[str]:
        """Return the live keys that match a pattern, each once, in the order of their last writes.

        Keys that exist during the whole call are never left out, however much is written meanwhile.

        Args:
            pattern: tokens between dots; ``*`` stands for one token, ``>`` at the end for all that follow.
            timeout: total deadline.
        """
        subject, deadline = self._prefix + check_pattern(pattern), self._deadline(timeout)
        with self._errors(deadline, "listing keys", pattern):
            messages = self._jetstream.last_of_each(
                self._stream, subject, deadline, direct=self._direct, headers_only=True
            )
        return [
            message.subject[len(self._prefix) :]
            for message in messages
            if operation_of(message.headers) is Operation.PUT
        ]
