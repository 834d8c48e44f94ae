"""The documentation is true: its programs run, and what it tells people to type exists."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(*languages: str) -> dict[str, str]:
    """Return the fenced code blocks in these languages by ``file:line``."""
    found = {}
    for page in PAGES:
        text = page.read_text("utf-8")
        for block in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if block[1] in languages:
                line = text.count("\n", 0, block.start()) + 1
                found[f"{page.relative_to(ROOT).as_posix()}:{line}"] = block[2]
    return found


PROGRAMS = blocks("python", "py", "python3")
COMMANDS = {
    f"{place}+{number}": command
    for place, block in blocks("console", "bash", "sh", "shell").items()
    for number, command in enumerate(re.sub(r"\\\n\s*", "", block).splitlines())
    if command and not command.startswith("#")
}


def tox_environments() -> set[str]:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", "utf-8")
    named = {section.partition(":")[2] for section in tox.sections() if section.startswith("testenv:")}
    return named | set(re.split(r"[,\s]+", tox["tox"]["env_list"]))


@pytest.mark.parametrize("place", PROGRAMS)
def test_python_block_runs_without_a_warning(place: str, tmp_path: Path) -> None:
    page, line = place.rsplit(":", 1)
    program = tmp_path / f"{Path(page).stem.lower()}_line_{line}.py"
    program.write_text(PROGRAMS[place], "utf-8")
    run = subprocess.run(
        [sys.executable, "-W", "error", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert not run.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_code_block_says_its_language(page: Path) -> None:
    fences = re.findall(r"^```.*$", page.read_text("utf-8"), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert all(re.fullmatch(r"```(python|console|text|ini|toml)", fence) for fence in fences[::2])
    assert set(fences[1::2]) <= {"```"}


def test_readme_has_one_command_for_the_demo_and_one_for_the_tests() -> None:
    assert [command for place, command in COMMANDS.items() if place.startswith("README") and "venv" in command] == [
        "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox -e demo",
        "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox",
    ]


def test_ci_runs_exactly_the_test_command_of_the_readme() -> None:
    lines = [line.strip() for line in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()]
    command = "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox"
    assert lines.count(command) == 1
    assert command in COMMANDS.values()


@pytest.mark.parametrize("place", COMMANDS)
def test_command_names_only_what_exists(place: str) -> None:
    command = COMMANDS[place]
    for names in re.findall(r"\btox -e (\S+)", command):
        assert set(names.split(",")) <= tox_environments()
    for path in re.findall(r"(?<![\w./])(?:tests|benchmarks|examples|docs)/[\w./-]*", command):
        assert (ROOT / path).exists(), path
    for path, name in re.findall(r"\b(tests/\S+\.py)::(\w+)", command):
        assert f"def {name}(" in (ROOT / path).read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\((?!\w+:|#)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target
