"""The object bucket."""

from __future__ import annotations

from mono_sync.storage.objects._describing import Describing


class ObjectBucket(Describing):
    """An object bucket (NATS ADR-20). Thread-safe; other NATS clients read what it writes and the reverse.

    Names are any text that is not empty. An object is replaced as a whole: readers see the old one or the new one.
    Every call takes ``timeout``, a total deadline in seconds for all chunks together; omitted, it is the connection's.
    Calls may raise, besides what they list, `OperationTimeoutError`, `ConnectionLostError` and `ConnectionClosedError`
    (a write may have happened in the first two cases), `BucketNotFoundError` when the bucket was deleted meanwhile,
    `InvalidKeyError` and `TypeError` on bad arguments, `JetStreamUnavailableError`, and `StorageError` where another
    client has left something that does not describe an object.

    Get one from a plugin, or from ``connection.objects(name)``.
    """
