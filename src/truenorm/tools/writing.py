"""Files that are whole or absent, and names that cannot be one."""

import os
import pathlib
import tempfile
from collections.abc import Iterable

from truenorm.core.errors import InputError, brief


def checked_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path, whether there is something or not.

    Raises:
        InputError: the system takes no such name: it is too long, or has a NUL in it.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # what is done with the path next says it
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"{brief(os.fspath(path))} cannot be a name here ({reason}); choose another one."
        ) from None
    return pathlib.Path(path)


def check_folder(folder: pathlib.Path, files: Iterable[pathlib.Path], force: bool = False) -> None:
    """Raise InputError unless the folder can have these files, without loss or with `force`."""
    checked_path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file; name a folder for the results.")
    for file in files:
        if file.exists() and not force:
            raise InputError(
                f"{str(file)!r} exists; name another folder, or overwrite it with --force."
            )


def write(path: pathlib.Path, content: str | bytes, fix: str = "Name another one.") -> None:
    """Write a file under another name, flush it to the disk, and rename it.

    Whatever happens, a kill excepted, no part of it is left behind.

    Raises:
        InputError: it cannot be written; ends in the sentence `fix`.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=".truenorm", suffix=".partial", delete=False
        ) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # temporary files are private
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}. {fix}") from None
    finally:
        if temporary is not None:
            os.unlink(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
