"""The NATS client that the library is built on, behind our own types.

Only `mono_sync.adapter.client` imports nats; nothing of nats leaves this package.
"""

from mono_sync.adapter._address import ServerAddress
from mono_sync.adapter._config import ConnectionConfig, ConnectionOptions
from mono_sync.adapter._info import ServerInfo
from mono_sync.adapter._link import Link, LinkState, Listening, NotSentError, OtherServerError, Request, Waiter
from mono_sync.adapter._message import (
    Message,
    Payload,
    add_known_header,
    check_header,
    check_payload,
    check_subject,
    encode_headers,
    encode_known_headers,
    encode_publish,
    parse_header_block,
)

__all__ = [
    "ConnectionConfig",
    "ConnectionOptions",
    "Link",
    "LinkState",
    "Listening",
    "Message",
    "NotSentError",
    "OtherServerError",
    "Payload",
    "Request",
    "ServerAddress",
    "ServerInfo",
    "Waiter",
    "add_known_header",
    "check_header",
    "check_payload",
    "check_subject",
    "encode_headers",
    "encode_known_headers",
    "encode_publish",
    "parse_header_block",
]
