"""The `truenorm` command: chooses the Keras backend, then hands over to `commands.py`.

Keras fixes its backend when it is first imported: nothing here imports it before the choice.
"""

import argparse
import os
import sys

from truenorm import __version__
from truenorm.backends import choose_backend, is_package, prepare_keras


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--version" in arguments:
        print(f"truenorm {__version__}")
        return 0
    if arguments[:1] == ["migrate-code"]:  # needs no backend, and does not wait for one
        from truenorm.tools.migrate_code import main as migrate_code

        return migrate_code(arguments)
    # Only --backend is read here; the real parser, with the help texts, is in commands.py.
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--backend", nargs="?")
    backend = peek.parse_known_args(arguments)[0].backend
    if is_package("keras") or arguments[:1] in (["bench"], ["compare"], ["migrate"]):
        try:
            os.environ["KERAS_BACKEND"] = choose_backend(backend)
            prepare_keras()
        except (LookupError, ImportError) as error:
            print(f"truenorm: {error}", file=sys.stderr)
            return 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up chatter
    from truenorm.cli.commands import main as command_line

    return command_line(arguments)
