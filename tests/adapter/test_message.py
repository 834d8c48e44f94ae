from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mono_sync import InvalidHeaderError, InvalidSubjectError, MessageTooLargeError
from mono_sync.adapter import (
    Message,
    add_known_header,
    check_payload,
    check_subject,
    encode_headers,
    encode_known_headers,
    encode_publish,
    parse_header_block,
)

NAMES = st.text("abcXYZ-_019", min_size=1, max_size=12)
VALUES = st.text(st.characters(exclude_categories=["C"]), max_size=20).map(str.strip)


@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_headers_survive_the_way_through_the_wire(headers: dict[str, str]) -> None:
    assert parse_header_block(encode_headers(headers)) == (headers, None, "")


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb", "ä", "a\n"])
def test_header_names_that_would_break_the_protocol_are_refused(name: str) -> None:
    with pytest.raises(InvalidHeaderError, match="a name is"):
        encode_headers({name: "x"})


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "\x00", "a\r", "a\ud800"])
def test_header_values_that_would_inject_are_refused(value: str) -> None:
    with pytest.raises(InvalidHeaderError, match="no line breaks"):
        encode_headers({"x": value})


@pytest.mark.parametrize("headers", [{"x": 1}, {1: "x"}, {"x": None}, {"x": b"y"}])
def test_headers_that_are_no_str_are_a_type_error(headers: dict[str, str]) -> None:
    with pytest.raises(TypeError, match="str to str"):
        encode_headers(headers)


@pytest.mark.parametrize("headers", [[("a", "b")], "x", 1, [], ""])
def test_headers_that_are_no_mapping_are_a_type_error(headers: dict[str, str]) -> None:
    with pytest.raises(TypeError, match="headers must be a mapping of str to str, not"):
        encode_headers(headers)


def test_no_headers_take_no_room() -> None:
    assert encode_headers({}) == b""


@pytest.mark.parametrize("others", [{}, {"B": "2"}, {"B": "2", "C": ""}])
def test_a_header_is_put_in_front_of_the_others(others: dict[str, str]) -> None:
    assert add_known_header(encode_known_headers(others), "A", "1") == encode_headers({"A": "1", **others})


def test_status_lines_are_read() -> None:
    assert parse_header_block(b"NATS/1.0 503\r\n\r\n") == ({}, 503, "")
    assert parse_header_block(b"NATS/1.0 404 No Messages\r\nA: b\r\n\r\n") == ({"A": "b"}, 404, "No Messages")


def test_the_first_of_several_values_counts() -> None:
    assert parse_header_block(b"NATS/1.0\r\nA: 1\r\nA: 2\r\n\r\n")[0] == {"A": "1"}


@given(st.binary(max_size=60))
def test_no_header_block_of_whatever_bytes_raises(raw: bytes) -> None:
    message = Message("s", b"", "", raw)
    assert isinstance(message.headers, dict)
    assert message.status is None or message.status >= 0
    assert isinstance(message.description, str)


@pytest.mark.parametrize("subject", ["a", "a.b-c_d", "$JS.API.INFO", "ä.ö", "a/b=c:d", "a*.b>"])
def test_subjects_that_nats_carries_are_taken(subject: str) -> None:
    assert check_subject(subject) == subject


@pytest.mark.parametrize(
    ("subject", "rule"),
    [
        ("", "empty"),
        ("a b", "blanks"),
        ("a\r\nPUB x 0\r\n", "blanks"),
        ("a\tb", "blanks"),
        ("a\u2003b", "blanks"),
        ("a\xa0", "blanks"),
        ("\x85a", "blanks"),
        ("a\ud800", "surrogates"),
        (".a", "dot"),
        ("a.", "dot"),
        ("a..b", "dot"),
        ("a.*", "wildcards"),
        ("a.>", "wildcards"),
        ("*", "wildcards"),
        ("a.>.b", "wildcards"),
    ],
)
def test_subjects_that_it_does_not_are_refused_with_the_rule(subject: str, rule: str) -> None:
    with pytest.raises(InvalidSubjectError, match=rule):
        check_subject(subject)


def test_a_subject_that_is_no_str_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="must be a str"):
        check_subject(b"a")  # type: ignore[arg-type]


def test_payloads_are_bytes_like_and_copied_where_they_could_change() -> None:
    mutable = bytearray(b"abc")
    taken = check_payload(mutable)
    mutable[0] = 0
    assert taken == b"abc"
    assert check_payload(memoryview(b"abcdef")[::2]) == b"ace"


@pytest.mark.parametrize("payload", ["text", None, 5, ["a"]])
def test_other_payloads_are_a_type_error(payload: bytes) -> None:
    with pytest.raises(TypeError, match="must be bytes"):
        check_payload(payload)


def test_a_str_payload_is_told_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"\.encode\(\)"):
        check_payload("text")  # type: ignore[arg-type]


def test_commands_have_the_form_of_the_protocol() -> None:
    assert encode_publish("s", b"hi", "", b"", 10) == b"PUB s 2\r\nhi\r\n"
    assert encode_publish("s", b"hi", "r", b"", 10) == b"PUB s r 2\r\nhi\r\n"
    block = encode_headers({"A": "b"})
    assert encode_publish("s", b"hi", "r", block, 100) == b"HPUB s r 18 20\r\n" + block + b"hi\r\n"


def test_headers_count_for_the_size_limit() -> None:
    block = encode_headers({"A": "b"})
    with pytest.raises(MessageTooLargeError) as caught:
        encode_publish("s", b"x" * 10, "", block, 20)
    assert (caught.value.size, caught.value.limit) == (len(block) + 10, 20)


def test_an_over_long_line_is_refused() -> None:
    with pytest.raises(InvalidSubjectError, match="4096 bytes"):
        encode_publish("s" * 4090, b"", "", b"", 100)
