"""The blocking connection: states, publish and request, and JetStream's API on top of them."""

from mono_sync.connection._connection import CoreConnection
from mono_sync.connection._inbox import Inbox
from mono_sync.connection._jetstream import JetStream, Json, PubAck, StoredMessage, parse_time
from mono_sync.connection._state import ConnectionState, StateListener

__all__ = [
    "ConnectionState",
    "CoreConnection",
    "Inbox",
    "JetStream",
    "Json",
    "PubAck",
    "StateListener",
    "StoredMessage",
    "parse_time",
]
