"""The names of TensorFlow Addons 0.23: what truenorm covers, and what Keras 3 has for the rest."""

import dataclasses

# Each class is found as truenorm.layers.X or truenorm.rnn.X, with the same arguments. These are the
# classes of truenorm.tools.migrate.addons, which imports Keras; a test holds the two together.
COVERED = {
    "layers": {
        "FilterResponseNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "PoincareNormalize",
        "SpectralNormalization",
        "TLU",
        "WeightNormalization",
    },
    "rnn": {"LayerNormLSTMCell", "LayerNormSimpleRNNCell"},
}
# The modules of TensorFlow Addons that define them: some code imports from there.
MODULES = {
    "layers": {"normalizations", "poincare", "spectral_normalization", "tlu", "wrappers"},
    "rnn": {"layer_norm_lstm_cell", "layer_norm_simple_rnn_cell"},
}


@dataclasses.dataclass(frozen=True)
class Replacement:
    """What takes the place of a name that truenorm does not cover.

    Attributes:
        name: a full name of Keras 3.15, or None where Keras has nothing of the kind.
        note: how it differs, or what to write instead; may be empty.
    """

    name: str | None
    note: str = ""

    def __str__(self) -> str:
        if self.name is None:
            return self.note
        return f"use {self.name}" + (f" ({self.note})" if self.note else "")


_EMA = "Keras averages weights in any optimizer: use_ema=True, ema_momentum=..."
_DECAY = "pass weight_decay by name; Keras multiplies it by the learning rate, Addons did not"
_PYRAMID = "one for each of the bins, flattened and concatenated"
_COORDINATES = "takes coordinates, channel by channel"
_MATRIX = "takes the same 8 numbers for each image"

# By the path below tensorflow_addons. Names that are missing have no replacement in Keras.
REPLACEMENTS = {
    "__version__": Replacement(None, "truenorm.__version__ is truenorm's own version"),
    "register_all": Replacement(None, "not needed: importing truenorm registers its classes"),
    "activations.gelu": Replacement("keras.activations.gelu", "pass approximate=True for the same"),
    "activations.hardshrink": Replacement(
        "keras.activations.hard_shrink", "one threshold instead of lower and upper"
    ),
    "activations.lisht": Replacement(None, "write x * keras.ops.tanh(x)"),
    "activations.mish": Replacement("keras.activations.mish"),
    "activations.snake": Replacement(None, "write x + keras.ops.sin(f * x) ** 2 / f"),
    "activations.softshrink": Replacement(
        "keras.activations.soft_shrink", "one threshold instead of lower and upper"
    ),
    "activations.sparsemax": Replacement("keras.activations.sparsemax"),
    "activations.tanhshrink": Replacement("keras.activations.tanh_shrink"),
    "callbacks.AverageModelCheckpoint": Replacement(
        "keras.callbacks.SwapEMAWeights", "with use_ema=True in the optimizer"
    ),
    "callbacks.TQDMProgressBar": Replacement(
        None, "Keras has none of tqdm; tqdm itself has tqdm.keras.TqdmCallback"
    ),
    "image.angles_to_projective_transforms": Replacement(
        None, "write the 8 numbers for keras.ops.image.affine_transform"
    ),
    "image.blend": Replacement(None, "write image1 + factor * (image2 - image1)"),
    "image.dense_image_warp": Replacement("keras.ops.image.map_coordinates", _COORDINATES),
    "image.equalize": Replacement("keras.layers.Equalization", "rounds otherwise"),
    "image.gaussian_filter2d": Replacement(
        "keras.ops.image.gaussian_blur",
        'pass data_format="channels_last"; the border is padded with zeros',
    ),
    "image.interpolate_bilinear": Replacement("keras.ops.image.map_coordinates", _COORDINATES),
    "image.mean_filter2d": Replacement(
        "keras.ops.average_pool", 'strides=1, padding="same"; pad first for another border'
    ),
    "image.random_cutout": Replacement("keras.layers.RandomErasing", "sizes as fractions"),
    "image.random_hsv_in_yiq": Replacement(
        "keras.layers.RandomColorJitter", "hue and saturation in HSV, not in YIQ"
    ),
    "image.resampler": Replacement("keras.ops.image.map_coordinates", _COORDINATES),
    "image.rotate": Replacement(
        "keras.ops.image.affine_transform", "or keras.layers.RandomRotation, to augment data"
    ),
    "image.sharpness": Replacement(
        "keras.layers.RandomSharpness", "a factor drawn at random, on another scale"
    ),
    "image.shear_x": Replacement(
        "keras.ops.image.affine_transform", "or keras.layers.RandomShear, to augment data"
    ),
    "image.shear_y": Replacement(
        "keras.ops.image.affine_transform", "or keras.layers.RandomShear, to augment data"
    ),
    "image.transform": Replacement("keras.ops.image.affine_transform", _MATRIX),
    "image.translate": Replacement(
        "keras.ops.image.affine_transform", "or keras.layers.RandomTranslation, to augment data"
    ),
    "image.translate_xy": Replacement("keras.ops.image.affine_transform"),
    "layers.AdaptiveAveragePooling1D": Replacement("keras.layers.AdaptiveAveragePooling1D"),
    "layers.AdaptiveAveragePooling2D": Replacement("keras.layers.AdaptiveAveragePooling2D"),
    "layers.AdaptiveAveragePooling3D": Replacement("keras.layers.AdaptiveAveragePooling3D"),
    "layers.AdaptiveMaxPooling1D": Replacement("keras.layers.AdaptiveMaxPooling1D"),
    "layers.AdaptiveMaxPooling2D": Replacement("keras.layers.AdaptiveMaxPooling2D"),
    "layers.AdaptiveMaxPooling3D": Replacement("keras.layers.AdaptiveMaxPooling3D"),
    "layers.EmbeddingBag": Replacement(
        "keras.layers.Embedding", "then keras.ops.sum, mean or max over the indices"
    ),
    "layers.GELU": Replacement(
        "keras.activations.gelu", "pass approximate=True for the same; inside a layer, Activation"
    ),
    "layers.Maxout": Replacement(None, "reshape the channels and take keras.ops.max over a part"),
    "layers.MultiHeadAttention": Replacement(
        "keras.layers.MultiHeadAttention", "head_size is key_dim; call and weights differ"
    ),
    "layers.Sparsemax": Replacement(
        "keras.activations.sparsemax", 'or keras.layers.Activation("sparsemax")'
    ),
    "layers.SpatialPyramidPooling2D": Replacement(
        "keras.layers.AdaptiveAveragePooling2D", _PYRAMID
    ),
    "layers.StochasticDepth": Replacement(
        "keras.layers.Dropout",
        "on the residual branch, noise_shape=(None, 1, 1, 1): drops it for each sample by "
        "itself, and scales in training, not in inference",
    ),
    "losses.SigmoidFocalCrossEntropy": Replacement(
        "keras.losses.BinaryFocalCrossentropy",
        "apply_class_balancing=True; Keras averages over the classes and the batch, Addons "
        "summed over the classes and did not reduce",
    ),
    "losses.sigmoid_focal_crossentropy": Replacement(
        "keras.losses.binary_focal_crossentropy",
        "apply_class_balancing=True; Keras averages over the classes, Addons summed",
    ),
    "metrics.F1Score": Replacement("keras.metrics.F1Score", "without num_classes"),
    "metrics.FBetaScore": Replacement("keras.metrics.FBetaScore", "without num_classes"),
    "metrics.MeanMetricWrapper": Replacement("keras.metrics.MeanMetricWrapper"),
    "metrics.PearsonsCorrelation": Replacement(
        "keras.metrics.PearsonCorrelation", "not binned; over one axis, averaged over batches"
    ),
    "metrics.RSquare": Replacement(
        "keras.metrics.R2Score", "multioutput is class_aggregation, raw_values is None"
    ),
    "optimizers.AdamW": Replacement("keras.optimizers.AdamW", _DECAY),
    "optimizers.AveragedOptimizerWrapper": Replacement(None, _EMA),
    "optimizers.DecoupledWeightDecayExtension": Replacement(
        None, "Keras' optimizers take weight_decay=..., which is multiplied by the learning rate"
    ),
    "optimizers.LAMB": Replacement("keras.optimizers.Lamb", "epsilon is 1e-7 by default, not 1e-6"),
    "optimizers.LazyAdam": Replacement(
        "keras.optimizers.Adam", "moments decay for rows without a gradient too"
    ),
    "optimizers.MovingAverage": Replacement(None, _EMA),
    "optimizers.MultiOptimizer": Replacement(
        "keras.optimizers.MultiOptimizer", "other arguments: see its documentation"
    ),
    "optimizers.SGDW": Replacement("keras.optimizers.SGD", _DECAY),
    "optimizers.SWA": Replacement(None, f"not an equal average, but near it: {_EMA}"),
    "optimizers.extend_with_decoupled_weight_decay": Replacement(
        None, "Keras' optimizers take weight_decay=..., which is multiplied by the learning rate"
    ),
    "seq2seq.BahdanauAttention": Replacement(
        "keras.layers.AdditiveAttention", "a layer of query and value, without a memory"
    ),
    "seq2seq.LuongAttention": Replacement(
        "keras.layers.Attention", "a layer of query and value, without a memory"
    ),
    "seq2seq.SequenceLoss": Replacement(
        "keras.losses.SparseCategoricalCrossentropy", "with sample weights over time"
    ),
    "seq2seq.sequence_loss": Replacement(
        "keras.losses.sparse_categorical_crossentropy", "one number for each step; average them"
    ),
    "seq2seq.tile_batch": Replacement("keras.ops.repeat", "repeats, axis=0"),
}

NOTHING = Replacement(None, "Keras 3 has nothing in its place")


def covered_name(path: tuple[str, ...]) -> int | None:
    """Where in a path below tensorflow_addons the name of a covered class is, or None.

    1 in ("layers", "TLU", "from_config"), 2 in ("layers", "tlu", "TLU").
    """
    part = path[0] if path else None
    if part not in COVERED:
        return None
    if len(path) > 1 and path[1] in COVERED[part]:
        return 1
    if len(path) > 2 and path[1] in MODULES[part] and path[2] in COVERED[part]:
        return 2
    return None


def is_module(path: tuple[str, ...]) -> bool:
    """Whether a path below tensorflow_addons is a module in which covered classes can be found."""
    if len(path) == 2:
        return path[1] in MODULES.get(path[0], ())
    return not path or (len(path) == 1 and path[0] in COVERED)


def find_replacement(path: tuple[str, ...]) -> tuple[str, Replacement]:
    """The name that a path stands for, as tfa.part.Name, and what takes its place."""
    for end in (1, 2):
        if (known := REPLACEMENTS.get(".".join(path[:end]))) is not None:
            return f"tfa.{'.'.join(path[:end])}", known
    # tfa.optimizers.lamb.LAMB: the module that defines the name is of no interest.
    if len(path) > 2 and (known := REPLACEMENTS.get(f"{path[0]}.{path[2]}")) is not None:
        return f"tfa.{path[0]}.{path[2]}", known
    end = next((i for i, part in enumerate(path) if not part.islower()), len(path) - 1) + 1
    return ".".join(("tfa", *path[:end])), NOTHING
