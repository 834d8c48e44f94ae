from __future__ import annotations

import pytest

from mono_sync import UnsupportedByServerError
from mono_sync.adapter import ServerInfo


def _server(version: str) -> ServerInfo:
    return ServerInfo.from_wire({"version": version}, "nats://127.0.0.1:4222")


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("2.10.3", "2.10.3"),
        ("2.10.4", "2.10.3"),
        ("2.10.30", "2.10.4"),
        ("2.11.0", "2.10.9"),
        ("10.0.0", "9.9.9"),
        ("2.10", "2.10.0"),
        ("2.10.3-RC.1", "2.10.3"),
    ],
)
def test_servers_of_that_version_or_a_newer_one_support_it(version: str, wanted: str) -> None:
    assert _server(version).supports(wanted)
    _server(version).require("something", wanted)


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("2.10.3", "2.10.4"),
        ("2.10.4", "2.10.30"),
        ("2.9.25", "2.10.0"),
        ("2.10", "2.10.1"),
        ("9.9.9", "10.0.0"),
        ("", "0.0.1"),
        ("unknown", "0.0.1"),
    ],
)
def test_older_servers_and_unknown_ones_do_not(version: str, wanted: str) -> None:
    assert not _server(version).supports(wanted)
    with pytest.raises(UnsupportedByServerError, match=f"something .*{wanted}.*{version or 'of unknown version'}"):
        _server(version).require("something", wanted)
