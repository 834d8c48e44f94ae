"""Key-value buckets."""

from mono_sync.storage.kv._bucket import KVBucket
from mono_sync.storage.kv._transaction import Transaction

__all__ = ["KVBucket", "Transaction"]
