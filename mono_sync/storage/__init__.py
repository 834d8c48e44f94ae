"""Buckets: key-value and objects, their configurations, values and ports."""

from typing import TYPE_CHECKING

from mono_sync import _lazy
from mono_sync.storage._codec import Codec, JSONCodec, TextCodec
from mono_sync.storage._config import BucketConfig, FSBucketConfig, KVBucketConfig
from mono_sync.storage._values import BucketStatus, Entry, Operation
from mono_sync.storage._watcher import Watcher
from mono_sync.storage.kv import KVBucket, Transaction, TypedBucket

if TYPE_CHECKING:
    from mono_sync.storage.kv._port import KVStoragePort
    from mono_sync.storage.objects import (
        FileStoragePort,
        Folder,
        ObjectBucket,
        ObjectInfo,
        ObjectReader,
        ObjectWriter,
        ProgressBar,
        TextObjectReader,
        TextObjectWriter,
    )
else:  # the first object bucket imports them
    __getattr__, __dir__ = _lazy.on_demand(
        __name__,
        {
            "mono_sync.storage.kv._port": ("KVStoragePort",),
            "mono_sync.storage.objects": (
                "FileStoragePort",
                "Folder",
                "ObjectBucket",
                "ObjectInfo",
                "ObjectReader",
                "ObjectWriter",
                "ProgressBar",
                "TextObjectReader",
                "TextObjectWriter",
            ),
        },
    )

__all__ = [
    "BucketConfig",
    "BucketStatus",
    "Codec",
    "Entry",
    "FSBucketConfig",
    "FileStoragePort",
    "Folder",
    "JSONCodec",
    "KVBucket",
    "KVBucketConfig",
    "KVStoragePort",
    "ObjectBucket",
    "ObjectInfo",
    "ObjectReader",
    "ObjectWriter",
    "Operation",
    "ProgressBar",
    "TextCodec",
    "TextObjectReader",
    "TextObjectWriter",
    "Transaction",
    "TypedBucket",
    "Watcher",
]
