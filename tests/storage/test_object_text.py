"""Objects written as text, against files of the disk, any sequence of calls."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mono_sync import ObjectBucket

ENCODINGS = ["utf-8", "utf-8-sig", "UTF_8_SIG", "utf-16", "U16", "utf-16-le", "utf-32", "utf-7", "latin-1"]
NEWLINES = st.sampled_from([None, "", "\n", "\r\n", "\r"])
TEXTS = st.text("aü\n\r", max_size=8)

CALLS = st.one_of(
    st.tuples(st.just("write"), TEXTS),
    st.tuples(st.just("writelines"), st.lists(TEXTS, max_size=3)),
    st.tuples(st.just("encoding"), st.sampled_from(ENCODINGS)),
    st.tuples(st.just("errors"), st.sampled_from(["strict", "replace"])),
    st.tuples(st.just("newline"), NEWLINES),
    st.tuples(st.sampled_from(["flush", "tell"]), st.none()),
)


def _call(stream: Any, call: tuple[str, Any]) -> object:
    match call:
        case ("write" | "writelines") as name, text:
            return getattr(stream, name)(text)
        case ("flush" | "tell") as name, _:
            return getattr(stream, name)()
        case name, value:
            return stream.reconfigure(**{name: value})


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(encoding=st.sampled_from(ENCODINGS), newline=NEWLINES, calls=st.lists(CALLS, max_size=8))
@example(encoding="utf-16", newline=None, calls=[])
@example(encoding="utf-16", newline=None, calls=[("encoding", "utf-8"), ("write", "a")])
@example(encoding="utf-8", newline=None, calls=[("encoding", "utf-16"), ("write", "a"), ("write", "b")])
@example(encoding="utf-8-sig", newline=None, calls=[("write", "a"), ("errors", "replace"), ("write", "b")])
@example(encoding="utf-16", newline="\r\n", calls=[("tell", None), ("write", "ü\n"), ("tell", None), ("tell", None)])
def test_text_is_stored_as_in_a_file(
    objects: ObjectBucket, tmp_path: Path, encoding: str, newline: str | None, calls: list[tuple[str, Any]]
) -> None:
    path = tmp_path / "f"
    with (
        path.open("w", encoding=encoding, newline=newline) as file,
        objects.open("k", "w", encoding=encoding, newline=newline) as stream,
    ):
        for call in calls:
            assert _call(stream, call) == _call(file, call)
            assert (stream.errors, stream.line_buffering) == (file.errors, file.line_buffering)
    assert objects.get("k") == path.read_bytes()


@pytest.mark.parametrize(
    ("encoding", "calls"),
    [
        ("utf-16", [("write", "\ud800"), ("encoding", "utf-8"), ("write", "hello")]),
        ("shift_jis", [("write", "é"), ("encoding", "utf-16"), ("write", "hello")]),
        ("ascii", [("write", "é"), ("encoding", "utf-8-sig"), ("write", "hello")]),
        ("utf-16", [("write", "\ud800"), ("errors", "replace"), ("write", "hello")]),
        ("iso2022_jp", [("write", "本"), ("errors", "replace"), ("write", "abcd")]),
        ("iso2022_jp", [("write", "本"), ("encoding", "iso2022_jp"), ("write", "本")]),
        ("iso2022_kr", [("write", "가"), ("errors", "replace"), ("write", "나")]),
    ],
)
def test_encoder_goes_on_where_it_is_as_that_of_a_file(
    objects: ObjectBucket, tmp_path: Path, encoding: str, calls: list[tuple[str, Any]]
) -> None:
    path = tmp_path / "f"
    with path.open("w", encoding=encoding) as file, objects.open("k", "w", encoding=encoding) as stream:
        for target, call in itertools.product((file, stream), calls):
            with contextlib.suppress(UnicodeEncodeError):
                _call(target, call)
    assert objects.get("k") == path.read_bytes()


@pytest.mark.parametrize("encoding", ["no-such", 5])
def test_encoding_that_is_none_is_refused_and_the_stream_stays_of_use(objects: ObjectBucket, encoding: Any) -> None:
    with objects.open("k", "w") as stream:
        stream.write("a")
        with pytest.raises((LookupError, TypeError)):
            stream.reconfigure(encoding=encoding)
        stream.write("b")
    assert objects.get("k") == b"ab"
