"""How the server's refusals look to somebody who uses a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mono_sync.errors import (
    BucketConfigError,
    BucketFullError,
    BucketNotFoundError,
    BucketSealedError,
    InvalidKeyError,
    InvalidSubjectError,
    JetStreamAPIError,
    MessageTooLargeError,
    ValueTooLargeError,
)
from mono_sync.storage._config import STREAM_NOT_FOUND

_TOO_LARGE = 10054
_FULL = frozenset({10023, 10047, 10077})  # resources and storage of the server, limit of the stream
_SEALED = 10109
_TTL_DISABLED = 10166
_ATOMIC_DISABLED = 10174


@contextmanager
def bucket_errors(bucket: str, key: str = "", size: int = 0) -> Iterator[None]:
    """Turn what connection and server refuse into errors that name bucket and key.

    Raises:
        BucketNotFoundError: its stream is gone.
        BucketFullError: a limit is reached.
        BucketSealedError: it is sealed.
        ValueTooLargeError: more than bucket or server take.
        InvalidKeyError: the key does not fit one line of the protocol, which a long ``inbox_prefix`` shortens.
        BucketConfigError: the bucket does not allow a TTL per key, or transactions.
    """
    try:
        yield
    except InvalidSubjectError as error:
        raise InvalidKeyError(key, "it is too long for one line of the protocol") from error
    except MessageTooLargeError as error:
        reason = f"the server takes messages of up to {error.limit} bytes"
        raise ValueTooLargeError(bucket, key, size, reason) from error
    except JetStreamAPIError as error:
        if error.err_code == STREAM_NOT_FOUND:
            raise BucketNotFoundError(bucket) from error
        if error.err_code == _TOO_LARGE:
            raise ValueTooLargeError(bucket, key, size, error.description) from error
        if error.err_code in _FULL:
            raise BucketFullError(bucket, error.description) from error
        if error.err_code == _SEALED:
            raise BucketSealedError(bucket) from error
        if error.err_code == _TTL_DISABLED:
            kinds = "a KVBucketConfig or FSBucketConfig"
            reason = f"it allows no TTL per key or object; open it with {kinds}, which switches that on"
            raise BucketConfigError(bucket, reason) from error
        if error.err_code == _ATOMIC_DISABLED:
            raise no_transactions(bucket) from error
        raise


def no_transactions(bucket: str) -> BucketConfigError:
    """Return the error of a transaction in a bucket whose stream takes no batches."""
    return BucketConfigError(bucket, "it allows no transactions; open it with a KVBucketConfig, which switches them on")
