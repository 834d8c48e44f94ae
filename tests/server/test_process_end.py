"""However the Python process ends, or forks, or forgets the object: no server is left, and nobody else's is harmed."""

from __future__ import annotations

import json
import os
import signal
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from mono_sync.server import EmbeddedServer, EmbeddedServerConfig
from tests.fixtures.leaks import no_more_threads_than, our_threads
from tests.fixtures.processes import Program, is_running, processes_naming
from tests.fixtures.waiting import wait_until

START = """
import json, os, subprocess, sys, threading, time, warnings
from mono_sync.server import EmbeddedServer, EmbeddedServerConfig
options = dict(item.split("=") for item in sys.argv[1:])
server = EmbeddedServer(EmbeddedServerConfig(**options))
def report(**more):
    facts = {"pid": server.pid, "port": server.port, "run_dir": str(server.store_dir.parent), **more}
    print(json.dumps(facts), flush=True)
"""
IN_TIME = 5.0


def assert_nothing_left(facts: dict[str, Any]) -> None:
    def left() -> list[str]:
        return [
            *(["server"] if is_running(facts["pid"]) else []),
            *(f"process {pid}" for pid in processes_naming(facts["run_dir"]) if is_running(pid)),
            *(["run directory"] if Path(facts["run_dir"]).exists() else []),
        ]

    try:
        wait_until(lambda: not left(), "everything ended", timeout=IN_TIME)
    except AssertionError:
        pytest.fail(f"left: {left()}")


# --- the process is killed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_server_ends_when_the_process_is_killed(any_binary: str, number: signal.Signals) -> None:
    with Program(START + "server.start(); report(); time.sleep(100)", f"binary={any_binary}") as program:
        facts = json.loads(program.line())
        program.signal(number)
        assert_nothing_left(facts)


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01, 0.02])
def test_server_ends_when_the_process_is_killed_during_the_start(delay: float, tmp_path: Path) -> None:
    code = START + "import tempfile; tempfile.tempdir = sys.argv.pop(); print('now', flush=True); server.start()"
    with Program(code.replace("sys.argv[1:]", "sys.argv[1:-1]"), str(tmp_path)) as program:
        program.line()
        time.sleep(delay)  # into different steps of the start
        program.kill()
    wait_until(lambda: not processes_naming(str(tmp_path)), "server and watchdog end", timeout=IN_TIME)


def test_stalled_server_ends_when_the_process_is_killed(any_binary: str) -> None:
    with Program(START + "server.start(); report(); time.sleep(100)", f"binary={any_binary}") as program:
        facts = json.loads(program.line())
        os.kill(facts["pid"], signal.SIGSTOP)
        program.kill()
        assert_nothing_left(facts)


def test_restarted_server_ends_when_the_process_is_killed() -> None:
    code = """
server.start()
first = server.pid
os.kill(first, 9)
while server.pid in (None, first): time.sleep(0.001)
report()
time.sleep(100)
"""
    with Program(START + code) as program:
        facts = json.loads(program.line())
        program.kill()
        assert_nothing_left(facts)


def test_persistent_store_stays_when_the_process_is_killed(tmp_path: Path) -> None:
    with Program(START + "server.start(); report(); time.sleep(100)", f"store_dir={tmp_path / 'store'}") as program:
        facts = json.loads(program.line())
        program.kill()
        wait_until(lambda: not is_running(facts["pid"]), "the server ends")
    assert (tmp_path / "store" / "jetstream").is_dir()
    assert "Server Exiting" in (tmp_path / "store" / "nats-server.log").read_text("utf-8")  # in good order


@pytest.mark.parametrize(
    "child",
    [
        "pid = os.fork()\nif pid == 0:\n    time.sleep(100)\n    os._exit(0)",
        "pid = subprocess.Popen(['sleep', '100']).pid",
        "pid = subprocess.Popen(['sleep', '100'], close_fds=False).pid",
    ],
    ids=["fork", "subprocess", "subprocess with open files"],
)
def test_server_ends_when_the_process_is_killed_and_its_children_live_on(child: str) -> None:
    code = "warnings.simplefilter('ignore'); server.start()\n" + child + "\nreport(child=pid); time.sleep(100)"
    with Program(START + code) as program:
        facts = json.loads(program.line())
        try:
            program.kill()
            assert_nothing_left(facts)
            assert is_running(facts["child"])
        finally:
            os.kill(facts["child"], signal.SIGKILL)


def test_ctrl_c_in_a_terminal_does_not_reach_the_server(any_binary: str) -> None:
    with EmbeddedServer(EmbeddedServerConfig(binary=any_binary)) as server:
        ours = os.getpgid(0)
        assert all(os.getpgid(pid) != ours for pid in processes_naming(str(server.store_dir.parent)))


# --- the interpreter ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "sys.exit(0)",
        "server.cycle = server",
        "threading.Thread(target=sys.exit).start()",
        "threading.Thread(target=time.sleep, args=(0.1,), daemon=True).start()",
        "import atexit; atexit.register(server.stop)",
        "import builtins; builtins.kept = server; del server",
    ],
)
def test_server_that_is_still_referenced_at_exit_is_stopped_silently(ending: str) -> None:
    with Program(START + "server.start(); report()\n" + ending) as program:
        code, out, err = program.finish()
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert not is_running(facts["pid"])
    assert not Path(facts["run_dir"]).exists()


def test_server_is_stopped_after_an_exception_that_ends_the_program() -> None:
    with Program(START + "server.start(); report(); raise SystemError('mine')") as program:
        code, out, err = program.finish()
    assert code == 1
    assert err.count("Traceback") == 1
    assert err.endswith("SystemError: mine\n")
    facts = json.loads(out)
    assert not is_running(facts["pid"])
    assert not Path(facts["run_dir"]).exists()


def test_server_ends_when_the_program_becomes_another() -> None:
    code = START + "server.start(); report(); sys.stdout.flush(); os.execv('/bin/sleep', ['sleep', '100'])"
    with Program(code) as program:
        assert_nothing_left(json.loads(program.line()))


# --- the object is forgotten ----------------------------------------------------------------------------------------


def test_server_that_nobody_refers_to_ends_with_a_warning_that_names_it(any_binary: str) -> None:
    threads = our_threads()
    server = EmbeddedServer(EmbeddedServerConfig(binary=any_binary))
    server.start()
    facts = {"pid": server.pid, "run_dir": str(server.store_dir.parent)}
    name = repr(server)
    with pytest.warns(ResourceWarning) as caught:
        del server
    assert [str(warning.message) for warning in caught] == [f"{name} was never stopped"]
    assert_nothing_left(facts)
    wait_until(lambda: no_more_threads_than(threads), "its thread ends")


def test_thread_does_not_keep_the_object_alive() -> None:
    server = EmbeddedServer()
    server.start()
    alive = weakref.ref(server)
    with pytest.warns(ResourceWarning, match="was never stopped"):
        del server
    assert alive() is None


def test_server_in_a_reference_cycle_ends_too() -> None:
    code = """
import gc
server.start()
report()
server.cycle = server
warnings.simplefilter("ignore")
del server
gc.collect()
while threading.active_count() > 1: time.sleep(0.001)
print(threading.enumerate() == [threading.main_thread()])
"""
    with Program(START + code) as program:
        facts = json.loads(program.line())
        assert program.finish() == (0, "True\n", "")
        assert_nothing_left(facts)


@pytest.mark.parametrize("make", ["", "server.start(); server.stop()", "server.start(); server.start(); server.stop()"])
def test_object_without_a_running_server_is_forgotten_silently(make: str) -> None:
    with Program(START + make + "\ndel server; import gc; gc.collect()") as program:
        assert program.finish() == (0, "", "")


def test_failed_start_is_forgotten_silently(tmp_path: Path) -> None:
    code = "from mono_sync.errors import *\ntry: server.start()\nexcept ServerNotFoundError: pass\ndel server"
    with Program(START + code, f"binary={tmp_path}/gone") as program:
        assert program.finish() == (0, "", "")


# --- forked children ------------------------------------------------------------------------------------------------

FORK = """
from mono_sync.errors import ForkedError
from mono_sync.server._probe import probe
warnings.simplefilter("ignore", DeprecationWarning)
def in_child(action):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        action()
        sys.exit(0)  # the whole end of an interpreter: atexit, finalisers
    assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.parametrize(
    "action",
    [
        "pass",
        "server.stop()",
        "server.__exit__(None, None, None)",
        "server.__del__()",
        "global server; server = None; import gc; gc.collect()",
        "assert probe(server.port, server.token, 5)",
    ],
)
def test_forked_child_does_not_touch_the_server_of_its_parent(action: str) -> None:
    code = f"""
server.start()
first = server.pid
def action():
    {action}
in_child(action)
assert server.alive and server.pid == first
assert probe(server.port, server.token, 5)
server.stop()
"""
    with Program(START + FORK + code) as program:
        assert program.finish() == (0, "", "")


def test_forked_child_cannot_start_the_server_of_its_parent() -> None:
    code = """
server.start()
def action():
    try: server.start()
    except ForkedError as error: print("belongs to the parent" in str(error))
in_child(action)
server.stop()
"""
    with Program(START + FORK + code) as program:
        assert program.finish() == (0, "True\n", "")


def test_lock_that_another_thread_holds_at_the_fork_stops_no_call_of_the_child() -> None:
    code = """
server.start()
other = EmbeddedServer()
held, done = threading.Event(), threading.Event()
def hold():
    with server._lock, other._lock:
        held.set()
        done.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
def action():
    server.stop()
    try: server.start()
    except ForkedError: print("refused")
    with other: print("started")
in_child(action)
done.set()
thread.join()
server.stop()
"""
    with Program(START + FORK + code) as program:
        assert program.finish() == (0, "refused\nstarted\n", "")


def test_forked_child_may_start_what_its_parent_only_made() -> None:
    code = """
def action():
    with server: print(bool(probe(server.port, server.token, 5)))
in_child(action)
in_child(action)
with server: print(bool(probe(server.port, server.token, 5)))
"""
    with Program(START + FORK + code) as program:
        assert program.finish() == (0, "True\nTrue\nTrue\n", "")


def test_forked_child_may_run_a_server_of_its_own_beside_its_parents() -> None:
    code = """
server.start()
def action():
    with EmbeddedServer() as own:
        assert own.port != server.port
        print(bool(probe(own.port, own.token, 5)))
in_child(action)
assert probe(server.port, server.token, 5)
server.stop()
"""
    with Program(START + FORK + code) as program:
        assert program.finish() == (0, "True\n", "")


def test_forked_child_does_not_keep_the_store_locked(tmp_path: Path) -> None:
    code = """
server.start()
pid = os.fork()
if pid == 0:
    time.sleep(100)
    os._exit(0)
server.stop()
with EmbeddedServer(EmbeddedServerConfig(store_dir=options["store_dir"], start_timeout=5)): print(True)
os.kill(pid, 9)
os.waitpid(pid, 0)
"""
    with Program(START + FORK + code, f"store_dir={tmp_path}") as program:
        assert program.finish() == (0, "True\n", "")


# --- programs that handle children in their own way -----------------------------------------------------------------


def test_program_that_waits_for_all_children_does_not_confuse_the_server() -> None:
    code = """
import signal
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass
    except ChildProcessError: pass
signal.signal(signal.SIGCHLD, reap)
server.start()
first = server.pid
os.kill(first, 9)
while server.pid in (None, first): time.sleep(0.001)
server.stop()
print(threading.enumerate() == [threading.main_thread()])
"""
    with Program(START + code) as program:
        assert program.finish()[:2] == (0, "True\n")


def test_signal_handler_may_stop_the_server_while_it_is_being_stopped() -> None:
    code = """
import signal
slowest = 0.0
for number in range(30):
    handled = []
    with EmbeddedServer() as server:
        def stop(*_):
            server.stop()
            handled.append(True)
        signal.signal(signal.SIGALRM, stop)
        begin = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.0001 + 0.0002 * number)  # into every step of the stop
    while not handled: time.sleep(0.001)
    slowest = max(slowest, time.monotonic() - begin)
    assert not server.alive
print(slowest < 4)
"""
    with Program(START + code) as program:
        assert program.finish() == (0, "True\n", "")


def test_server_answers_while_its_owner_forks_all_the_time() -> None:
    code = """
done = threading.Event()
def fork():
    while not done.is_set():
        pid = os.fork()
        if pid == 0: os._exit(0)
        os.waitpid(pid, 0)
thread = threading.Thread(target=fork)
thread.start()
for _ in range(3):
    with EmbeddedServer() as other: probe(other.port, other.token, 5)
done.set()
thread.join()
"""
    with Program(START + FORK + code) as program:
        assert program.finish() == (0, "", "")
