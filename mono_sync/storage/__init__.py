"""Buckets: key-value and objects, their configurations, values and ports."""

from mono_sync.storage._codec import Codec, JSONCodec, TextCodec
from mono_sync.storage._config import BucketConfig, FSBucketConfig, KVBucketConfig
from mono_sync.storage._ports import FileStoragePort, KVStoragePort
from mono_sync.storage._values import BucketStatus, Entry, Folder, ObjectInfo, Operation
from mono_sync.storage._watcher import Watcher
from mono_sync.storage.kv import KVBucket, Transaction, TypedBucket
from mono_sync.storage.objects import ObjectBucket, ObjectReader, ObjectWriter, ProgressBar, TextObjectWriter

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
    "TextObjectWriter",
    "Transaction",
    "TypedBucket",
    "Watcher",
]
