"""The demo as a command: what it does on a real server, what it says, and how it ends."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mono_sync.demo
from mono_sync import Connection, EmbeddedServer, connect
from mono_sync.demo import _indexer
from mono_sync.demo._auditor import Audit, Auditor
from mono_sync.demo._indexer import Indexer, IndexStatistics
from mono_sync.demo._library import Library
from tests.fixtures.leaks import no_more_threads_than, our_threads
from tests.fixtures.waiting import wait_until
from tests.support.network import unused_port

Run = Callable[..., tuple[int, str, str]]
StartProcess = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def server_url(nats_server: EmbeddedServer) -> str:
    return nats_server.url.replace("nats://", f"nats://{nats_server.token}@")


@pytest.fixture
def connection(server_url: str) -> Iterator[Connection]:
    with connect(server_url) as connection:
        yield connection


def before(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, action: Callable[[Any], None]) -> None:
    """Let something happen in the middle of a run: just before one of its steps."""
    original = getattr(owner, method)

    def replacement(self: Any, *arguments: Any) -> Any:
        action(self)
        return original(self, *arguments)

    monkeypatch.setattr(owner, method, replacement)


# --- the work


def test_exit_code_is_0_when_everything_was_verified(run: Run, files: Path) -> None:
    code, output, errors = run("--directory", files)
    assert code == 0
    assert output.splitlines()[-1].startswith("Verified:")
    assert not errors


def test_report_has_the_true_numbers(run: Run, files: Path) -> None:
    _, output, _ = run("--directory", files, "--threads", 3)
    assert f"4 files, 801.3 kB, in {files.resolve()}" in output
    assert re.search(
        r"^  store +\d+\.\d\d s   4 files, 801\.3 kB, by 3 threads: [\d,.]+ [kM]?B/s, ", output, re.MULTILINE
    )
    assert re.search(r"^  index +\d+\.\d\d s   245 words, by 3 threads: \d+ writes, ", output, re.MULTILINE)
    assert re.search(r"^  verify +\d+\.\d\d s   4 objects, 801\.3 kB, read again: ", output, re.MULTILINE)
    assert "245 words, 6 distinct, compared with 6 keys" in output
    for step in ("start", "stop", "total"):
        assert re.search(rf"^  {step} +\d+\.\d\d s", output, re.MULTILINE)


def test_every_file_becomes_an_object(run: Run, files: Path, server_url: str, connection: Connection) -> None:
    assert run("--directory", files, "--servers", server_url)[0] == 0
    bucket = connection.objects("mono-sync-demo")
    stored = {info.name: bucket.get(info.name) for info in bucket.list()}
    assert stored == {path.relative_to(files).as_posix(): path.read_bytes() for path in files.rglob("*.*")}


def test_words_are_counted_under_the_keys(run: Run, files: Path, server_url: str, connection: Connection) -> None:
    assert run("--directory", files, "--servers", server_url, "--shards", 2)[0] == 0
    bucket = connection.kv("mono-sync-demo")
    keys = bucket.keys()
    assert sorted(keys) == ["words.0000", "words.0001"]
    counts: Counter[str] = Counter()
    for key in keys:
        counts.update(json.loads(bucket.get(key, b"")))
    assert counts == {"the": 82, "cat": 41, "and": 1, "dog": 1, "bird": 40, "grün": 80}


def test_threads_that_meet_at_one_key_lose_no_word(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(200):
        (tmp_path / f"{number}.txt").write_text("one two two three three three")
    monkeypatch.setattr(_indexer, "_BATCH", 1)
    code, output, _ = run("--directory", tmp_path, "--shards", 1)
    assert code == 0
    conflicts = re.search(r"([\d,]+) conflicts?, each retried: ([\d.]+) attempts per success", output)
    assert conflicts
    assert int(conflicts[1].replace(",", "")) > 0
    assert float(conflicts[2]) > 1


def test_second_run_replaces_what_the_first_has_left(
    run: Run, files: Path, server_url: str, connection: Connection
) -> None:
    assert run("--directory", files, "--servers", server_url)[0] == 0
    (files / "a.txt").unlink()
    code, output, _ = run("--directory", files, "--servers", server_url)
    assert code == 0
    assert "240 words, 4 distinct" in output
    assert not connection.objects("mono-sync-demo").exists("a.txt")


def test_store_directory_keeps_the_data(run: Run, files: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert run("--directory", files, "--store-dir", store)[0] == 0
    with connect(server=mono_sync.EmbeddedServerConfig(store_dir=store)) as connection:
        assert connection.objects("mono-sync-demo").get("a.txt") == b"the cat and the dog"


def test_other_buckets_can_be_used(run: Run, files: Path, server_url: str, connection: Connection) -> None:
    assert run("--directory", files, "--servers", server_url, "--bucket", "mine")[0] == 0
    assert connection.objects("mine").exists("a.txt")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_standard_library_is_the_default(start_process: StartProcess) -> None:
    process = start_process()
    output, errors = process.communicate(timeout=170)
    assert process.returncode == 0, errors
    assert not errors
    assert f"in {Path(os.__file__).parent.resolve()}\n" in output
    assert re.search(r"^ +[\d,]+ conflicts", output, re.MULTILINE)


# --- the truth


def test_tampered_object_fails_the_verification(
    run: Run, files: Path, server_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tamper(_: Auditor) -> None:
        connection.objects("mono-sync-demo").put("a.txt", b"the cat and the god")

    before(monkeypatch, Auditor, "verify", tamper)
    code, output, _ = run("--directory", files, "--servers", server_url)
    assert code == 1
    assert output.splitlines()[-1] == "VERIFICATION FAILED: object a.txt: 19 bytes that are not those stored"


def test_object_tampered_with_before_it_was_indexed_fails_the_verification(
    run: Run, files: Path, server_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tamper(_: Indexer) -> None:
        connection.objects("mono-sync-demo").put("a.txt", b"the cat and the god")

    before(monkeypatch, Indexer, "build", tamper)
    code, output, _ = run("--directory", files, "--servers", server_url)
    assert code == 1
    assert "object a.txt: 19 bytes that are not those stored" in output
    assert "word 'dog': the index says 0, the files 1" in output
    assert "word 'god': the index says 1, the files 0" in output


def test_missing_object_fails_the_verification(
    run: Run, files: Path, server_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    before(monkeypatch, Auditor, "verify", lambda _: connection.objects("mono-sync-demo").delete("a.txt"))
    code, output, _ = run("--directory", files, "--servers", server_url)
    assert code == 1
    assert output.splitlines()[-1] == "VERIFICATION FAILED: object a.txt: missing"


def test_wrong_count_fails_the_verification(
    run: Run, files: Path, server_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tamper(_: Auditor) -> None:
        connection.kv("mono-sync-demo").set("words.0000", b'{"unheard":1}')

    before(monkeypatch, Auditor, "verify", tamper)
    code, output, _ = run("--directory", files, "--servers", server_url, "--shards", 2)
    assert code == 1
    assert "word 'unheard': the index says 1, the files 0" in output
    assert "Note: this also happens when two demos share their buckets: each needs a --bucket of its own." in output


def test_file_that_changes_meanwhile_is_named_and_compared_with_what_was_stored(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(_: Auditor) -> None:
        (files / "a.txt").write_text("something else")
        (files / "binary.bin").unlink()

    before(monkeypatch, Auditor, "verify", change)
    code, output, _ = run("--directory", files)
    assert code == 0
    assert "Note: changed since they were stored, so compared with that: a.txt; binary.bin." in output


def test_unusable_files_are_skipped_with_their_reasons(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "circle").symlink_to("circle")
    os.mkfifo(files / "pipe")
    before(monkeypatch, Library, "store", lambda _: (files / "a.txt").unlink())
    code, output, _ = run("--directory", files)
    assert code == 0
    assert "a.txt (No such file or directory); circle (Too many levels of symbolic links)" in output
    assert "pipe (not a regular file)" in output


# --- errors


def assert_one_line(errors: str, text: str) -> None:
    assert re.fullmatch(r"mono-sync demo: error: [^\n]*\n", errors), errors
    assert text in errors


def test_empty_directory_is_an_error(run: Run, tmp_path: Path) -> None:
    code, _, errors = run("--directory", tmp_path)
    assert code == 1
    assert_one_line(errors, f"no files in {tmp_path.resolve()}")


def test_directory_without_a_usable_file_is_an_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    code, _, errors = run("--directory", tmp_path)
    assert code == 1
    assert_one_line(errors, "1 that cannot be used")


def test_directory_whose_files_have_all_gone_is_an_error(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before(monkeypatch, Library, "store", lambda _: shutil.rmtree(files))
    code, _, errors = run("--directory", files)
    assert code == 1
    assert_one_line(errors, "none of the files")


def test_unreachable_server_is_an_error(run: Run, files: Path) -> None:
    port = unused_port()
    code, _, errors = run("--directory", files, "--servers", f"nats://127.0.0.1:{port}")
    assert code == 1
    assert_one_line(errors, f"error: cannot connect to NATS: nats://127.0.0.1:{port}: ")


def test_missing_server_binary_is_an_error(
    run: Run, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_SERVER_BIN", str(tmp_path / "nowhere"))
    code, _, errors = run("--directory", files)
    assert code == 1
    assert_one_line(errors, "error: no nats-server: NATS_SERVER_BIN names ")


def test_server_lost_in_the_middle_is_an_error(
    run: Run, files: Path, run_nats_server: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = run_nats_server("jetstream: enabled")
    monkeypatch.setattr("mono_sync.demo._run._CALL_TIMEOUT", 1.0)
    before(monkeypatch, Indexer, "build", lambda _: server.kill())
    code, _, errors = run("--directory", files, "--servers", server.url)
    assert code == 1
    assert_one_line(errors, "")


def test_failure_leaves_no_thread(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Auditor) -> None:
        raise OSError("on purpose")

    threads = our_threads()
    before(monkeypatch, Auditor, "verify", fail)
    code, _, errors = run("--directory", files)
    assert code == 1
    assert_one_line(errors, "on purpose")
    wait_until(lambda: no_more_threads_than(threads), "threads gone")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--directory", "no-such-directory"], "--directory no-such-directory: No such file or directory"),
        (["--directory", __file__], "Not a directory"),
        (["--directory", ""], "--directory: an empty path names nothing"),
        (["--store-dir", ""], "--store-dir: an empty path names nothing"),
        (["--threads", "0"], "0 is not from 1 to 64"),
        (["--threads", "many"], "--threads"),
        (["--shards", "10000"], "10000 is not from 1 to 9999"),
        (["--servers", "http://example.org"], "scheme"),
        (["--servers", "nats://example.org", "--store-dir", "store"], "not both"),
        (["--bucket", "no good"], "invalid bucket name"),
        (["--unknown"], "unrecognized arguments"),
    ],
)
def test_wrong_argument_is_a_usage_error(run: Run, arguments: list[str], text: str) -> None:
    code, output, errors = run(*arguments)
    assert code == 2
    assert text in errors
    assert not output


def test_command_without_a_subcommand_is_a_usage_error() -> None:
    from mono_sync.__main__ import main

    with pytest.raises(SystemExit) as raised:
        main([])
    assert raised.value.code == 2


def test_command_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    from mono_sync.__main__ import main

    with pytest.raises(SystemExit) as raised:
        main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"mono-sync {mono_sync.__version__}\n"


# --- Ctrl-C


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found |= {int(folder.name), *descendants(int(folder.name))}
    return found


def lines_until(lines: Iterable[str], beginning: str) -> None:
    for line in lines:
        if line.startswith(beginning):
            return
    pytest.fail(f"no line begins with {beginning!r}")


@pytest.mark.parametrize(
    ("number", "code", "after"),
    [(signal.SIGINT, 130, ""), (signal.SIGINT, 130, "storing"), (signal.SIGTERM, 143, "storing")],
    ids=["while-storing", "while-indexing", "sigterm"],
)
def test_interrupt_stops_everything(start_process: StartProcess, number: int, code: int, after: str) -> None:
    process = start_process()
    assert process.stdout
    lines_until(process.stdout, after)
    family = wait_until(lambda: descendants(process.pid), "the server runs")
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert errors == "interrupted; the application has been stopped\n"
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), "no orphan")


def test_second_interrupt_does_not_disturb_the_stop(start_process: StartProcess) -> None:
    process = start_process()
    assert process.stdout
    lines_until(process.stdout, "storing")
    family = wait_until(lambda: descendants(process.pid), "the server runs")
    for _ in range(5):
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == "interrupted; the application has been stopped\n"
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), "no orphan")


# --- progress


def test_progress_is_plain_lines_where_there_is_no_terminal(start_process: StartProcess, files: Path) -> None:
    process = start_process("--directory", files)
    output, _ = process.communicate(timeout=30)
    assert "\r" not in output
    assert "\x1b" not in output
    assert re.findall(r"^(\w+) +4 of 4 files .* 100%$", output, re.MULTILINE) == ["storing", "indexing", "verifying"]


def test_progress_is_one_changing_line_on_a_terminal(start_process: StartProcess, files: Path) -> None:
    ours, theirs = pty.openpty()
    process = start_process("--directory", files, stdout=theirs)
    os.close(theirs)
    output = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        while True:
            try:
                output += terminal.read(4096)
            except OSError:  # the other side is closed
                break
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert re.search(rb"\rstoring +0 of 4 files[^\n]*\rstoring +4 of 4 files[^\n]* 100%[^\n]*\n", output)


def test_reader_that_goes_away_is_no_traceback(start_process: StartProcess) -> None:
    process = start_process()
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr
    errors = process.stderr.read()
    process.wait(30)
    process.stderr.close()
    assert process.returncode == 1
    assert_one_line(errors, "nobody reads the output")


# --- output that cannot be what it should be


def test_path_that_the_encoding_lacks_is_escaped(start_process: StartProcess, files: Path) -> None:
    folder = files.rename(files.with_name("grün"))
    process = start_process("--directory", folder, through=["env", "PYTHONIOENCODING=ascii"])
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert f"in {folder.parent.resolve()}/gr\\xfcn\n" in output


def test_output_that_is_closed_is_no_traceback(start_process: StartProcess, files: Path) -> None:
    process = start_process("--directory", files, through=["sh", "-c", 'exec "$@" >&-', "sh"])
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (0, "", "")


def test_error_output_that_is_closed_is_no_traceback(start_process: StartProcess, tmp_path: Path) -> None:
    process = start_process("--directory", tmp_path, through=["sh", "-c", 'exec "$@" 2>&-', "sh"])
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (1, "")


def test_names_reach_the_terminal_without_what_it_would_obey(run: Run, files: Path) -> None:
    folder = files.rename(files.with_name("red\x1b[31m"))
    (folder / "cir\ncle\x07").symlink_to("cir\ncle\x07")
    code, output, _ = run("--directory", folder)
    assert code == 0
    assert "red\\x1b[31m\n" in output
    assert "Note: skipped: cir\\ncle\\x07 (Too many levels of symbolic links)." in output
    assert all(line.isprintable() for line in output.split("\n"))


def test_names_in_errors_reach_the_terminal_without_what_it_would_obey(run: Run, tmp_path: Path) -> None:
    (tmp_path / "red\n\x1b[31m").mkdir()
    _, _, errors = run("--directory", tmp_path / "red\n\x1b[31m")
    assert_one_line(errors, "red\\n\\x1b[31m")


def test_one_of_everything_is_no_plural(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word")
    _, output, _ = run("--directory", tmp_path, "--threads", 1, "--shards", 1)
    assert not re.search(r"\b1 \w+s\b", output), output


def test_files_without_words_have_no_attempts(run: Run, tmp_path: Path) -> None:
    (tmp_path / "binary.bin").write_bytes(b"\0the")
    code, output, _ = run("--directory", tmp_path)
    assert code == 0
    assert re.search(r"^  index +\d+\.\d\d s   no words, so nothing was written$", output, re.MULTILINE)
    assert "attempts" not in output


# --- what it is made of

SOURCES = [*Path(mono_sync.demo.__file__).parent.glob("*.py"), *Path(__file__).parents[2].glob("examples/*.py")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_only_public_names_are_used(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        modules = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        for module in modules:
            if module.partition(".")[0] == "mono_sync" and not module.startswith("mono_sync.demo"):
                assert module == "mono_sync"
                assert isinstance(node, ast.ImportFrom)
                assert {alias.name for alias in node.names} <= {*mono_sync.__all__, "__version__"}


def test_attempts_per_success_counts_conflicts() -> None:
    assert IndexStatistics(writes=10, conflicts=5).attempts_per_success == 1.5
    assert Audit().faults == []
