"""The files that the demo works on, and what counts as a word."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mono_sync.demo import _sources
from mono_sync.demo._sources import by_size, directory, standard_library
from mono_sync.demo._words import count_words


def test_every_regular_file_is_found_by_its_path_with_slashes(files: Path) -> None:
    assert [file.name for file in directory(files).files] == ["a.txt", "binary.bin", "sub/b.txt", "sub/deep/empty.txt"]


def test_size_is_that_of_all_files(files: Path) -> None:
    assert directory(files).size == sum(path.stat().st_size for path in files.rglob("*.*"))


def test_linked_file_counts_and_linked_directory_is_not_entered(files: Path) -> None:
    (files / "link.txt").symlink_to("a.txt")
    (files / "sub" / "up").symlink_to("..")
    found = directory(files)
    assert "link.txt" in {file.name for file in found.files}
    assert len(found.files) == 5
    assert not found.skipped


def test_what_cannot_be_read_as_a_file_is_skipped_with_a_reason(files: Path) -> None:
    (files / "circle").symlink_to("circle")
    (files / "nowhere").symlink_to("no-such-file")
    os.mkfifo(files / "pipe")
    assert directory(files).skipped == {
        "circle": "Too many levels of symbolic links",
        "nowhere": "No such file or directory",
        "pipe": "not a regular file",
    }


def test_name_that_no_object_can_have_is_skipped(files: Path) -> None:
    Path(os.fsdecode(os.fsencode(files) + b"/\xff.txt")).write_text("text")
    assert directory(files).skipped == {"\\xff.txt": "its name is no UTF-8"}


def test_huge_file_is_skipped(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sources, "MAX_FILE_SIZE", 1 << 19)
    assert list(directory(files).skipped) == ["binary.bin"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder_is_skipped(files: Path) -> None:
    (files / "sub").chmod(0)
    try:
        found = directory(files)
    finally:
        (files / "sub").chmod(0o755)
    assert [file.name for file in found.files] == ["a.txt", "binary.bin"]
    assert list(found.skipped.values()) == ["Permission denied"]


def test_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        directory(tmp_path / "nowhere")


def test_standard_library_is_its_python_sources_without_tests() -> None:
    names = {file.name for file in standard_library().files}
    assert {"os.py", "json/decoder.py"} <= names
    assert all(name.endswith(".py") for name in names)
    assert not any({"test", "tests", "site-packages"} & set(name.split("/")) for name in names)


def test_large_files_come_first(files: Path) -> None:
    assert [file.name for file in by_size(directory(files).files)][:2] == ["binary.bin", "sub/b.txt"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"The cat, the CAT!", {"the": 2, "cat": 2}),
        (b"a I 42 x1y2", {}),
        (b"snake_case camelCase", {"snake": 1, "case": 1, "camelcase": 1}),
        ("grün GRÜN".encode(), {"grün": 2}),
        (b"ab\xffcd", {"ab": 1, "cd": 1}),
        (b"text\0", {}),
        (b"x" * 100, {"x" * 64: 1, "x" * 36: 1}),
    ],
)
def test_word_is_a_run_of_2_to_64_letters_of_text(data: bytes, words: dict[str, int]) -> None:
    assert count_words(data) == words
