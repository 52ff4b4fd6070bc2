"""The output folder: one process at a time, files that are whole or absent, runs picked up again.

settings.json   what the folder is for: settings, data and versions
lock            held by the process that works in the folder
runs/           one file per finished run
plots/          the figures
results.json, report.html
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any

from truenorm.core.errors import InputError
from truenorm.tools.compare.runs import Record, Run
from truenorm.tools.writing import checked_path, write

SCHEMA_VERSION = 1


class Folder:
    """An output folder that this process holds; make one with `hold`."""

    def __init__(self, path: pathlib.Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.identity = identity
        self.fingerprint = _sha256(identity)
        (path / "runs").mkdir(exist_ok=True)
        for leftover in [*path.glob("*.partial"), *path.glob("*/*.partial")]:
            leftover.unlink()

    def run_path(self, run: Run) -> pathlib.Path:
        """The file of a finished run."""
        return self.path / "runs" / f"{run.name}.json"

    def save_run(self, run: Run, record: Record) -> None:
        """Write a finished run; after this it survives a kill and a power cut."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "settings_sha256": self.fingerprint,
            **_plain(record),
        }
        self.write_json(f"runs/{run.name}.json", {**content, "sha256": _sha256(content)})

    def load_run(self, run: Run) -> Record | None:
        """Read a finished run, or None where there is none.

        Raises:
            ValueError: the file is damaged or of another comparison; the message says what is
                wrong with it.
        """
        try:
            content = json.loads(self.run_path(run).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"it cannot be read: {error.strerror}") from None
        except ValueError:
            raise ValueError("it is not a whole JSON file") from None
        if not isinstance(content, dict) or content.pop("sha256", None) != _sha256(content):
            raise ValueError("its contents do not match its checksum")
        if content.pop("settings_sha256") != self.fingerprint:
            raise ValueError("it belongs to a comparison of other settings")
        content.pop("schema_version")
        record: Record = _numbers(content)
        if (record["norm"], record["batch_size"], record["seed"]) != (
            run.norm.label, run.batch_size, run.seed,
        ):  # fmt: skip
            raise ValueError("it is the file of another run")
        return record

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file; numbers that are not finite become "nan", "inf" and "-inf"."""
        self.write(name, _json(content))

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file of the folder.

        Raises:
            InputError: the disk is full, or the folder was removed or write-protected.
        """
        path = self.path / name
        fix = "Free the disk or the folder and give the same command again; finished runs are kept."
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}. {fix}") from None
        write(path, content, fix)


@contextlib.contextmanager
def hold(out: str | os.PathLike[str], identity: dict[str, Any]) -> Iterator[Folder]:
    """Open an output folder for this process alone, and for this comparison alone.

    `identity` is what must be the same for runs to belong together: {"settings": {...},
    "data": ..., "versions": {...}}, JSON values.

    Raises:
        InputError: the folder cannot be written, is used by another process, holds something
            else or a comparison of other settings.
    """
    path = checked_path(out)
    if path.exists() and not path.is_dir():
        raise InputError(f"--out {path} is a file; name a folder, a new or an empty one.")
    foreign = path.is_dir() and not (path / "settings.json").exists()
    if foreign and (others := [f.name for f in path.iterdir() if not _own_leftover(f)]):
        raise InputError(
            f"--out {path} holds {sorted(others)[0]} and no comparison; nothing is overwritten: "
            "name a new or an empty folder."
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / "lock", "a+")  # noqa: SIM115 - closed below, and it is the lock
    except OSError as error:
        raise InputError(
            f"cannot write to --out {path}: {error.strerror}; name a folder you can write to."
        ) from None
    with lock:
        if not _lock(lock):
            raise InputError(
                f"another truenorm compare works in {path}; wait for it to end, or name another "
                "folder with --out."
            )
        _check_identity(path, identity)
        folder = Folder(path, identity)
        folder.write_json("settings.json", {"schema_version": SCHEMA_VERSION, **identity})
        yield folder


def _check_identity(path: pathlib.Path, identity: dict[str, Any]) -> None:
    """Refuse a folder whose runs were made under other settings, data or versions."""
    file = path / "settings.json"
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(there, dict):
            raise ValueError
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        raise InputError(
            f"{file} cannot be read, so it is unknown what the runs in {path} are; name another "
            "folder with --out, or delete this one."
        ) from None
    now = {"schema_version": SCHEMA_VERSION, **identity}
    differences = []
    for part in now:
        old, new = there.get(part), now[part]
        if isinstance(old, dict) and isinstance(new, dict):
            differences += [
                f"{key} ({_short(old.get(key))} there, {_short(new.get(key))} now)"
                for key in sorted({*old, *new})
                if old.get(key) != new.get(key)
            ]
        elif old != new:
            differences.append(f"{part} ({_short(old)} there, {_short(new)} now)")
    if differences:
        raise InputError(
            f"{path} holds a comparison that differs in {'; '.join(differences)}. Runs of "
            "different settings are not mixed: name another folder with --out, or give the "
            "settings of that one."
        )


def _own_leftover(file: pathlib.Path) -> bool:
    """Files of a comparison that was killed before it wrote its settings."""
    return file.name == "lock" or file.suffix == ".partial" or (
        file.name == "runs" and file.is_dir() and not any(file.iterdir())
    )  # fmt: skip


def _lock(file: IO[str]) -> bool:
    """Take the operating system's lock; it is released when the process ends, however it ends."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _numbers(value: Any) -> Any:
    """The opposite of `_plain`."""
    if value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    return [_numbers(item) for item in value] if isinstance(value, list) else value


def _json(content: object) -> str:
    return json.dumps(_plain(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
