"""Key-value buckets."""

from mono_sync.storage.kv._bucket import KVBucket

__all__ = ["KVBucket"]
