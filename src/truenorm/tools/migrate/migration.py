"""`truenorm migrate`: a new file from an old one, compared with it."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import keras

from truenorm.core.errors import InputError
from truenorm.tools.migrate import verify
from truenorm.tools.migrate.configs import Row
from truenorm.tools.writing import checked_path

TOLERANCE = 1e-5  # of |old - new| / max(1, |old|): what rounding explains in a model


@dataclasses.dataclass
class Migration:
    """What was done, as `str` prints it.

    Attributes:
        old, new: the paths.
        layers: what became of each layer.
        dropped: a sentence on each thing that Keras 3 does not have.
        verdict: what the comparison showed, or why there was none.
        difference: the largest |old - new| / max(1, |old|) on a random batch, if old could run.
    """

    old: str
    new: str
    layers: list[Row]
    dropped: list[str]
    verdict: str
    difference: float | None

    def __str__(self) -> str:
        head = Row("layer", "in the old file", "in the new file", "")
        columns = [(one.path, one.old, one.new, one.note) for one in (head, *self.layers)]
        widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in columns]
        lines.insert(1, "  ".join("-" * width for width in widths if width))
        return "\n".join([*lines, "", *self.dropped, self.verdict, f"The model is in {self.new}"])


def check_output(new: str, force: bool) -> pathlib.Path:
    """Where to write; refused before the work if it cannot be.

    Raises:
        InputError: the name, the folder or an existing file is in the way.
    """
    path = checked_path(new)
    if path.suffix != ".keras":
        raise InputError(f"{new} does not end in .keras, the format that Keras 3 writes.")
    if not path.parent.is_dir():
        raise InputError(f"The folder {path.parent} does not exist; make it first.")
    if path.is_dir():
        raise InputError(f"{new} is a folder.")
    if path.exists() and not force:
        raise InputError(f"{new} exists; pass --force (force=True) to overwrite it.")
    return path


def migrate(
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    custom_objects: Mapping[str, Any] | None = None,
    force: bool = False,
    safe_mode: bool = True,
) -> Migration:
    """Write the model that Keras 2 saved at `old` to `new`, as a .keras file of Keras 3.

    The new file is opened again and compared on a random batch with the model in memory, and with
    the old one where that can run: a SavedModel, where TensorFlow is installed. It is written
    under another name and renamed, so that there is a whole file or none.

    Args:
        old: an .h5 or .keras file, or a SavedModel folder.
        new: the file to write; its name ends in .keras.
        custom_objects: as in `truenorm.load_model`; also needed where the new file is opened.
        force: overwrite `new`.
        safe_mode: as in `truenorm.load_model`. A SavedModel is a program; in safe mode it is run
            only if it does nothing but compute.

    Raises:
        InputError: as in `truenorm.load_model`; `new` exists; or the new file does not compute what
            the model in memory does.
    """
    from truenorm.tools.migrate import load

    path = check_output(os.fspath(new), force)
    model, rows, dropped = load(old, custom_objects, True, safe_mode)
    temporary = path.with_name(f".truenorm.{os.getpid()}.keras")
    try:
        again = saved_again(model, temporary, custom_objects, safe_mode)
        verdict, found = compare(os.fspath(old), model, again, safe_mode)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}. Name another file.") from None
    finally:
        temporary.unlink(missing_ok=True)
    return Migration(os.fspath(old), os.fspath(new), rows, dropped, verdict, found)


def saved_again(
    model: Any, path: pathlib.Path, custom_objects: Mapping[str, Any] | None, safe_mode: bool
) -> Any:
    """Save the model, and open the file as its user will."""
    custom = dict(custom_objects or {})
    try:
        model.save(path)
        return keras.models.load_model(path, custom_objects=custom, safe_mode=safe_mode)
    except Exception as error:  # of a layer that cannot be written or made again, or a full disk
        raise InputError(
            f"The model cannot be saved and opened by Keras 3: {type(error).__name__}: {error}"
        ) from error


def compare(old: str, model: Any, again: Any, safe_mode: bool) -> tuple[str, float | None]:
    """A sentence on what a random batch shows, and the difference of old and new."""
    try:
        batch = verify.random_batch(model)
        outputs = verify.predict(model, batch)
    except Exception as error:  # a layer that does not take random numbers
        return f"Not compared: the model does not run on random numbers ({str(error)[:200]}).", None
    apart = verify.difference(outputs, verify.predict(again, batch))
    if not apart <= TOLERANCE:
        raise InputError(
            f"The new file computes something else than the model: they differ by {apart:.1e}."
        )
    reopened = f"The new file, opened again, gives the same on a random batch (within {apart:.1e})."
    if not os.path.isdir(old):
        return f"{reopened} The old file cannot run here: only a SavedModel holds a program.", None
    try:
        theirs = verify.run_saved_model(old, model, batch, safe_mode)
        found = verify.difference(theirs, outputs)
    except InputError as error:
        return f"{reopened} The old model was not run: {error}.", None
    sentence = f"Old and new differ by at most {found:.1e} * max(1, |y|) on the same random batch"
    if found > TOLERANCE:
        sentence += (
            f", more than rounding explains ({TOLERANCE:.0e}). TensorFlow Addons was wrong for "
            "some negative axes, and computes float16 differently; otherwise please report it"
        )
    return f"{reopened} {sentence}.", found
