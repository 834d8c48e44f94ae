"""Object buckets."""

from mono_sync.storage.objects._bucket import ObjectBucket

__all__ = ["ObjectBucket"]
