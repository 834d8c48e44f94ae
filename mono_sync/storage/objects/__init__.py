"""Object buckets."""

from mono_sync.storage.objects._bucket import ObjectBucket
from mono_sync.storage.objects._reader import ObjectReader

__all__ = ["ObjectBucket", "ObjectReader"]
