"""`truenorm migrate-code`: source code that imports TensorFlow Addons, rewritten for truenorm.

names.py says what truenorm covers and what Keras has for the rest; rewrite.py changes the code of
one file, notebook.py that of a notebook. This module finds the files, shows the difference or
writes it, and lists what is left.
"""

import contextlib
import difflib
import importlib.util
import os
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from truenorm.errors import InputError

if TYPE_CHECKING:
    from truenorm.migrate_code.rewrite import Rewritten

ADDONS = b"tensorflow_addons"
SUFFIXES = (".py", ".ipynb")
SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages"}


def migrate_code(paths: Sequence[str], *, write: bool = False) -> int:
    """Rewrite the files, and those of folders, that import TensorFlow Addons.

    Prints a unified diff, or writes the files, and lists the uses that stay. A file that cannot be
    read, parsed or written is named on stderr, and the others go on.

    Returns:
        The exit code: 2 where a file was bad, else 0.

    Raises:
        InputError: LibCST is not installed.
    """
    if importlib.util.find_spec("libcst") is None:
        raise InputError(
            "LibCST is not installed, which reads and writes source code; install it with "
            "pip install libcst."
        )
    changed, left, bad = 0, [], 0
    seen = set()
    for path, named in _files(paths):
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        try:
            before = _read(path)
            if not named and ADDONS not in before:
                continue
            rewritten = _rewrite(path, before)
            after = rewritten.source
            if after != before and write:
                _write(path, after)
                rewritten = _rewrite(path, after)  # with the lines of the new file
        except InputError as error:
            bad += 1
            print(f"truenorm migrate-code: {error}", file=sys.stderr)
            continue
        if after != before:
            changed += 1
            _print(f"rewritten: {path}\n" if write else _difference(path, before, after))
        left += [f"{path}:{use}\n" for use in rewritten.uses]
    _print("".join(left))
    files = f"{changed} file{'s' * (changed != 1)}"
    uses = f"{len(left)} use{'s' * (len(left) != 1)} left to you"
    _print(f"{files} {'rewritten' if write else 'to rewrite (--write does it)'}, {uses}.\n")
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
                if name.endswith(SUFFIXES):
                    yield pathlib.Path(where) / name, False


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{str(path)!r} does not exist.") from None
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}.") from None


def _rewrite(path: pathlib.Path, source: bytes) -> "Rewritten":
    from truenorm.migrate_code import notebook, rewrite

    try:
        if path.suffix == ".ipynb":
            return notebook.rewrite(source)
        return rewrite.rewrite(source)
    except notebook.NotebookError as error:
        raise InputError(f"{str(path)!r} was left as it is: {error}.") from None
    except Exception as error:  # LibCST raises its own, and others on odd files
        reason = rewrite.complaint(error)
        raise InputError(f"{str(path)!r} was left as it is: {reason}.") from None


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
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}.") from None
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
