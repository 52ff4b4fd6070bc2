"""The command line: `evenkeel compare | explain | config`.

Each command is a parser beside the function that runs it. The plotting, progress and data
libraries that a command needs are imported when it runs, never at the top of this file.
"""

import argparse
import sys
from collections.abc import Sequence

from evenkeel.errors import InputError


def add_explain(commands) -> None:
    parser = commands.add_parser("explain", help="which elements share a mean, in words or drawn")
    parser.set_defaults(run=run_explain)


def run_explain(options: argparse.Namespace) -> int:
    raise NotImplementedError


def add_compare(commands) -> None:
    parser = commands.add_parser("compare", help="train a model once per normalization and report")
    parser.set_defaults(run=run_compare)


def run_compare(options: argparse.Namespace) -> int:
    raise NotImplementedError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; wrong input is one sentence on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="evenkeel", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (add_compare, add_explain):
        add(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except InputError as error:
        print(f"evenkeel {options.command}: {error}", file=sys.stderr)
        return 2
