"""Every layer and function against the specification: a program for backends that only infer.

Run it with KERAS_BACKEND set; it prints a line for each case and ends with 1 where one is wrong.
"""

import sys

import keras
import numpy as np
from keras import ops

import truenorm
from truenorm.core import reference
from truenorm.core.kinds import KINDS

SHAPE = (3, 5, 6, 4)
CASES = [
    ("group", {"groups": 2, "axis": -1}, SHAPE),
    ("group", {"groups": 2, "axis": 1}, (3, 4, 5, 6)),
    ("group", {"groups": 3, "axis": 2}, SHAPE),
    ("instance", {"axis": -1}, SHAPE),
    ("instance", {"axis": 1}, SHAPE),
    ("layer", {"axis": -1}, SHAPE),
    ("layer", {"axis": [1, 3]}, SHAPE),
    ("layer", {"axis": [1, 2, 3]}, SHAPE),
    ("layer", {"axis": -1}, (3001, 8)),
    ("layer", {"axis": 1}, (2, 5003, 3)),
    ("rms", {"axis": -1}, SHAPE),
    ("rms", {"axis": 1}, SHAPE),
    ("frn", {"axis": [1, 2]}, SHAPE),
    ("frn", {"axis": [2, 3]}, SHAPE),
]


def specification(kind, options, x, weights, mask):
    """The result in float64."""
    gamma, beta = [one.astype("float64") for one in weights] + [None] * (2 - len(weights))
    if mask is not None:
        mask = np.broadcast_to(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x.shape)
    return reference.normalize(
        x.astype("float64"), gamma, beta, KINDS[kind].view(x.shape, **options),
        epsilon=KINDS[kind].epsilon["keras"], centered=KINDS[kind].centered, mask=mask,
    )  # fmt: skip


def results(kind, options, x, weights, mask):
    """The result by a layer, its model, the function, and the function in a model."""
    layer = getattr(truenorm, KINDS[kind].keras)(**options)
    layer.build(x.shape)
    layer.set_weights([np.reshape(a, b.shape) for a, b in zip(weights, layer.weights, strict=True)])
    function = getattr(truenorm.ops, KINDS[kind].function)
    yield "layer", layer(x, mask=mask)
    yield "function", function(x, *weights, mask=mask, **options)
    inputs = keras.Input(x.shape[1:])
    given = [] if mask is None else [keras.Input(mask.shape[1:], dtype="bool")]
    arguments = [x, *([] if mask is None else [mask])]
    for name, call in (
        ("model of the layer", layer),
        ("model of the function", lambda x, mask: function(x, *weights, mask=mask, **options)),
    ):
        model = keras.Model([inputs, *given], call(inputs, mask=given[0] if given else None))
        yield name, model.predict(arguments, verbose=0)


def main() -> int:
    """Print every error relative to max(1, |y|); 1 where one is above 1e-5."""
    rng = np.random.default_rng(0)
    wrong = 0
    for kind, options, shape in CASES:
        row = KINDS[kind]
        size = row.view(shape, **options).parameter_shape(shape)
        weights = list(rng.uniform(-2, 2, (len(row.learned), *size)).astype("float32"))
        masks = [None, rng.random(shape[:1]) < 0.7, rng.random(shape[:2]) < 0.7]
        for mask in masks:
            x = rng.normal(100, 2, shape).astype("float32")
            wanted = specification(kind, options, x, weights, mask)
            if mask is not None and row.centered:
                x[~mask] = np.nan
                wanted[~mask] = 0
            for name, y in results(kind, options, x, weights, mask):
                y = ops.convert_to_numpy(y)
                if mask is not None and row.centered:
                    y = np.where(mask.reshape(mask.shape + (1,) * (y.ndim - mask.ndim)), y, 0)
                error = np.max(np.abs(y - wanted) / np.maximum(1, np.abs(wanted)))
                right = y.shape == wanted.shape and error <= 1e-5
                wrong += not right
                masked = "" if mask is None else f", mask {mask.shape}"
                print(f"{'right' if right else 'WRONG'} {kind} {options} {shape}{masked}, "
                      f"{name}: {error:.1e}")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
