"""The blocking connection: states, publish and request, and JetStream's API on top of them."""

from mono_sync.connection._answers import Json, StoredMessage, parse_time, read_ack, read_direct
from mono_sync.connection._atomic import AtomicBatches, BatchRefusedError, Conditional
from mono_sync.connection._connection import CoreConnection
from mono_sync.connection._delivery import Delivery, DeliveryLostError
from mono_sync.connection._exactly_once import (
    ExactlyOnce,
    Write,
    actual_revision,
    is_conflict,
    is_out_of_turn,
    is_under_way,
)
from mono_sync.connection._follower import Followed, Follower, Start
from mono_sync.connection._inbox import Inbox, Question
from mono_sync.connection._jetstream import JetStream, direct_question
from mono_sync.connection._pipeline import Batch
from mono_sync.connection._reading import Listed, StreamReader
from mono_sync.connection._state import ConnectionState, StateListener

__all__ = [
    "AtomicBatches",
    "Batch",
    "BatchRefusedError",
    "Conditional",
    "ConnectionState",
    "CoreConnection",
    "Delivery",
    "DeliveryLostError",
    "ExactlyOnce",
    "Followed",
    "Follower",
    "Inbox",
    "JetStream",
    "Json",
    "Listed",
    "Question",
    "Start",
    "StateListener",
    "StoredMessage",
    "StreamReader",
    "Write",
    "actual_revision",
    "direct_question",
    "is_conflict",
    "is_out_of_turn",
    "is_under_way",
    "parse_time",
    "read_ack",
    "read_direct",
]
