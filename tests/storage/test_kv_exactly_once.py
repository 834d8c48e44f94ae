"""Writes whose answers are lost happen once, and tell the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

import mono_sync
from mono_sync import (
    KeyExistsError,
    KVBucket,
    KVBucketConfig,
    MonoError,
    OutcomeUnknownError,
    RevisionMismatchError,
)
from mono_sync.connection import ExactlyOnce
from tests.fixtures.servers import RawServer, RunNatsServer
from tests.fixtures.waiting import wait_until
from tests.storage.helpers import CutProxy, raw_kv
from tests.storage.load import Load

FAST: dict[str, Any] = {"reconnect_wait": 0.02, "reconnect_max_wait": 0.1, "timeout": 20}

Write = Callable[[KVBucket, int], int | None]

WRITES: dict[str, Write] = {
    "set": lambda kv, revision: kv.set("k", b"mine"),
    "put": lambda kv, revision: kv.put_with_revision("k", b"mine"),
    "update": lambda kv, revision: kv.update("k", b"mine", revision),
    "delete": lambda kv, revision: kv.delete("k"),
    "conditional delete": lambda kv, revision: kv.delete("k", revision=revision),
    "purge": lambda kv, revision: kv.purge("k"),
    "conditional purge": lambda kv, revision: kv.purge("k", revision=revision),
    "touch": lambda kv, revision: kv.touch("k", None),
}
CREATE: dict[str, Write] = {"create": lambda kv, revision: kv.create("k", b"mine")}
UNCONDITIONAL = ("set", "put", "delete", "purge")
EVERY = pytest.mark.parametrize("write", [*WRITES, *CREATE])
AFTER = pytest.mark.parametrize("after", [True, False], ids=["stored", "not-stored"])
HISTORY = pytest.mark.parametrize("history", [1, 5])


@dataclass
class Scene:
    """A bucket seen twice: past the proxy, and through it by a connection that it can break."""

    server: RawServer
    proxy: CutProxy
    other: KVBucket
    mine: KVBucket
    monkeypatch: pytest.MonkeyPatch
    revision: int = 0

    def begin(self, write: str) -> Write:
        """Write what the key is to have before."""
        if write not in CREATE:
            self.revision = self.other.put_with_revision("k", b"old")
        self.mine.update("another", b"", 1)  # what was written before is known to have been
        return (WRITES | CREATE)[write]

    def cut(self, *, after: bool) -> None:
        self.proxy.cut_at(f"HPUB $KV.{self.mine.name}.k ".encode(), after=after)

    def revisions(self) -> list[int]:
        return [entry.revision for entry in self.other.history("k", timeout=20)]

    def wait_stored(self) -> int:
        """Return the revision of the first attempt, once it is there."""
        return wait_until(lambda: next((r for r in self.revisions() if r > self.revision), 0), "it is stored")

    def restart(self) -> None:
        self.server.kill()
        self.server.start()
        self.other.status(timeout=20)  # what it says now, it has said after the start

    def meanwhile(self, happens: Callable[[], None]) -> None:
        """Let it happen once, after the answer was lost and before anything else is done about it."""
        settle, done = ExactlyOnce._settle, list[bool]()

        def happens_first(*arguments: Any) -> int:
            if not done:
                done.append(True)
                happens()
            return settle(*arguments)

        self.monkeypatch.setattr(ExactlyOnce, "_settle", happens_first)


NewScene = Callable[..., Scene]


@pytest.fixture
def new_scene(any_binary: str, run_nats_server: RunNatsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewScene]:
    with ExitStack() as stack:

        def new(**options: Any) -> Scene:
            server = run_nats_server("jetstream: enabled", binary=any_binary)
            proxy = stack.enter_context(CutProxy(server.url))
            other = stack.enter_context(mono_sync.connect(server.url, **FAST))
            mine = stack.enter_context(mono_sync.connect(proxy.url, **FAST))
            bucket = other.kv(KVBucketConfig("b", **options))
            bucket.set("another", b"")
            return Scene(server, proxy, bucket, mine.kv("b"), monkeypatch)

        yield new


@HISTORY
@AFTER
@EVERY
def test_write_whose_answer_is_lost_happens_once(new_scene: NewScene, write: str, after: bool, history: int) -> None:
    scene = new_scene(history=history)
    call = scene.begin(write)
    scene.cut(after=after)
    result = call(scene.mine, scene.revision)
    assert scene.proxy.cuts == 1
    purged = "purge" in write
    revisions = scene.revisions()
    assert len(revisions) == 1 if history == 1 or purged or write == "create" else len(revisions) == 2
    assert result in (None, revisions[-1])
    assert raw_kv(scene.other).state["last_seq"] == revisions[-1]  # nothing else was stored either
    assert scene.mine.get("k") == (None if "delete" in write or purged else b"old" if write == "touch" else b"mine")


@HISTORY
@AFTER
@EVERY
def test_write_whose_answer_is_lost_with_the_server_happens_once(
    new_scene: NewScene, write: str, after: bool, history: int
) -> None:
    scene = new_scene(history=history)
    call = scene.begin(write)
    before = raw_kv(scene.other).state["last_seq"]
    scene.cut(after=after)

    def restart() -> None:
        if after:
            scene.wait_stored()
        scene.restart()

    scene.meanwhile(restart)
    result = call(scene.mine, scene.revision)
    revisions = scene.revisions()
    assert result in (None, revisions[-1])
    assert raw_kv(scene.other).state["last_seq"] == revisions[-1] == before + 1


@AFTER
@EVERY
def test_write_that_somebody_overwrites_before_its_answer_is_found_tells_what_it_got(
    new_scene: NewScene, write: str, after: bool
) -> None:
    scene = new_scene()
    call = scene.begin(write)
    scene.cut(after=after)
    stored: list[int] = []

    def overwrite() -> None:
        if after:
            stored.append(scene.wait_stored())
        scene.other.set("k", b"theirs")

    scene.meanwhile(overwrite)
    if after:
        assert call(scene.mine, scene.revision) in (None, *stored)
        assert scene.other.get("k") == b"theirs"
    elif write in UNCONDITIONAL:
        assert call(scene.mine, scene.revision) in (None, *scene.revisions())
        assert scene.other.get("k") != b"theirs"
    elif write == "touch":
        call(scene.mine, scene.revision)
        assert scene.other.get("k") == b"theirs"
    else:
        with pytest.raises((RevisionMismatchError, KeyExistsError)):
            call(scene.mine, scene.revision)
        assert scene.other.get("k") == b"theirs"


@pytest.mark.parametrize("times", [1, 2])
@HISTORY
@AFTER
@EVERY
def test_write_that_is_overwritten_before_a_restart_is_never_applied_twice_and_never_guessed(
    new_scene: NewScene, write: str, after: bool, history: int, times: int
) -> None:
    scene = new_scene(history=history)
    call = scene.begin(write)
    scene.cut(after=after)
    stored: list[int] = []

    def overwrite_and_restart() -> None:
        if after:
            stored.append(scene.wait_stored())
        for _ in range(times):
            scene.other.set("k", b"theirs")
        scene.restart()

    scene.meanwhile(overwrite_and_restart)
    result: int | MonoError | None
    try:
        result = call(scene.mine, scene.revision)
    except MonoError as error:
        result = error
    mine_is_applied = scene.other.get_entry("k").value != b"theirs" if scene.other.get("k") else True
    if history == 1:
        assert isinstance(result, OutcomeUnknownError)  # what the first attempt may have stored is gone
        assert "nothing tells any more" in str(result)
        assert not mine_is_applied
    elif after:
        assert result in (None, *stored)
        assert not mine_is_applied
    elif write in UNCONDITIONAL:
        assert result in (None, *scene.revisions())
        assert mine_is_applied
    elif write != "touch":
        assert isinstance(result, (RevisionMismatchError, KeyExistsError))
        assert not mine_is_applied


@pytest.mark.slow
@pytest.mark.parametrize("end", [RawServer.kill, RawServer.stop], ids=["killed", "stopped"])
@pytest.mark.parametrize("history", [1, 64])
def test_restart_of_the_server_under_load_costs_nothing_but_time(
    any_binary: str, run_nats_server: RunNatsServer, history: int, end: Callable[[RawServer], None]
) -> None:
    server = run_nats_server("jetstream: enabled", binary=any_binary)
    with mono_sync.connect(server.url, **FAST) as connection:
        with Load(connection.kv(KVBucketConfig("b", history=history)), timeout=20, forgets_after=history) as load:
            for _ in range(3):
                load.wait_progress()
                end(server)
                server.start()
            load.wait_progress()
        load.check()
