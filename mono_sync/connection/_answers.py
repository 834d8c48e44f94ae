"""What JetStream answers, and the messages of its streams."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeAlias

from mono_sync.adapter import Message, parse_header_block
from mono_sync.errors import JetStreamAPIError, JetStreamUnavailableError, NoRespondersError

Json: TypeAlias = dict[str, Any]

_NOT_ENABLED: Final = frozenset({10035, 10039, 10076})
_NOT_NOW: Final = frozenset(
    {10008, 10009, 10118, 10119, 10163, 10167}  # no leader; its servers are away; more writes than it can queue
)
_PLAIN_ACK: Final = re.compile(rb'\{"stream":"[^"]*", ?"seq":(\d+)\}')  # as nearly all are: no JSON to be parsed


class StoredMessage(NamedTuple):
    """A message of a stream.

    Attributes:
        subject: its subject.
        data: its payload.
        headers: its own headers, and on direct reads the server's.
        sequence: its place in the stream.
        time: when it was stored.
        pending: how many messages follow it in the consumer that delivered it; 0 elsewhere.
    """

    subject: str
    data: bytes
    headers: Mapping[str, str]
    sequence: int
    time: datetime
    pending: int = 0


def read_answer(data: bytes, context: str) -> Json:
    """Read the API's answer.

    Raises:
        JetStreamUnavailableError: JetStream is not enabled, or has no leader.
        JetStreamAPIError: any other refusal.
    """
    answer: Json = json.loads(data)
    error = answer.get("error")
    if error is None:
        return answer
    code, err_code = int(error.get("code", 0)), int(error.get("err_code", 0))
    description = str(error.get("description", "no reason given"))
    if err_code in _NOT_ENABLED or err_code in _NOT_NOW:
        raise JetStreamUnavailableError(f"{context}: {description}", temporary=err_code in _NOT_NOW)
    raise JetStreamAPIError(code, err_code, description, context=context)


def read_ack(message: Message, context: str) -> int:
    """Return the sequence of a message from the answer to its publish: its own, or of an earlier one of the same id.

    Raises:
        NoRespondersError: no stream takes the subject.
        JetStreamAPIError: the server refused it.
    """
    plain = _PLAIN_ACK.fullmatch(message.data)
    if plain is not None:
        return int(plain[1])
    if message.status == 503:
        raise NoRespondersError(context)
    sequence: int = read_answer(message.data, context)["seq"]
    return sequence


def read_direct(message: Message) -> StoredMessage | None:
    """Read the answer to a direct get; None: there is no such message."""
    if message.status == 404:
        return None
    if message.status is not None:
        raise JetStreamAPIError(message.status, 0, message.description, context="direct get")
    headers = message.headers
    sequence, time = int(headers["Nats-Sequence"]), parse_time(headers["Nats-Time-Stamp"])
    return StoredMessage(headers["Nats-Subject"], message.data, headers, sequence, time)


def read_raw(found: Json) -> StoredMessage:
    """Read what the leader says of a message."""
    headers = parse_header_block(b64decode(found.get("hdrs", "")))[0]
    data = b64decode(found.get("data", ""))
    return StoredMessage(found["subject"], data, headers, found["seq"], parse_time(found["time"]))


class Place(NamedTuple):
    """Where in its stream a message is that a consumer delivered.

    Attributes:
        sequence: its number.
        nanoseconds: when it was stored, since 1970.
        pending: how many the consumer has after it.
        delivery: its number among those that the consumer delivered.
    """

    sequence: int
    nanoseconds: int
    pending: int
    delivery: int


def place_of(message: Message) -> Place:
    """Return the place of a consumer's message, which is in its reply subject (`$JS.ACK.…`, NATS ADR-15)."""
    tokens = tokens_of(message)
    return Place(int(tokens[5]), int(tokens[7]), int(tokens[8]), int(tokens[6]))


def tokens_of(message: Message) -> list[str]:
    """Return the tokens of a consumer's message, as a server puts them that has no domain.

    Sequence in the stream, number of the delivery and nanoseconds since 1970 are those from 5 on.
    """
    tokens = message.reply.split(".")
    if len(tokens) > 9:  # with domain and account in front
        del tokens[2:4]
    return tokens


def read_delivered(message: Message) -> StoredMessage:
    place = place_of(message)
    time = datetime.fromtimestamp(place.nanoseconds // 1000 / 1e6, UTC)  # not rounded, as by `parse_time`
    return StoredMessage(message.subject, message.data, message.headers, place.sequence, time, place.pending)


def parse_time(text: str) -> datetime:
    """Parse the server's RFC 3339 times, whose fractions have up to nine digits."""
    head, _, tail = text.partition(".")
    if not tail:
        return datetime.fromisoformat(text)
    digits = tail[: len(tail) - len(tail.lstrip("0123456789"))]
    return datetime.fromisoformat(f"{head}.{digits[:6]:0<6}{tail[len(digits) :]}")
