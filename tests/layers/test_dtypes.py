"""Dtype policies: what a layer computes in, returns, and keeps its weights in."""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from keras import ops
from kinds import KERAS_MAKERS, MAKERS, assert_close, compiled, expected, make, randomize

import truenorm

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
    wanted = expected(layer, x)
    # A weight that had been rounded to the low precision would show here.
    error = np.abs(ops.convert_to_numpy(ops.cast(y, "float32")) - wanted)
    ulp = UNIT_IN_THE_LAST_PLACE[dtype] * 2.0 ** np.floor(np.log2(np.maximum(np.abs(wanted), 2e-6)))
    assert np.all(error <= 0.5 * ulp + 4e-6 * np.maximum(1, np.abs(wanted)))


@pytest.mark.parametrize("kind", MAKERS)
def test_inputs_that_half_precision_does_not_hold(kind):
    x = np.full((2, 5, 6, 4), 70000.0, "float32")
    x[:, ::2] += 10000
    y = ops.cast(make(kind, dtype="mixed_float16")(x), "float32")
    assert np.all(np.isfinite(ops.convert_to_numpy(y)))


# Each layer, and Keras' layer whose dtypes it has, where there is one.
LAYERS = {kind: (MAKERS[kind], KERAS_MAKERS[kind]) for kind in MAKERS} | {
    "frn": (truenorm.FilterResponseNormalization, None),
    "tlu": (truenorm.TLU, None),
    "poincare": (truenorm.PoincareNormalize, None),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("policy", ["float32", "float16", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "uint8", "int32", "bool"]
)
def test_results_have_the_dtype_of_the_policy_whatever_comes_in(kind, policy, dtype):
    if dtype == "float64" and BACKEND == "jax":
        pytest.skip("JAX computes in 32 bits here")
    ours, keras_layer = (make and make(dtype=policy) for make in LAYERS[kind])
    x = ops.cast(ops.reshape(ops.arange(48), (2, 3, 2, 4)) % 7, dtype)
    y = ours(x)
    assert keras.backend.standardize_dtype(y.dtype) == ours.compute_dtype
    wide = LAYERS[kind][0](dtype="float32")(ops.cast(x, "float32"))
    unit = UNIT_IN_THE_LAST_PLACE.get(ours.compute_dtype, 1e-6)
    y, wide = (ops.convert_to_numpy(ops.cast(one, "float32")) for one in (y, wide))
    np.testing.assert_allclose(y, wide, unit, unit)
    # Keras' layers round to integers where integers come in, and group normalization cannot on
    # some backends.
    if keras_layer is not None and "float" in dtype:
        assert keras.backend.standardize_dtype(keras_layer(x).dtype) == ours.compute_dtype


def test_complex_numbers():
    x = ops.cast(np.ones((2, 3)), "complex64")
    with pytest.raises(TypeError, match=r"takes real numbers, but its input is complex64; pass"):
        truenorm.LayerNormalization()(x)


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
