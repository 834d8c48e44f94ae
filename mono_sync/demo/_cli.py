"""The command: arguments, Ctrl-C, and an exit code that tells the truth."""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from mono_sync import ConfigurationError, ModuleStartError, MonoError
from mono_sync.demo._errors import DemoError
from mono_sync.demo._run import Demo, Settings
from mono_sync.demo._sources import Sources, directory, standard_library
from mono_sync.demo._text import counted, printable, size_text

_DESCRIPTION = """\
Store every file of a directory as an object, count their words in key-value storage from several threads with
optimistic locking, and verify all of it. The exit code is 0 when everything was verified, 1 when it was not or
something failed, 2 when the arguments are wrong, and 130 after Ctrl-C."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser, for `run_command`."""
    parser.description = _DESCRIPTION
    parser.add_argument(
        "--directory",
        type=_path,
        metavar="DIR",
        help="files to work on (default: the Python sources of the standard library)",
    )
    parser.add_argument("--threads", type=_number(1, 64), default=8, help="threads, 1 to 64 (default: 8)")
    parser.add_argument(
        "--shards",
        type=_number(1, 9999),
        default=256,
        help="keys that the index is spread over; the fewer, the more conflicts (default: 256)",
    )
    parser.add_argument(
        "--servers",
        metavar="URLS",
        help="NATS servers to use, with commas between them (default: MONO_SYNC_SERVERS, else an embedded server)",
    )
    parser.add_argument(
        "--store-dir",
        type=_path,
        metavar="DIR",
        help="where the embedded server keeps its data (default: a temporary directory)",
    )
    parser.add_argument(
        "--bucket",
        default="mono-sync-demo",
        metavar="NAME",
        help="buckets to use; what is in them is replaced, so no two demos may share them (default: mono-sync-demo)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show the log of the library")


def run_command(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Run the demo and return its exit code.

    Raises:
        SystemExit: the arguments are wrong; its code is 2.
    """
    _prepare_output()
    if args.verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signals: list[int] = []
    try:
        with _one_interrupt(signals):
            return _run(args, parser)
    except KeyboardInterrupt:
        print("interrupted; the application has been stopped", file=sys.stderr)
        return 128 + (signals or [signal.SIGINT])[0]
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains at its end
        return _fail("nobody reads the output any more")
    except ExceptionGroup as group:
        return _fail("; ".join(str(error) for error in group.exceptions))
    except ModuleStartError as error:
        return _fail(str(error.__cause__ if error.module == "application" else error))
    except (MonoError, DemoError, OSError) as error:
        return _fail(str(error))


def _run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    sources = _sources(args.directory, parser)
    settings = Settings(
        threads=args.threads,
        shards=args.shards,
        bucket=args.bucket,
        servers=args.servers.split(",") if args.servers is not None else None,
        store_dir=args.store_dir,
    )
    try:
        demo = Demo(sources, settings)
    except ConfigurationError as error:
        parser.error(str(error))
    files = counted(len(sources.files), "file")
    print(f"{files}, {size_text(sources.size)}, in {printable(sources.directory)}", flush=True)
    report = demo.run(sys.stdout)
    print(report.text(), flush=True)
    return 1 if report.faults else 0


def _sources(path: Path | None, parser: argparse.ArgumentParser) -> Sources:
    try:
        sources = standard_library() if path is None else directory(path)
    except OSError as error:
        if path is None:
            raise DemoError(f"the standard library is not here as files, give a --directory: {error}") from error
        parser.error(f"--directory {printable(path)}: {error.strerror or error}")
    if not sources.files:
        left_out = f"; {len(sources.skipped)} that cannot be used" if sources.skipped else ""
        raise DemoError(f"no files in {printable(sources.directory)}{left_out}")
    return sources


def _fail(reason: str) -> int:
    first = reason.splitlines()[0] if reason else "unknown reason"
    print(f"mono-sync demo: error: {printable(first)}", file=sys.stderr)
    return 1


def _prepare_output() -> None:
    """Let both streams take any text: escape what their encoding lacks, and drop the text of one that is closed."""
    sys.stdout, sys.stderr = map(_tolerant, (sys.stdout, sys.stderr))


def _tolerant(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8", closefd=False)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty path names nothing")  # for Path it is the current directory
    return Path(text)


def _number(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not from {low} to {high}")
        return value

    return number


@contextmanager
def _one_interrupt(signals: list[int]) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM raise `KeyboardInterrupt`, and ignore the rest, which would disturb the stop.

    What came is added to ``signals``. Outside the main thread, where no handler can be set, it does nothing.
    """

    def handler(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        if len(signals) == 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
