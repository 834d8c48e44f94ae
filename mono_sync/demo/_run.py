"""The application of the demo, and how it is driven."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from mono_sync import (
    ConnectionConfig,
    EmbeddedServerConfig,
    FSBucketConfig,
    FSJetStreamPlugin,
    KVBucketConfig,
    KVJetStreamPlugin,
    MonoApplication,
)
from mono_sync.demo._auditor import Auditor
from mono_sync.demo._cache import CachePlugin
from mono_sync.demo._indexer import Indexer, Shard
from mono_sync.demo._library import Library
from mono_sync.demo._progress import Progress
from mono_sync.demo._report import Report
from mono_sync.demo._sources import Sources
from mono_sync.demo._text import printable

_CALL_TIMEOUT = 30.0
"""Seconds; generous, for one call may store a large file on a distant cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the user has chosen.

    Attributes:
        threads: how many store, and how many index.
        shards: number of keys that the index is spread over.
        bucket: name of both buckets, the one for objects and the one for keys.
        servers: addresses; None: ``MONO_SYNC_SERVERS`` or an embedded server.
        store_dir: where an embedded server keeps its data; None: in a temporary directory.
    """

    threads: int = 8
    shards: int = 256
    bucket: str = "mono-sync-demo"
    servers: Sequence[str] | None = None
    store_dir: Path | None = None


class Demo:
    """The application with its plugins and modules. Nothing is started before `run`.

    Raises:
        ConfigurationError: a setting cannot be right.
    """

    def __init__(self, sources: Sources, settings: Settings) -> None:
        self._sources = sources
        self._settings = settings
        self._cache: CachePlugin[Shard] = CachePlugin()
        self._app = app = MonoApplication(
            name="mono-sync-demo",
            servers=settings.servers,
            server=EmbeddedServerConfig(store_dir=settings.store_dir) if settings.store_dir else None,
            connection=ConnectionConfig(name="mono-sync-demo", timeout=_CALL_TIMEOUT),
        )
        app.register_plugin(FSJetStreamPlugin([FSBucketConfig(settings.bucket)]), "storage")
        app.register_plugin(KVJetStreamPlugin([KVBucketConfig(settings.bucket)]), "kv")
        app.register_plugin(self._cache, "cache")
        app.register(Auditor())  # the application starts them in the order of their dependencies, not in this one
        app.register(Indexer(settings.bucket, settings.threads, settings.shards))
        app.register(Library(sources, settings.bucket, settings.threads))

    def run(self, out: TextIO) -> Report:
        """Start the application, let it work, stop it, and return what there is to report.

        Raises:
            MonoError: something failed; the application has been stopped.
            DemoError: the demo could not go on; the application has been stopped.
        """
        report = Report()
        try:
            with report.timed("start"):
                self._app.start()
            self._work(report, Progress(out))
        finally:
            with report.timed("stop"):
                self._stop()
        return report

    def _work(self, report: Report, progress: Progress) -> None:
        app, sources, threads = self._app, self._sources, self._settings.threads
        library = app.services("library").get("files")
        indexer = app.services("indexer").get("index")
        auditor = app.services("auditor").get("audit")
        report.started(self._server(), len(app.modules), len(app.plugins))

        with report.timed("store"), progress.step("storing", len(sources.files), sources.size) as advance:
            library.store(advance)
        files = library.files
        size = sum(file.size for file in files)
        report.stored(len(files), size, threads)

        with report.timed("index"), progress.step("indexing", len(files), size) as advance:
            index = indexer.build(advance)
        report.indexed(index, self._cache.port.statistics.hit_rate, threads)

        with report.timed("verify"), progress.step("verifying", len(files), size) as advance:
            audit = auditor.verify(advance)
        report.verified(audit, size)
        report.skipped(sources.skipped | library.skipped)

    def _stop(self) -> None:
        try:
            self._app.stop()
        except KeyboardInterrupt:
            self._app.stop()  # it goes on where it was interrupted
            raise

    def _server(self) -> str:
        connection = self._app.connection
        version = f"nats-server {connection.server_info.version}"
        if connection.server is None:
            return f"{version} at {connection.server_info.url}"
        where = "a temporary directory" if self._settings.store_dir is None else printable(connection.server.store_dir)
        return f"{version}, embedded, in {where}"
