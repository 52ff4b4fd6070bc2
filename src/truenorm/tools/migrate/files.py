"""What kind of file it is, and what is in it: a config, compile settings, weights."""

import dataclasses
import json
import os
import pathlib
import zipfile
import zlib
from typing import Any

from truenorm.core.errors import InputError
from truenorm.tools.migrate import checkpoint
from truenorm.tools.migrate.hdf5 import SIGNATURE, Tree, read_tree
from truenorm.tools.writing import checked_path

SLACK, EXPANSION = 64 << 20, 100  # bytes that a .keras file may unfold to, and times its size
BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
    OverflowError,
    KeyError,
)
Json = dict[str, Any]


@dataclasses.dataclass
class Saved:
    """What a file holds.

    Attributes:
        path: where it is.
        kind: "h5", "keras", "saved_model", or for weights alone "weights.h5" (the legacy
            layout), ".weights.h5" or "checkpoint".
        config: the model's config as Keras 2 wrote it; None for weights alone.
        training: the compile settings as Keras 2 wrote them, if there are any.
        weights: the arrays, in the layout of the kind.
        version: of the Keras that wrote it, "" where the file does not say.
    """

    path: str
    kind: str
    config: Json | None
    training: Json | None
    weights: Tree | checkpoint.Checkpoint
    version: str = ""


def read(path: str | os.PathLike[str]) -> Saved:
    """Open a file or folder of Keras 2, whatever its name ends in.

    Raises:
        InputError: it is missing, of another kind, broken, or made to do harm.
    """
    path = os.fspath(path)
    file = checked_path(path)
    if file.is_dir():
        if (file / "saved_model.pb").exists():
            return read_saved_model(file)
        if (file / "checkpoint").exists():
            return read_checkpoint(checkpoint.latest(file))
        raise InputError(
            f"{path} is a folder without saved_model.pb or checkpoint; expected a SavedModel of "
            "Keras 2 or a TensorFlow checkpoint."
        )
    if not file.is_file():
        if pathlib.Path(f"{path}.index").is_file():
            return read_checkpoint(file)
        raise InputError(f"{path} does not exist.")
    if path.endswith(".index"):
        return read_checkpoint(file.with_suffix(""))
    data = file.read_bytes()
    if data.startswith(b"PK"):
        return read_keras(path, data)
    if data.startswith(SIGNATURE) or path.endswith((".h5", ".hdf5")):
        return read_h5(path, data)
    if path.endswith(".keras"):
        raise InputError(
            f"{path} is empty."
            if not data
            else f"{path} is not a zip archive, as .keras files are."
        )
    raise InputError(
        f"{path} is none of the files that Keras 2 saved; expected an .h5 file, a .keras file, a "
        "SavedModel folder or a TensorFlow checkpoint."
    )


def read_h5(path: str, data: bytes) -> Saved:
    """A whole model, or weights in the legacy or the newer layout."""
    tree = read_tree(data, path)
    root = tree.groups[""]
    version = str(root.get("keras_version", ""))
    if "model_config" in root:
        config = parse(root["model_config"], f"the model_config of {path}")
        training = root.get("training_config")
        if training is not None:
            training = parse(training, f"the training_config of {path}")
        return Saved(path, "h5", config, training, tree, version)
    if "layer_names" in root or "layer_names0" in root:
        return Saved(path, "weights.h5", None, None, tree, version)
    return Saved(path, ".weights.h5", None, None, tree, version)


def read_keras(path: str, data: bytes) -> Saved:
    """A zip archive of config.json, metadata.json and model.weights.h5."""
    import io

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            check_archive(path, archive, len(data))
            names = archive.namelist()
            for name in ("config.json", "model.weights.h5"):
                if name not in names:
                    raise InputError(f"{path} has no {name} in it, as .keras files have.")
            config = parse(archive.read("config.json"), f"config.json in {path}")
            metadata = {}
            if "metadata.json" in names:
                metadata = parse(archive.read("metadata.json"), f"metadata.json in {path}")
            weights = archive.read("model.weights.h5")
    except InputError:
        raise
    except BROKEN_ZIP as error:
        raise InputError(f"{path} is a broken zip archive: {error}.") from None
    tree = read_tree(weights, f"model.weights.h5 in {path}")
    training = config.get("compile_config")
    if not isinstance(training, dict):
        training = None
    return Saved(path, "keras", config, training, tree, str(metadata.get("keras_version", "")))


def check_archive(path: str, archive: zipfile.ZipFile, size: int) -> None:
    """Refuse members that lead out of a folder, and more than so small an archive can hold."""
    for member in archive.infolist():
        parts = member.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0]:
            raise InputError(
                f"{path} has a member {member.filename!r}, which leads out of its folder."
            )
    unfolded = sum(member.file_size for member in archive.infolist())
    if unfolded > SLACK + EXPANSION * size:
        raise InputError(
            f"{path} unfolds from {size} to {unfolded} bytes, far more than a model does: it may "
            "be a decompression bomb."
        )


def read_saved_model(folder: pathlib.Path) -> Saved:
    """A folder with keras_metadata.pb, which has the config, and a checkpoint of the variables."""
    metadata = folder / "keras_metadata.pb"
    if not metadata.is_file():
        raise InputError(
            f"{folder} has no keras_metadata.pb: a SavedModel without a Keras model's config "
            "cannot become a Keras model; keras.layers.TFSMLayer runs it for inference on "
            "TensorFlow."
        )
    text = checkpoint.model_metadata(metadata)
    config = parse(text, f"the model's metadata in {metadata}")
    training = config.get("training_config")
    if not isinstance(training, dict):
        training = None
    weights = checkpoint.read(folder / "variables" / "variables")
    if "config" not in config:
        raise InputError(
            f"The model in {folder} has no config: a subclass of keras.Model cannot be made again "
            "from its file; make it in Python and call truenorm.load_weights(model, path)."
        )
    return Saved(str(folder), "saved_model", config, training, weights, "2")


def read_checkpoint(prefix: pathlib.Path) -> Saved:
    """What `model.save_weights(prefix)` of Keras 2 wrote."""
    return Saved(str(prefix), "checkpoint", None, None, checkpoint.read(prefix))


def parse(text: Any, name: str) -> Json:
    """JSON text to a dictionary."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{name} is not a JSON object.")
    return value
