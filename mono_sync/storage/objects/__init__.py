"""Object buckets."""

from mono_sync.storage.objects._bucket import ObjectBucket
from mono_sync.storage.objects._info import Folder, ObjectInfo
from mono_sync.storage.objects._port import FileStoragePort
from mono_sync.storage.objects._progress import ProgressBar
from mono_sync.storage.objects._reader import ObjectReader, TextObjectReader
from mono_sync.storage.objects._writer import ObjectWriter, TextObjectWriter

__all__ = [
    "FileStoragePort",
    "Folder",
    "ObjectBucket",
    "ObjectInfo",
    "ObjectReader",
    "ObjectWriter",
    "ProgressBar",
    "TextObjectReader",
    "TextObjectWriter",
]
