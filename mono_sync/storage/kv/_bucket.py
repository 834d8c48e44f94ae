"""The key-value bucket."""

from __future__ import annotations

from mono_sync.storage.kv._modify import Modifications


class KVBucket(Modifications):
    """A key-value bucket (NATS ADR-8). Thread-safe; other NATS clients read what it writes and the reverse.

    Keys are letters, digits and ``- / _ = .``; values are bytes. Every call takes ``timeout``, a total deadline in
    seconds; omitted, it is the connection's.

    Every write happens once: it carries an id (`Nats-Msg-Id`), and when its answer is lost, because the connection
    breaks or the server restarts, it is looked for and sent again until the deadline. Reads are repeated as well. While
    there is no connection, calls wait within their deadlines. A client reads its own writes, from the bucket's leader
    where it is replicated, unless the bucket was opened with ``stale_reads``.

    Calls may raise, besides what they list:

    * `OperationTimeoutError`: the deadline passed. A write has not happened and never will, unless the error is the
      kind `OutcomeUnknownError`.
    * `OutcomeUnknownError`: the answer to a write was lost, and whether it happened could not be found out.
    * `ConnectionClosedError`: the connection is closed; a write under way may have happened.
    * `BucketNotFoundError`: the bucket was deleted meanwhile.
    * `InvalidKeyError`, `TypeError`: bad key or value; nothing was sent.
    * `JetStreamUnavailableError`: the server has no JetStream, or no leader for the bucket until the deadline.

    Get one from a plugin, or from ``connection.kv(name)``.
    """
