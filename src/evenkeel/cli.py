"""The command line: `evenkeel compare | explain | config`.

Each command is a parser beside the function that runs it. The plotting, progress and data
libraries that a command needs are imported when it runs, never at the top of this file.
"""

import argparse
import sys
from collections.abc import Sequence

from evenkeel.errors import InputError


def add_explain(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the parser of `evenkeel explain`."""
    parser = commands.add_parser("explain", help="which elements share a mean, in words or drawn")
    parser.add_argument("name", help="batch, layer, instance, group, rms, or all side by side")
    parser.add_argument(
        "--shape",
        default="8,28,28,64",
        help="the input's sizes, samples first, ? for an unknown one (default: %(default)s)",
    )
    parser.add_argument("--groups", type=int, help="groups of channels, -1: one per channel")
    parser.add_argument(
        "--axis",
        help="the channel axis (default: the last), or for layer and rms a list: 1,2,3 "
        "(a list that begins with a minus as --axis=-2,-1)",
    )
    parser.add_argument("--out", metavar="FILE", help="draw it, to a .png, .svg or .pdf file")
    parser.add_argument("--force", action="store_true", help="overwrite an existing FILE")
    parser.set_defaults(run=run_explain)


def run_explain(options: argparse.Namespace) -> int:
    """Print which elements share statistics, and draw them where asked."""
    from evenkeel.drawing import check_output
    from evenkeel.explanation import explain, parse_axis, parse_shape

    axis = None if options.axis is None else parse_axis(options.axis)
    shape = parse_shape(options.shape)
    explanation = explain(options.name, shape, groups=options.groups, axis=axis)
    if options.out is not None:
        check_output(options.out, options.force)
    print(explanation)
    if options.out is not None:
        explanation.save(options.out, options.force)
        print(f"\nThe picture is in {options.out}")
    return 0


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
