"""What a message of a key-value bucket did to its key."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mono_sync.adapter import parse_header_block
from mono_sync.storage._values import Operation

_MARK = re.compile(rb"\n(?:KV-Operation|Nats-Marker-Reason):")
_OPERATIONS = {operation.value: operation for operation in Operation}
_MARKED = {"MaxAge": Operation.PURGE, "Purge": Operation.PURGE, "Remove": Operation.DELETE}


def is_value(header_block: bytes) -> bool:
    """Return whether a message wrote a value, from its headers as they came; quick if it did."""
    return _MARK.search(header_block) is None or operation_in(header_block) is Operation.PUT


def operation_in(header_block: bytes) -> Operation:
    """Tell what a message did from its headers as they came; quick for values."""
    return operation_of(parse_header_block(header_block)[0]) if _MARK.search(header_block) else Operation.PUT


def operation_of(headers: Mapping[str, str]) -> Operation:
    """Tell what a message did: a client's mark of a deletion, or one that the server left (NATS ADR-8, ADR-48)."""
    if "Nats-Marker-Reason" in headers:
        return _MARKED.get(headers["Nats-Marker-Reason"], Operation.PURGE)
    return _OPERATIONS.get(headers.get("KV-Operation", ""), Operation.PUT)
