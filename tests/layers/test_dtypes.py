"""Dtype policies: what a layer computes in, returns, and keeps its weights in."""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from keras import ops
from kinds import MAKERS, assert_close, compiled, expected, make, randomize

BACKEND = keras.backend.backend()
UNIT_IN_THE_LAST_PLACE = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_policies_round_only_the_result(kind, dtype, rng):
    layer = make(kind, dtype=f"mixed_{dtype}")
    layer.build((3, 5, 6, 4))
    randomize(layer, rng)
    assert {one.dtype for one in layer.weights} == {"float32"}
    x = rng.normal(3, 2, (3, 5, 6, 4)).astype("float32")
    y = compiled(layer)(x)
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    rounded = ops.convert_to_numpy(ops.cast(x, dtype)).astype("float32")
    wanted = expected(layer, rounded)
    # A weight that had been rounded to the low precision would show here.
    error = np.abs(ops.convert_to_numpy(ops.cast(y, "float32")) - wanted)
    ulp = UNIT_IN_THE_LAST_PLACE[dtype] * 2.0 ** np.floor(np.log2(np.maximum(np.abs(wanted), 2e-6)))
    assert np.all(error <= 0.5 * ulp + 4e-6 * np.maximum(1, np.abs(wanted)))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_mixed_precision_model_trains(kind, rng):
    model = keras.Sequential([keras.Input((6, 4)), make(kind, dtype="mixed_bfloat16")])
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(1))
    model.compile("sgd", "mse")
    before = [one.copy() for one in model.layers[0].get_weights()]
    x = rng.normal(0, 1, (16, 6, 4)).astype("float32")
    history = model.fit(x, x[:, 0, 0] * x[:, 1, 1], epochs=2, verbose=0)
    assert np.all(np.isfinite(history.history["loss"]))
    after = model.layers[0].get_weights()
    assert all(np.any(one != other) for one, other in zip(before, after, strict=True))


@pytest.mark.skipif(BACKEND == "jax", reason="JAX computes in 32 bits here: see the next tests")
@pytest.mark.parametrize("kind", MAKERS)
def test_float64(kind, rng):
    check_float64(kind, rng)


def check_float64(kind, rng):
    layer = make(kind, dtype="float64")
    layer.build((3, 5, 6, 4))
    randomize(layer, rng)
    assert {one.dtype for one in layer.weights} == {"float64"}
    x = rng.normal(1000, 0.1, (3, 5, 6, 4))
    y = compiled(layer)(x)
    assert keras.backend.standardize_dtype(y.dtype) == "float64"
    # 2**-53 * mean / sd is 1e-12.
    assert_close(y, expected(layer, x), 1e-11)


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX computes in 32 bits unless told otherwise")
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype:UserWarning")  # JAX's own, weaker
def test_float64_on_jax_without_x64_is_an_error_that_names_the_variable(kind):
    with pytest.raises(ValueError, match=r"float64 was passed, but JAX.*JAX_ENABLE_X64=1"):
        make(kind, dtype="float64")


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="only JAX computes in 32 bits unless told otherwise")
def test_float64_on_jax_with_x64():
    script = """
        import numpy as np
        from kinds import MAKERS
        from test_dtypes import check_float64

        for kind in MAKERS:
            check_float64(kind, np.random.default_rng(0))
        print("right")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | {"JAX_ENABLE_X64": "1", "KERAS_BACKEND": "jax"},
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
