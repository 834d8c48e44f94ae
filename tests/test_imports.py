"""What ``import mono_sync`` leaves for later, and that it is there when it is asked for."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mono_sync
import mono_sync.storage
from mono_sync import EmbeddedServer

PACKAGES = {package.__name__: package for package in (mono_sync, mono_sync.storage)}
LATER = (  # with all that is in them
    "mono_sync.application",
    "mono_sync.demo",
    "mono_sync.messaging",
    "mono_sync.plugins",
    "mono_sync.server._binary",
    "mono_sync.server._lock",
    "mono_sync.server._log",
    "mono_sync.server._probe",
    "mono_sync.server._settings",
    "mono_sync.server._supervisor",
    "mono_sync.server._watchdog",
    "mono_sync.storage.kv._port",
    "mono_sync.storage.objects",
    "concurrent.futures.thread",
    "difflib",
    "graphlib",
    "tenacity",
    "uvloop",
)


def run(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=50, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def is_later(module: str) -> bool:
    return (module + ".").startswith(tuple(f"{name}." for name in LATER))


def test_an_import_of_the_package_leaves_to_later_what_a_connection_and_its_keys_do_not_need() -> None:
    loaded = run("""
import sys, nats
before = set(sys.modules)
import mono_sync
print(*sorted(set(sys.modules) - before), sep="\\n")
""")
    assert "mono_sync.storage.kv" in loaded
    assert [module for module in loaded if is_later(module)] == []


@pytest.mark.parametrize("module", LATER)
def test_what_is_left_to_later_exists(module: str) -> None:
    if module == "uvloop":
        pytest.importorskip(module)
    importlib.import_module(module)


def test_opening_a_bucket_imports_all_that_its_calls_need(nats_server: EmbeddedServer) -> None:
    program = f"""
import sys
import mono_sync

def ours():
    return {{name for name in sys.modules if name.startswith("mono_sync")}}

at_first = ours()
with mono_sync.connect({nats_server.url!r}, token={nats_server.token!r}) as connection:
    bucket = connection.kv(mono_sync.KVBucketConfig("imports", storage="memory", history=2))
    bucket.set("key", b"value")
    with bucket.watch("key") as watcher:
        next(watcher)
    bucket.set_many({{"key": b"other", "more": b"values"}})
    bucket.get_many(["key", "more"])
    bucket.modify("key", lambda entry: b"modified")
    assert ours() == at_first

    objects = connection.objects(mono_sync.FSBucketConfig("imports", storage="memory"))
    opened = ours()
    assert opened > at_first
    objects.put("key", b"value")
    with objects.open("key", "w") as writer:
        writer.write("text")
    with objects.open("key") as reader:
        reader.read()
    objects.list()
    objects.sweep()
    objects.delete("key")
    assert ours() == opened
"""
    run(program)


@pytest.mark.parametrize("package", PACKAGES)
def test_names_on_demand_come_from_where_type_checkers_are_told(package: str) -> None:
    tree = ast.parse(Path(PACKAGES[package].__file__ or "").read_text("utf-8"))
    (choice,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {
        node.module: tuple(alias.name for alias in node.names)
        for node in choice.body
        if isinstance(node, ast.ImportFrom)
    }
    (call,) = (node for node in ast.walk(choice) if isinstance(node, ast.Call))
    assert ast.literal_eval(call.args[1]) == told


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_lists_names_that_nobody_has_asked_for(package: str) -> None:
    listed, names = run(f"import {package} as package; print(dir(package)); print(package.__all__)")
    assert set(ast.literal_eval(names)) <= set(ast.literal_eval(listed))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_star_import_gets_every_name(package: str) -> None:
    (missing,) = run(f"from {package} import *; import {package} as package; print(set(package.__all__) - set(dir()))")
    assert missing == "set()"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_that_a_package_does_not_have_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match=f"^module '{package}' has no attribute 'Misspelt'$") as caught:
        getattr(PACKAGES[package], "Misspelt")  # noqa: B009
    assert (caught.value.name, caught.value.obj) == ("Misspelt", PACKAGES[package])


INTERRUPTING = """
import sys
import mono_sync

class Interrupting:
    def __init__(self):
        self.interrupted = []
    def find_spec(self, name, *rest):
        if name.startswith("mono_sync.") and name not in self.interrupted:
            self.interrupted.append(name)
            raise KeyboardInterrupt

def again_and_again(function):
    while True:
        try:
            return function()
        except KeyboardInterrupt:
            pass

interrupting = Interrupting()
sys.meta_path.insert(0, interrupting)
"""


def test_an_interrupt_of_a_later_import_does_no_harm_to_the_next_attempt() -> None:
    program = """
items = [again_and_again(lambda: getattr(mono_sync, name)) for name in mono_sync.__all__]
classes = [item for item in items if isinstance(item, type)]
for cls in classes:  # none was made twice, and used by others in another version
    assert getattr(sys.modules[cls.__module__], cls.__name__) is cls
    assert all(getattr(sys.modules[base.__module__], base.__name__) is base for base in cls.__mro__)
print(*interrupting.interrupted, sep="\\n")
"""
    interrupted = run(INTERRUPTING + program)
    assert {"mono_sync.application._app", "mono_sync.storage.objects._sink"} <= set(interrupted)
    assert all(is_later(module) for module in interrupted)


def test_an_embedded_server_starts_after_an_interrupt_of_what_its_start_imports() -> None:
    program = """
server = mono_sync.EmbeddedServer()
again_and_again(server.start)
server.stop()
print(*interrupting.interrupted, sep="\\n")
"""
    interrupted = run(INTERRUPTING + program)
    assert {"mono_sync.server._supervisor", "mono_sync.server._watchdog"} <= set(interrupted)
    assert all(is_later(module) for module in interrupted)


def test_threads_may_ask_for_names_at_the_same_time() -> None:
    program = """
import threading
import mono_sync
barrier = threading.Barrier(8)
found = []
def ask(number):
    barrier.wait()
    names = mono_sync.__all__[number * 17:] + mono_sync.__all__[:number * 17]
    found.append({name: getattr(mono_sync, name) for name in names})
threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(found) == 8
assert all(names == found[0] for names in found)
"""
    run(program)
