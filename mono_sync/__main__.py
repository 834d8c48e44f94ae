"""The command ``mono-sync``, also ``python -m mono_sync``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mono_sync import __version__
from mono_sync.demo import add_arguments, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        argv: arguments; None takes those of the process.

    Raises:
        SystemExit: the arguments are wrong (code 2), or ask for help or version (code 0).
    """
    parser = argparse.ArgumentParser(prog="mono-sync", description="Synchronous, thread-based NATS for Python.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="do real work on a private NATS server, and verify it")
    add_arguments(demo)
    return run_command(parser.parse_args(argv), demo)


if __name__ == "__main__":
    sys.exit(main())
