"""A bucket against a dict with revisions, any sequence of calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from mono_sync import Connection, KeyExistsError, KeyNotFoundError, KVBucket, KVBucketConfig, RevisionMismatchError
from tests.storage.helpers import raw_kv

KEYS = st.sampled_from(["a", "b", "a.b", "a.c", "x/y"])
VALUES = st.binary(max_size=20)
_numbers = itertools.count(1)


class Model(RuleBasedStateMachine):
    """`newest` holds for each key the revision of its last message and the value, None where it was a removal."""

    open_bucket: ClassVar[Callable[[], KVBucket]]

    def __init__(self) -> None:
        super().__init__()
        self.kv = type(self).open_bucket()
        self.newest: dict[str, tuple[int, bytes | None]] = {}
        self.last = 0

    def _written(self, key: str, value: bytes | None, revision: int | None = None) -> None:
        self.last += 1
        assert revision in (None, self.last)
        self.newest[key] = (self.last, value)

    def _live(self) -> dict[str, bytes]:
        return {key: value for key, (_, value) in self.newest.items() if value is not None}

    @rule(key=KEYS, value=VALUES)
    def put(self, key: str, value: bytes) -> None:
        self._written(key, value, self.kv.put_with_revision(key, value))

    @rule(key=KEYS, value=VALUES)
    def create(self, key: str, value: bytes) -> None:
        if key in self._live():
            with pytest.raises(KeyExistsError) as caught:
                self.kv.create(key, value)
            assert caught.value.actual == self.newest[key][0]
        else:
            self._written(key, value, self.kv.create(key, value))

    @rule(key=KEYS, value=VALUES, back=st.integers(0, 3))
    def update(self, key: str, value: bytes, back: int) -> None:
        newest = self.newest.get(key, (0, None))[0]
        revision = max(1, newest - back)
        if revision == newest:
            self._written(key, value, self.kv.update(key, value, revision))
        else:
            self._mismatch(key, revision, lambda: self.kv.update(key, value, revision))

    @rule(key=KEYS, call=st.sampled_from(["delete", "purge"]))
    def remove(self, key: str, call: str) -> None:
        getattr(self.kv, call)(key)
        self._written(key, None)

    @rule(key=KEYS, call=st.sampled_from(["delete", "purge"]), back=st.integers(0, 3))
    def remove_at(self, key: str, call: str, back: int) -> None:
        newest = self.newest.get(key, (0, None))[0]
        revision = max(1, newest - back)
        if revision == newest:
            getattr(self.kv, call)(key, revision=revision)
            self._written(key, None)
        else:
            self._mismatch(key, revision, lambda: getattr(self.kv, call)(key, revision=revision))

    def _mismatch(self, key: str, revision: int, call: Callable[[], Any]) -> None:
        with pytest.raises(RevisionMismatchError) as caught:
            call()
        assert (caught.value.expected, caught.value.actual) == (revision, self.newest.get(key, (0, None))[0])

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        live = self._live()
        assert self.kv.get(key, "default") == live.get(key, "default")
        if key in live:
            entry = self.kv.get_entry(key)
            assert (entry.revision, entry.value) == (self.newest[key][0], live[key])
        else:
            with pytest.raises(KeyNotFoundError):
                self.kv.get_entry(key)

    @invariant()
    def keys(self) -> None:
        live = self._live()
        by_revision = sorted(live, key=lambda key: self.newest[key][0])
        assert self.kv.keys() == by_revision
        assert self.kv.keys("a.*") == [key for key in by_revision if key.startswith("a.")]

    def teardown(self) -> None:
        raw_kv(self.kv).delete()


@pytest.mark.parametrize("history", [1, 4])
@pytest.mark.parametrize("direct", [True, False])
def test_bucket_behaves_like_a_dict_with_revisions(any_connection: Connection, history: int, direct: bool) -> None:
    def open_bucket() -> KVBucket:
        kv = any_connection.kv(KVBucketConfig(f"model{next(_numbers)}", storage="memory", history=history))
        raw_kv(kv).update(allow_direct=direct)
        return any_connection.kv(kv.name)

    class Machine(Model):
        pass

    Machine.open_bucket = staticmethod(open_bucket)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=6, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
