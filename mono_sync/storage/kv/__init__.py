"""Key-value buckets."""

from mono_sync.storage.kv._bucket import KVBucket, TypedBucket
from mono_sync.storage.kv._transaction import Transaction

__all__ = ["KVBucket", "Transaction", "TypedBucket"]
