"""One plugin twice: a primary and a backup storage, and a module that copies to both and reads from the one that works.

A plugin may be registered any number of times under different aliases, each instance with a list of buckets of its own.
The names of the buckets must differ: those of one name on one server are one bucket. A module that implements
``set_plugin`` is handed every plugin with its alias, before it starts, and keeps those that it needs.

Run it: python examples/multiple_instances.py
"""

from __future__ import annotations

from mono_sync import (
    FSBucketConfig,
    FSJetStreamPlugin,
    MonoApplication,
    MonoError,
    ObjectBucket,
    PluginModule,
    ServiceContainer,
    StorageError,
)


class Archive:
    """Keeps each document twice. Its service ``documents`` is the module itself."""

    name = "archive"

    def __init__(self) -> None:
        self._plugins: dict[str, FSJetStreamPlugin] = {}
        self._primary: ObjectBucket
        self._backup: ObjectBucket

    def set_plugin(self, alias: str, plugin: PluginModule) -> None:
        """Keep the storages; called for every plugin of the application."""
        if isinstance(plugin, FSJetStreamPlugin):
            self._plugins[alias] = plugin

    def register_services(self, container: ServiceContainer) -> None:
        """Offer the documents to other modules and to the main program."""
        container.register("documents", self)

    def start(self) -> None:
        """Take one bucket of each storage."""
        if missing := {"primary", "backup"} - self._plugins.keys():
            raise RuntimeError(f"the archive needs an FSJetStreamPlugin as {' and as '.join(sorted(missing))}")
        self._primary = self._plugins["primary"].bucket("documents")
        self._backup = self._plugins["backup"].bucket("documents-backup")

    def stop(self) -> None:
        """Have nothing to give back."""

    def save(self, name: str, data: bytes) -> None:
        """Store a document in both storages; an error means that it is not in both."""
        self._primary.put(name, data)
        self._backup.put(name, data)

    def read(self, name: str) -> tuple[bytes, str]:
        """Return a document, and which storage it came from; what only the backup has is put back into the primary."""
        try:
            data = self._primary.get(name)
        except StorageError as error:  # damaged, or its bucket is gone
            print(f"  primary: {error}")
            data = None
        if data is not None:
            return data, "primary"
        data = self._backup.get(name)
        if data is None:
            raise LookupError(f"document {name!r} is in neither storage")
        try:
            self._primary.put(name, data)
        except MonoError as error:
            print(f"  primary stays without {name}: {error}")
        return data, "backup"


def show(archive: Archive) -> None:
    """Read the document and say where it came from."""
    data, storage = archive.read("report.pdf")
    print(f"read {len(data)} bytes from {storage}")


def main() -> None:
    """Save a document, lose it from the primary storage, and read it all the same."""
    primary = FSJetStreamPlugin([FSBucketConfig("documents")])
    backup = FSJetStreamPlugin([FSBucketConfig("documents-backup", max_bytes=100_000_000)])
    app = MonoApplication(name="multiple-instances")
    app.register_plugin(primary, "primary")
    app.register_plugin(backup, "backup")
    app.register(Archive())
    with app:
        archive: Archive = app.services("archive").get("documents")
        archive.save("report.pdf", b"%PDF-1.7 figures of the quarter")
        show(archive)
        primary.bucket("documents").delete("report.pdf")
        print("the primary storage has lost report.pdf")
        show(archive)
        show(archive)


if __name__ == "__main__":
    main()
