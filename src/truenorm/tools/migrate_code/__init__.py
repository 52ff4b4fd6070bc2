"""`truenorm migrate-code`: source code that imports TensorFlow Addons, rewritten for truenorm.

names.py says what truenorm covers and what Keras has for the rest; rewrite.py changes the code of
one file, notebook.py that of a notebook. This module finds the files, shows the difference or
writes it, and lists what is left.
"""

import argparse
import contextlib
import dataclasses
import difflib
import importlib.util
import os
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence

from truenorm.tools.migrate_code import requirements
from truenorm.tools.migrate_code.uses import Rewritten

MENTIONS = re.compile(rb"tensorflow[_-]addons|keras_contrib")
SUFFIXES = (".py", ".ipynb")
INSTALL = (
    "tensorflow-addons is taken out of what is installed. truenorm is installed from a clone of "
    "its repository: pip install PATH_OF_THE_CLONE\n"
)
HELP = "rewrite source code that imports TensorFlow Addons"
DESCRIPTION = (
    "Show how source code that imports TensorFlow Addons looks with truenorm, as a diff, and list "
    "the uses that truenorm does not cover, with what Keras 3 has for them, and what else Keras 3 "
    "breaks in these files."
)
SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages"}


class CodeError(Exception):
    """A file that cannot be read, rewritten or written; the message is one sentence."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the parser of `truenorm migrate-code`."""
    parser = commands.add_parser("migrate-code", help=HELP, description=DESCRIPTION)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="a Python file, a notebook, a list of requirements, or a folder with such files",
    )
    parser.add_argument("--write", action="store_true", help="rewrite the files")
    parser.set_defaults(run=lambda options: migrate_code(options.files, write=options.write))


def main(arguments: Sequence[str]) -> int:
    """Run `truenorm migrate-code` by itself: truenorm, and with it Keras, is not imported."""
    parser = argparse.ArgumentParser(prog="truenorm")
    add_parser(parser.add_subparsers(required=True))
    options = parser.parse_args(arguments)
    code: int = options.run(options)
    return code


def migrate_code(paths: Sequence[str], *, write: bool = False) -> int:
    """Rewrite the files, and those of folders, that import TensorFlow Addons.

    Prints a unified diff, or writes the files, and lists the uses that stay. A file that cannot be
    read, parsed or written is named on stderr, and the others go on.

    Returns:
        The exit code: 2 where a file was bad or LibCST is not installed, else 0.
    """
    if importlib.util.find_spec("libcst") is None:
        print(
            "truenorm migrate-code: LibCST is not installed, which reads and writes source code; "
            "install it with pip install libcst.",
            file=sys.stderr,
        )
        return 2
    changed, left, bad, taken_out = 0, [], 0, 0
    seen = set()
    for path, named in _files(paths):
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        try:
            before = _read(path)
            if not named and not MENTIONS.search(before):
                continue
            rewritten = _rewrite(path, before)
            after, notes = rewritten.source, rewritten.notes
            if after != before and write:
                _write(path, after)
                rewritten = _rewrite(path, after)  # with the lines of the new file
        except CodeError as error:
            bad += 1
            print(f"truenorm migrate-code: {error}", file=sys.stderr)
            continue
        if after != before:
            changed += 1
            taken_out += requirements.count(before) > requirements.count(after)
            _print(f"rewritten: {path}\n" if write else _difference(path, before, after))
        _print("".join(f"{path}:{note}\n" for note in notes))
        left += [f"{path}:{use}\n" for use in rewritten.uses]
    _print("".join(left))
    files = f"{changed} file{'s' * (changed != 1)}"
    uses = f"{len(left)} use{'s' * (len(left) != 1)} left to you"
    _print(f"{files} {'rewritten' if write else 'to rewrite (--write does it)'}, {uses}.\n")
    if taken_out:
        _print(INSTALL)
    return 2 if bad else 0


def _files(paths: Sequence[str]) -> Iterator[tuple[pathlib.Path, bool]]:
    """The files that are named, and those of the folders; and whether a file itself is named."""
    for path in map(pathlib.Path, paths):
        if not path.is_dir():
            yield path, True
            continue
        for where, folders, files in os.walk(path):
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".")
                and name not in SKIPPED_FOLDERS
                and not (pathlib.Path(where) / name / "pyvenv.cfg").exists()
            )
            for name in sorted(files):
                if name.endswith(SUFFIXES) or requirements.is_list(name):
                    yield pathlib.Path(where) / name, False


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CodeError(f"{str(path)!r} does not exist.") from None
    except OSError as error:
        raise CodeError(f"cannot read {str(path)!r}: {error.strerror}.") from None


def _rewrite(path: pathlib.Path, source: bytes) -> Rewritten:
    if requirements.is_list(path.name):
        return requirements.rewrite(source)
    from truenorm.tools.migrate_code import notebook, rewrite

    try:
        if path.suffix == ".ipynb":
            return notebook.rewrite(source)
        if path.name == "setup.py":
            return _rewrite_setup(source)
        return rewrite.rewrite(source)
    except notebook.NotebookError as error:
        raise CodeError(f"{str(path)!r} was left as it is: {error}.") from None
    except Exception as error:  # LibCST raises its own, and others on odd files
        reason = rewrite.complaint(error)
        raise CodeError(f"{str(path)!r} was left as it is: {reason}.") from None


def _rewrite_setup(source: bytes) -> Rewritten:
    """A setup.py is both, code and a list of requirements."""
    from truenorm.tools.migrate_code import rewrite

    code = rewrite.rewrite(source)
    listed = requirements.rewrite(code.source)
    return dataclasses.replace(code, source=listed.source, uses=[*code.uses, *listed.uses])


def _write(path: pathlib.Path, content: bytes) -> None:
    """Replace a file in one step, keeping its permissions; a link stays a link."""
    target = path.resolve()
    temporary = None
    try:
        if not os.access(target, os.W_OK):
            raise PermissionError(0, "it is read-only")
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=f".{target.name}.", suffix=".tmp", delete=False
        ) as file:
            temporary = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise CodeError(f"cannot write {str(path)!r}: {error.strerror}.") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _difference(path: pathlib.Path, before: bytes, after: bytes) -> bytes:
    """A unified diff that `patch` applies, in the encoding of the file."""
    old, new = (re.findall(rb"[^\n]*\n|[^\n]+", content) for content in (before, after))
    name = os.fsencode(path)
    lines = difflib.diff_bytes(difflib.unified_diff, old, new, name, name)
    return b"".join(
        line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n"
        for line in lines
    )


def _print(text: bytes | str) -> None:
    """Print text, or what is in a file, whose bytes go out as they are where that is possible."""
    content = text.encode() if isinstance(text, str) else text
    if (buffer := getattr(sys.stdout, "buffer", None)) is None:  # in a notebook
        print(content.decode(errors="replace"), end="")
        return
    sys.stdout.flush()
    buffer.write(content)
    buffer.flush()
