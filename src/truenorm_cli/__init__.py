"""The `truenorm` command: chooses the Keras backend, then hands over to `truenorm.cli`.

It is a package of its own because Keras fixes its backend when it is first imported, which
`import truenorm` does. Nothing here imports either of them before the choice is made.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import sys

PACKAGES = {
    "jax": "jax",
    "tensorflow": "tensorflow",
    "torch": "torch",
    "numpy": "numpy",
    "openvino": "openvino",
}


def configured_backend() -> str | None:
    """The backend that Keras would take: KERAS_BACKEND, else its configuration file."""
    if name := os.environ.get("KERAS_BACKEND"):
        return name
    home = pathlib.Path(os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras")
    try:
        name = json.loads((home / "keras.json").read_text()).get("backend")
    except (OSError, ValueError, AttributeError):
        return None
    return name if isinstance(name, str) else None


def choose_backend(requested: str | None) -> str:
    """Return the requested backend, else the configured one, else the first that is installed.

    Raises:
        LookupError: the backend is unknown or not installed; the message says how to install it.
    """
    installed = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package)]
    if requested is not None and requested not in PACKAGES:
        raise LookupError(f"unknown backend {requested!r}; expected one of {', '.join(PACKAGES)}")
    if requested is not None and requested not in installed:
        raise LookupError(
            f"the backend {requested!r} is not installed; install it with "
            f"pip install {PACKAGES[requested]!r}, or choose one that is: {', '.join(installed)}"
        )
    configured = configured_backend()
    if requested is None and configured in installed:
        requested = configured
    return requested or installed[0]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Only --backend is read here; the real parser, with the help texts, is in truenorm.cli.
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--backend", nargs="?")
    try:
        os.environ["KERAS_BACKEND"] = choose_backend(peek.parse_known_args(arguments)[0].backend)
    except LookupError as error:
        print(f"truenorm: {error}", file=sys.stderr)
        return 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up chatter
    from truenorm.cli import main as command_line

    return command_line(arguments)
