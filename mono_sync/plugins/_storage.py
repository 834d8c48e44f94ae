"""The two storage plugins."""

from __future__ import annotations

from mono_sync.connection import CoreConnection
from mono_sync.plugins._buckets import BucketPlugin
from mono_sync.storage import FSBucketConfig, KVBucket, KVBucketConfig, ObjectBucket


class KVJetStreamPlugin(BucketPlugin[KVBucketConfig, KVBucket]):
    """Key-value storage for modules.

    Register it under an alias; modules get it through ``set_plugin(alias, plugin)``::

        app.register_plugin(KVJetStreamPlugin([KVBucketConfig("cache", ttl=3600, storage="memory")]), "kv")
    """

    name = "kv-jetstream"
    _config_type = KVBucketConfig

    def _open(self, connection: CoreConnection, config: KVBucketConfig) -> KVBucket:
        return KVBucket.bind(connection, config)


class FSJetStreamPlugin(BucketPlugin[FSBucketConfig, ObjectBucket]):
    """Object storage for modules.

    Register it under an alias; modules get it through ``set_plugin(alias, plugin)``::

        app.register_plugin(FSJetStreamPlugin([FSBucketConfig("documents", compression=True)]), "storage")
    """

    name = "fs-jetstream"
    _config_type = FSBucketConfig

    def _open(self, connection: CoreConnection, config: FSBucketConfig) -> ObjectBucket:
        return ObjectBucket.bind(connection, config)
