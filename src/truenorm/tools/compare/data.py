"""The images: scikit-learn's digits, Keras' MNIST and Fashion-MNIST, or the user's npz file."""

import dataclasses
import hashlib
import math
import os
import zipfile
from typing import Any

import keras
import numpy as np

from truenorm.core.errors import InputError, brief
from truenorm.tools.compare.settings import Settings, nearest
from truenorm.tools.migrate.files import BROKEN_ZIP, EXPANSION, SLACK
from truenorm.tools.writing import checked_path

KEYS = ("x_train", "y_train", "x_test", "y_test")
NAMES = ("digits", "mnist", "fashion_mnist")
CLASSES = 10  # the models end in Dense(10)
HEADERS: dict[Any, Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
SMALLEST_SIDE = 3  # the tutorial's 3 x 3 convolution

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Data:
    """Images float32 of shape (N, H, W) and labels int32 of shape (N,), 0 to 9.

    Attributes:
        x_train, y_train: what the models train on, after `train_size` and `train_on`.
        x_test, y_test: what they are judged on.
        digest: SHA-256 of all four arrays as they were loaded.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    digest: str

    @property
    def image_shape(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.x_train.shape[1:]
        return height, width


def load(settings: Settings) -> Data:
    """Load and check the data, and select the training images.

    Of `train_size` images, the first after a fixed shuffle are taken, the same in every run.

    Raises:
        InputError: data that cannot be read or used, or fewer images than a batch takes.
    """
    arrays = _named(settings.data) if settings.data in NAMES else _file(settings.data)
    checked: Arrays = {}
    for part in ("train", "test"):
        x, y = f"x_{part}", f"y_{part}"
        checked[x] = _images(arrays[x], x)
        checked[y] = _labels(arrays[y], y, len(arrays[x]))
    if checked["x_train"].shape[1:] != checked["x_test"].shape[1:]:
        raise InputError(
            f"x_train has images of {_size(checked['x_train'])} and x_test of "
            f"{_size(checked['x_test'])}; they must be of one size."
        )
    train, test = ("train", "test") if settings.train_on == "train" else ("test", "train")
    chosen: slice | np.ndarray = slice(None)
    available = len(checked[f"x_{train}"])
    if settings.train_size is not None:
        if settings.train_size > available:
            raise InputError(
                f"train_size={settings.train_size} is more than the {available} images of "
                f"x_{train}; give {available} at most."
            )
        chosen = np.random.default_rng(0).permutation(available)[: settings.train_size]
    used = settings.train_size or available
    if max(settings.batch_sizes) > used:
        raise InputError(
            f"the batch size {max(settings.batch_sizes)} is more than the {used} training images; "
            "give smaller batch_sizes."
        )
    return Data(
        checked[f"x_{train}"][chosen],
        checked[f"y_{train}"][chosen],
        checked[f"x_{test}"],
        checked[f"y_{test}"],
        _digest(arrays),
    )


def _named(name: str) -> Arrays:
    if name == "digits":
        return _digits()
    try:
        (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras wraps what went wrong in a bare Exception
        raise InputError(
            f"{name} could not be downloaded ({error}). Connect to the network, or get the file "
            f"elsewhere and pass it: --data {name}.npz (with {', '.join(KEYS)})."
        ) from None
    return dict(zip(KEYS, (x_train, y_train, x_test, y_test), strict=True))


def _digits() -> Arrays:
    """1,797 scanned digits of 8 x 8 pixels, four of five of each class to train on."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise InputError(
            "the digits are part of scikit-learn, which is not installed; "
            "run pip install scikit-learn, or pass a file: --data FILE.npz."
        ) from None
    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        (digits.images / 16).astype("float32"),
        digits.target,
        test_size=0.2,
        random_state=0,
        stratify=digits.target,
    )
    return dict(zip(KEYS, (x_train, y_train, x_test, y_test), strict=True))


def _file(name: str) -> Arrays:
    path = checked_path(name)
    looks_like_a_name = path.suffix == "" and os.sep not in name
    if not path.exists() and looks_like_a_name:
        raise InputError(f"unknown data {name!r}{nearest(name, NAMES)[:-1]}, or a file FILE.npz.")
    if not path.exists():
        raise InputError(f"the data file {name} does not exist; check the path.")
    if path.is_dir():
        raise InputError(f"{name} is a folder; pass a file FILE.npz with {', '.join(KEYS)}.")
    how = f"save one with numpy.savez(file, {', '.join(f'{key}=...' for key in KEYS)})."
    try:
        if not zipfile.is_zipfile(path):  # what an npz file is
            raise zipfile.BadZipFile("it is no zip archive")
        # Never unpickle: a pickle in a data file can run anything.
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as file:
            missing = [key for key in KEYS if key not in file]
            if missing:
                found = ", ".join(file.files) or "nothing"
                found = found if len(found) <= 100 else f"{found[:97]}..."
                raise InputError(
                    f"{name} has no {', '.join(missing)}; it has {found}. To fix it, {how}"
                )
            most = SLACK + EXPANSION * path.stat().st_size
            for key in KEYS:
                if fault := _fault(archive, key, most):
                    raise InputError(f"{key} in {name} {fault}. To fix it, {how}")
            return {key: file[key] for key in KEYS}
    except InputError:
        raise
    except (*BROKEN_ZIP, MemoryError) as error:
        raise InputError(
            f"{name} is not a readable npz file ({type(error).__name__}: {str(error)[:200]}); it "
            f"may be cut short or of another format. To fix it, {how}"
        ) from None


def _fault(archive: zipfile.ZipFile, key: str, most: int) -> str | None:
    """What is wrong with an array of the archive, by its header and size; nothing is unpacked."""
    names = archive.namelist()
    info = archive.getinfo(f"{key}.npy" if f"{key}.npy" in names else key)
    if info.flag_bits & 1:
        return "is encrypted"
    with archive.open(info) as member:
        try:
            version = np.lib.format.read_magic(member)
            shape, _, dtype = HEADERS[version](member)
        except (ValueError, LookupError, SyntaxError, TypeError, EOFError):
            return "is no array of NumPy, or is cut short in its header"
        there = info.file_size - member.tell()
    if dtype.hasobject:
        return "is an array of Python objects, which is not opened because it could run code"
    size = math.prod(shape) * dtype.itemsize
    if there != size:
        return f"is said to have {size} bytes, shape {brief(shape)}, and has {there}"
    if size > most:
        return f"unfolds to {size} bytes, more than {EXPANSION} times the file"
    return None


def _images(array: np.ndarray, key: str) -> np.ndarray:
    """Check the images; uint8 is scaled to [0, 1], floats are taken as they are."""
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise InputError(
            f"{key} has shape {array.shape}; expected (N, H, W), grey images"
            f"{': average the colours, x.mean(axis=-1)' if array.ndim == 4 else ''}."
        )
    if len(array) == 0:
        raise InputError(f"{key} is empty, shape {array.shape}; at least one image is needed.")
    if min(array.shape[1:]) < SMALLEST_SIDE:
        raise InputError(
            f"{key} has images of {_size(array)}; at least {SMALLEST_SIDE} x {SMALLEST_SIDE} "
            "pixels are needed."
        )
    if array.dtype == np.uint8:
        return array.astype("float32") / np.float32(255)
    if array.dtype.kind != "f":
        raise InputError(
            f"{key} has dtype {array.dtype}; expected uint8 (0 to 255, scaled to 0 to 1) or a "
            "float type (taken as it is): convert it with x.astype('uint8') or "
            "x.astype('float32')."
        )
    with np.errstate(over="ignore"):
        images = array.astype("float32")
    if not np.isfinite(images).all():
        raise InputError(
            f"{key} has {np.count_nonzero(~np.isfinite(images))} pixels that are NaN, infinite or "
            "too large for float32; replace them, for example with numpy.nan_to_num."
        )
    return images


def _labels(array: np.ndarray, key: str, count: int) -> np.ndarray:
    if array.dtype.kind not in "iu":
        raise InputError(
            f"{key} has dtype {array.dtype}; expected integer labels: y.astype('int64')."
        )
    if array.shape != (count,):
        raise InputError(
            f"{key} has shape {array.shape}; expected ({count},), one label for each image."
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= CLASSES:
        raise InputError(
            f"{key} has labels from {low} to {high}; the models tell {CLASSES} classes apart, so "
            f"labels must be from 0 to {CLASSES - 1}: renumber or leave out the others."
        )
    return array.astype("int32")


def _size(images: np.ndarray) -> str:
    return " x ".join(map(str, images.shape[1:]))


def _digest(arrays: Arrays) -> str:
    """SHA-256 of names, types, shapes and contents: what was loaded, wherever it came from."""
    digest = hashlib.sha256()
    for key in KEYS:
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
