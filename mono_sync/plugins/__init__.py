"""The plugins that come with the library."""

from mono_sync.plugins._buckets import BucketPlugin
from mono_sync.plugins._storage import FSJetStreamPlugin, KVJetStreamPlugin

__all__ = ["BucketPlugin", "FSJetStreamPlugin", "KVJetStreamPlugin"]
