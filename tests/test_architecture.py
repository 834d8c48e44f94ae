"""The layers of mono_sync, read from its source: who may import whom, and what an import may do."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mono_sync"

LAYERS: tuple[tuple[str, ...], ...] = (  # lowest first; a module belongs to the longest prefix that fits
    ("mono_sync.errors", "mono_sync._durations", "mono_sync._lazy", "mono_sync._threads"),
    ("mono_sync.server",),
    ("mono_sync.loop",),
    ("mono_sync.adapter",),
    ("mono_sync.connection",),
    ("mono_sync.recipes",),
    ("mono_sync.storage",),
    ("mono_sync.client",),
    ("mono_sync.messaging",),
    ("mono_sync.plugins",),
    ("mono_sync.application",),
    ("mono_sync",),
    ("mono_sync.__main__", "mono_sync.demo"),
)
REQUIRED = {"nats": "nats-py", "tenacity": "tenacity", "typing_extensions": "typing-extensions"}  # import: distribution
OPTIONAL = {"uvloop"}  # only inside a function or a `try`
MAX_LINES = 500
LONGER_ON_PURPOSE = {"mono_sync/errors.py"}  # one flat tree; splitting it would hide the drawing


@dataclass(frozen=True)
class Import:
    target: str  # a module of mono_sync, or the top-level name of another package
    line: int
    guarded: bool  # inside a function or a `try`


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def resolve(name: str) -> str:
    """Return the module that a dotted name lies in, or its top-level package if it is not ours."""
    if not (name + ".").startswith("mono_sync."):
        return name.partition(".")[0]
    while name not in FILES:
        name = name.rpartition(".")[0]
    return name


def imported_names(node: ast.AST, module: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            is_package = FILES[module].name == "__init__.py"
            package = module.split(".")[: None if is_package and node.level == 1 else -node.level + is_package]
            base = ".".join([*package, *filter(None, [base])])
        return [f"{base}.{alias.name}" for alias in node.names]
    return []


def imports_of(module: str) -> Iterator[Import]:
    def walk(node: ast.AST, *, guarded: bool) -> Iterator[Import]:
        guarded = guarded or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Try))
        for name in imported_names(node, module):
            yield Import(resolve(name), node.lineno, guarded)  # type: ignore[attr-defined]  # an import statement
        for child in ast.iter_child_nodes(node):
            yield from walk(child, guarded=guarded)

    return walk(ast.parse(FILES[module].read_text("utf-8")), guarded=False)


IMPORTS = {module: tuple(imports_of(module)) for module in FILES}


def layer_of(module: str) -> int:
    fitting = [
        (len(prefix), number)
        for number, layer in enumerate(LAYERS)
        for prefix in layer
        if module == prefix or (module.startswith(prefix + ".") and prefix != "mono_sync")
    ]
    assert fitting, f"{module} belongs to no layer: add it to LAYERS"
    return max(fitting)[1]


@pytest.mark.parametrize("module", FILES)
def test_module_belongs_to_a_layer(module: str) -> None:
    assert layer_of(module) in range(len(LAYERS))


@pytest.mark.parametrize("module", FILES)
def test_module_imports_nothing_from_a_layer_above_it(module: str) -> None:
    upward = [
        f"{FILES[module].name}:{found.line} imports {found.target}"
        for found in IMPORTS[module]
        if found.target in FILES and layer_of(found.target) > layer_of(module)
    ]
    assert not upward


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {module: {found.target for found in IMPORTS[module] if found.target in FILES} for module in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_only_the_adapter_client_imports_nats() -> None:
    users = {module for module in FILES if any(found.target == "nats" for found in IMPORTS[module])}
    assert users <= {"mono_sync.adapter.client"}


def test_only_names_on_demand_and_tenacity_are_imported_where_these_tests_cannot_see_it() -> None:
    users = {module for module, path in FILES.items() if "import_module" in path.read_text("utf-8")}
    assert users == {"mono_sync._lazy", "mono_sync.recipes._retry"}  # for the first, see test_imports.py


@pytest.mark.parametrize("module", FILES)
def test_module_imports_no_undeclared_dependency(module: str) -> None:
    foreign = [
        found for found in IMPORTS[module] if found.target not in FILES and found.target not in sys.stdlib_module_names
    ]
    undeclared = [
        f"{FILES[module].name}:{found.line} imports {found.target}"
        for found in foreign
        if found.target not in REQUIRED and not (found.target in OPTIONAL and found.guarded)
    ]
    assert not undeclared


def test_declared_dependencies_are_the_allowed_ones() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", "utf-8")
    declared = set(re.findall(r"^[\w-]+", setup["options"]["install_requires"], re.MULTILINE))
    assert declared == set(REQUIRED.values())


def test_tox_lowest_pins_the_lower_bounds_of_setup_cfg() -> None:
    setup, tox = configparser.ConfigParser(interpolation=None), configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", "utf-8")
    tox.read(ROOT / "tox.ini", "utf-8")
    requirements = setup["options"]["install_requires"]
    bounds = dict(re.findall(r"^([\w-]+) >= ([\w.]+)", requirements, re.MULTILINE))
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", tox["testenv:lowest"]["deps"], re.MULTILINE))
    assert pins == bounds


@pytest.mark.parametrize("path", FILES.values(), ids=str)
def test_file_is_short_enough_to_read(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= MAX_LINES or path.relative_to(ROOT).as_posix() in LONGER_ON_PURPOSE


PROBE = """
import _thread, sys
effects = []
start_new_thread = _thread.start_new_thread
def start_and_record(*args):  # Python 3.11 has no audit event for it
    effects.append("_thread.start_new_thread")
    return start_new_thread(*args)
import os
register_at_fork = os.register_at_fork
def register_and_record(**hooks):  # there is no audit event for it; the standard library may do it
    if sys._getframe(1).f_globals["__name__"].partition(".")[0] in ("mono_sync", "__main__"):
        effects.append("os.register_at_fork")
    register_at_fork(**hooks)
os.register_at_fork = register_and_record
assert "threading" not in sys.modules
_thread.start_new_thread = _thread.start_new = start_and_record
def record(event, args):
    if event in ("_thread.start_new_thread", "_thread.start_joinable_thread", "socket.__new__", "subprocess.Popen",
                 "os.fork", "os.posix_spawn", "os.mkdir", "os.remove", "tempfile.mkstemp", "tempfile.mkdtemp"):
        effects.append(event)
    elif event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        effects.append(f"open {args[0]} for writing")
sys.addaudithook(record)
exec(sys.argv[1])
import logging, signal
if logging.root.handlers or any(logging.getLogger(name).handlers for name in logging.root.manager.loggerDict):
    effects.append("logging handler")
if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    effects.append("signal handler")
print(*effects, sep="\\n", end="")
"""


def side_effects_of(code: str, cwd: Path) -> str:
    run = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", PROBE, code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    return run.stdout


def test_import_of_the_package_has_no_side_effect(tmp_path: Path) -> None:
    assert not side_effects_of("import mono_sync", tmp_path)


def test_import_of_every_module_has_no_side_effect(tmp_path: Path) -> None:
    everything = "import " + ", ".join(module for module in FILES if not module.endswith("__main__"))
    assert not side_effects_of(everything, tmp_path)


@pytest.mark.parametrize(
    ("code", "effect"),
    [
        ("import threading; threading.Thread(target=int).start()", "_thread.start"),
        ("import socket; socket.socket().close()", "socket.__new__"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("import os; os.register_at_fork(before=int)", "os.register_at_fork"),
        ("open('made', 'w').close()", "open made for writing"),
        ("import logging; logging.basicConfig()", "logging handler"),
        ("import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)", "signal handler"),
    ],
)
def test_the_probe_for_side_effects_sees_them(code: str, effect: str, tmp_path: Path) -> None:
    assert effect in side_effects_of(code, tmp_path)
