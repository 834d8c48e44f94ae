"""The two storage plugins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from mono_sync._durations import Deadline, Duration, to_seconds
from mono_sync.connection import CoreConnection
from mono_sync.errors import MonoError
from mono_sync.plugins._buckets import BucketPlugin
from mono_sync.storage import FSBucketConfig, KVBucket, KVBucketConfig, ObjectBucket

_log = logging.getLogger("mono_sync.plugins")

_SWEEP_TIME: Final = 1.0


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

    At its start it sweeps its buckets, see `ObjectBucket.sweep`, for a second at most: what fails or takes longer is
    left for the next time.

    Args:
        buckets: the buckets; at least one, each name once.
        sweep_within: for how long to sweep, in seconds or as ``timedelta``; None: not at all.

    Raises:
        ConfigurationError: no bucket, a name twice, or something that is no configuration of an object bucket.
        ValueError: ``sweep_within`` is negative.
    """

    name = "fs-jetstream"
    _config_type = FSBucketConfig

    def __init__(self, buckets: Sequence[FSBucketConfig], *, sweep_within: Duration | None = _SWEEP_TIME) -> None:
        super().__init__(buckets)
        self._sweep_within = None if sweep_within is None else to_seconds(sweep_within, "sweep_within")

    def start(self) -> None:
        """Create each bucket, or update it to its configuration; then sweep them.

        Raises:
            BucketConfigError: the server refuses; names bucket and field.
            UnsupportedByServerError: the server is too old for an option.
            ClosedError: the plugin is not registered with an application.
        """
        super().start()
        if self._sweep_within is not None:
            deadline = Deadline(self._sweep_within)
            for name, bucket in self.buckets.items():
                try:
                    bucket.sweep(timeout=deadline)
                except MonoError as error:
                    _log.info("bucket %s is left to be swept another time: %s", name, error)

    def _open(self, connection: CoreConnection, config: FSBucketConfig) -> ObjectBucket:
        return ObjectBucket.bind(connection, config)
