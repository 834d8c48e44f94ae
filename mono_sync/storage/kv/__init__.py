"""Key-value buckets."""

from mono_sync.storage.kv._bucket import KVBucket
from mono_sync.storage.kv._transaction import Transaction
from mono_sync.storage.kv._typed import TypedBucket

__all__ = ["KVBucket", "Transaction", "TypedBucket"]
