"""Open what Keras 2 and TensorFlow Addons saved.

`load_model` reads a whole model, `load_weights` weights alone, and `migrate` makes a new file and
compares it with the old one. Of the files here `files`, `hdf5` and `checkpoint` read, `configs` and
`addons` rewrite the config, `weights` and `training` fill the model, `migration` writes it and
`verify` compares.
"""

import copy
import math
import os
import warnings
from collections.abc import Mapping
from typing import Any

import keras

# See check_memory.
from keras.src.backend.common.global_state import get_global_attribute, set_global_attribute

from truenorm.core.errors import InputError, brief, summary
from truenorm.tools.migrate import addons, files, weights
from truenorm.tools.migrate.configs import Conversion, Row
from truenorm.tools.migrate.migration import migrate
from truenorm.tools.migrate.training import Compiling

__all__ = ["load_model", "load_weights", "migrate"]

# What Python says of a config that has another kind of value somewhere, or is nested too deeply.
MALFORMED = (TypeError, ValueError, LookupError, AttributeError, RecursionError, OverflowError)

addons.register()


def load_model(
    path: str | os.PathLike[str],
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    safe_mode: bool = True,
) -> Any:
    """Load a model that Keras 2, with or without TensorFlow Addons, saved.

    The result is an ordinary Keras 3 model of truenorm's and Keras' layers. Layers of Addons get
    use_mask=False, since their statistics ignored masks. A file of Keras 3 is opened as
    `keras.models.load_model` does.

    Args:
        path: an .h5 or .keras file, or a SavedModel folder. None of them needs TensorFlow.
        custom_objects: {name in the file: Keras 3 class or function} for what is neither in Keras
            3 nor in truenorm.
        compile: compile the model as it was, with the state of its optimizer. What Keras 3 does
            not have is left out with a warning.
        safe_mode: refuse files with Python code in them (Lambda layers). False runs that code.

    Raises:
        InputError: the file is missing, broken, or not a model; it has layers that cannot be
            mapped, all of which the message names; it has code, in safe mode.
    """
    model, _, dropped = load(path, custom_objects, compile, safe_mode)
    for sentence in dropped:
        warnings.warn(sentence, stacklevel=2)
    return model


def load_weights(model: Any, path: str | os.PathLike[str]) -> None:
    """Load the weights that Keras 2 saved into a model of Keras 3.

    The model is one that you made, of the same layers: by their names in .h5 files where these
    fit, else by their order. All weights must fit; if one does not, none is changed.

    Args:
        model: the model, built.
        path: weights alone (.h5 of `save_weights`, .weights.h5, the prefix or folder of a
            TensorFlow checkpoint), or any file that `load_model` reads. None needs TensorFlow.

    Raises:
        InputError: the file is missing or broken, or its weights do not fit; the message names
            which.
    """
    weights.check_built(model)
    weights.assign(model, files.read(path))


def load(
    path: str | os.PathLike[str],
    custom_objects: Mapping[str, Any] | None,
    compile: bool,
    safe_mode: bool,
) -> tuple[Any, list[Row], list[str]]:
    """The model, what became of each layer, and a sentence on each thing that was dropped."""
    saved = files.read(path)
    if saved.version.startswith("3"):
        return files_of_keras_3(saved, custom_objects, compile, safe_mode), [], []
    if saved.config is None:
        raise InputError(
            f"{saved.path} holds weights and no model: make the model in Python, and call "
            "truenorm.load_weights(model, path)."
        )
    conversion = Conversion(custom_objects, safe_mode)
    try:
        config = conversion.model(saved.config)
    except InputError:
        raise
    except MALFORMED as error:
        raise InputError(
            f"The config in {saved.path} is not as Keras 2 writes one: {summary(error)}"
        ) from error
    check_sizes(conversion, saved)
    compiling = Compiling(custom_objects)
    with keras.saving.custom_object_scope(dict(custom_objects or {})):
        model = build(config, saved, safe_mode)
        weights.assign(model, saved)
        if compile:
            compiling.compile(model, saved)
    return model, conversion.rows, compiling.dropped


def check_sizes(conversion: Conversion, saved: files.Saved) -> None:
    """Refuse layers larger than any array in the file, before Keras makes room for them.

    Raises:
        InputError: a layer is.
    """
    longest = max((max(one.shape, default=0) for one in saved.weights.arrays.values()), default=0)
    for path, size in conversion.sizes:
        if size > longest:
            raise InputError(
                f"The config in {saved.path} says {path}={size}, but no array in the file is that "
                f"long (the longest has {longest}): it is broken, or made to fill the memory."
            )


def build(config: dict[str, Any], saved: files.Saved, safe_mode: bool) -> Any:
    """Make the model of a converted config."""
    check_memory(config, saved, safe_mode)
    try:
        return keras.saving.deserialize_keras_object(config, safe_mode=safe_mode)
    except Exception as error:  # whatever a layer says of arguments that do not fit it
        raise InputError(
            f"Keras 3 cannot make the model in {saved.path}: {summary(error)}"
        ) from error


def check_memory(config: Any, saved: files.Saved, safe_mode: bool) -> None:
    """Refuse a model whose weights are far more than the file holds, before there are any.

    The model is made inside a scope in which variables have a shape and no memory, and let go.

    Raises:
        InputError: it is.
    """
    name = "uninitialized_variables"  # Keras' list of them, of which the next scope makes tensors
    others = get_global_attribute(name, [])
    set_global_attribute(name, [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            # Of a copy: Keras changes what it is given.
            keras.saving.deserialize_keras_object(copy.deepcopy(config), safe_mode=safe_mode)
    except Exception:  # the model is made once more, and what is wrong with it said there
        pass
    finally:
        found = get_global_attribute(name, [])
        set_global_attribute(name, others)
    needed = sum(math.prod(one.shape) for one in found)
    there = sum(math.prod(one.shape) for one in saved.weights.arrays.values())
    if needed > 2 * there + files.SLACK // 4:
        raise InputError(
            f"The config in {saved.path} asks for {brief(needed)} numbers, and the file holds "
            f"{there}: it is broken, or made to fill the memory."
        )


def files_of_keras_3(
    saved: files.Saved, custom_objects: Mapping[str, Any] | None, compile: bool, safe_mode: bool
) -> Any:
    """A file that needs no migration.

    Raises:
        InputError: Keras cannot open it; the cause is Keras' own error.
    """
    custom = dict(custom_objects or {})
    with keras.saving.custom_object_scope(custom):
        check_memory(saved.config, saved, safe_mode)
    try:
        return keras.models.load_model(
            saved.path, custom_objects=custom, compile=compile, safe_mode=safe_mode
        )
    except Exception as error:
        raise InputError(f"Keras 3 cannot open {saved.path}: {summary(error)}") from error
