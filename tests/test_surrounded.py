"""Activation and residual in the functions for Keras, and what engines get of them."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops

import truenorm
from cases import EPSILON
from gradients import value_and_gradients
from surrounded import ACTIVATIONS, TRIALS
from truenorm.core import engine
from truenorm.core.activation import activate
from truenorm.core.call import Call
from truenorm.core.kinds import KINDS
from truenorm.core.plain import Plain

BACKEND = keras.backend.backend()


def wide_floats(dtype):
    """On JAX, float64 must be switched on."""
    if BACKEND == "jax" and dtype == "float64":
        import jax

        return jax.enable_x64(True)
    return contextlib.nullcontext()


@pytest.mark.parametrize("trial", TRIALS, ids=str)
def test_the_promise(trial):
    inputs = x, gamma, beta, residual, mask, dy, ds = trial.draw()
    given = [x, gamma, beta if trial.case.has_beta else None, residual]
    there = [one is not None for one in given]

    def tensors_by_name(tensors):
        tensors = iter(tensors)
        return [next(tensors) if one else None for one in there]

    def function(*tensors):
        x, gamma, beta, residual = tensors_by_name(tensors)
        return trial.case.call(
            x, gamma, beta, mask, activation=trial.activation, residual=residual,
            implementation=trial.implementation,
        )  # fmt: skip

    def stacked(*tensors):
        """One output, so that one cotangent does: rounded already, it is in a wider dtype."""
        if residual is None:
            return function(*tensors)
        return ops.stack(function(*tensors))

    cotangent = dy if residual is None else np.stack([dy, ds])
    with wide_floats(trial.dtype):
        arguments = [one for one in given if one is not None]
        value, gradients = value_and_gradients(stacked, arguments, cotangent)
    y, s = (value, None) if residual is None else value
    trial.check(inputs, y, s, tensors_by_name(gradients))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("rms_scaling", [False, True])
def test_nan_behind_a_mask_stays_out_of_the_gradients(activation, hidden, rms_scaling, rng):
    """They are those of zeros in its place, where the loss does not look either."""
    x, cotangent = rng.standard_normal((2, 4, 5, 3)).astype("float32")
    mask = rng.random((4, 5, 3)) < 0.6
    layer = truenorm.LayerNormalization(
        axis=[1, 2], activation=activation, rms_scaling=rms_scaling, center=not rms_scaling
    )
    layer.build(x.shape)

    def function(x, *weights):
        y = layer.stateless_call(list(weights), [], x, mask=mask)[0]
        return ops.where(mask, y, 0.0)

    weights = [ops.convert_to_numpy(one) for one in layer.weights]
    found, wanted = (
        value_and_gradients(function, [np.where(mask, x, np.float32(one)), *weights], cotangent)
        for one in (hidden, 0)
    )
    for one, other in zip((found[0], *found[1]), (wanted[0], *wanted[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


class Recorder:
    """An engine that fuses some, records what it is asked, and computes it by the plain formula."""

    name = "native"

    def __init__(self, *fuses, reason=None):
        self.fuses = {"normalize": frozenset(fuses)}
        self.reason = reason
        self.asked = []

    def normalize(self, *operands):
        self.asked.append(operands)
        if self.reason is not None:
            return self.reason
        call, *tensors = operands
        front = engine.Front(ops, [Plain(ops)])
        return engine.normalize(front, "plain", call, *tensors)


def surrounded_call(activation, residual):
    return Call(KINDS["layer"].view((3, 5), -1, None), True, EPSILON, activation, residual)


def computed(first, activation, dtype="float32", residual=True, implementation=None):
    """The result of a call that is put to this engine first."""
    rng = np.random.default_rng(0)
    x, other = (ops.cast(one, dtype) for one in rng.standard_normal((2, 3, 5)).astype("float32"))
    call = surrounded_call(activation, residual)
    operands = (call, x, None, None, None, None, other if residual else None)
    plain = engine.normalize(engine.Front(ops, [Plain(ops)]), None, *operands)
    found = engine.normalize(engine.Front(ops, [first, Plain(ops)]), implementation, *operands)
    for one, wanted in zip(found, plain, strict=True):
        assert keras.backend.standardize_dtype(one.dtype) == dtype
        np.testing.assert_array_equal(
            *(ops.convert_to_numpy(ops.cast(t, "float32")) for t in (one, wanted))
        )
    return call, x, other


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_that_fuses_gets_the_whole_call(dtype):
    one = Recorder("residual", "silu")
    call, x, residual = computed(one, "silu", dtype)
    ((asked, *tensors, added),) = one.asked
    assert asked == call
    assert tensors[0] is x
    assert added is residual


def test_an_engine_that_fuses_nothing_never_sees_them():
    one = Recorder()
    del one.fuses
    computed(one, "silu")
    ((asked, *tensors),) = one.asked
    assert asked == Call(asked.view, True, EPSILON)
    assert len(tensors) == 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_that_fuses_the_activation_alone(dtype):
    one = Recorder("gelu")
    _, x, residual = computed(one, "gelu", dtype)
    ((asked, s, *others),) = one.asked
    assert (asked.activation, asked.residual, others) == ("gelu", False, [None] * 4)
    assert keras.backend.standardize_dtype(s.dtype) == dtype
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (s, x + residual)))


def test_an_engine_that_fuses_the_residual_alone():
    one = Recorder("residual")
    _, x, residual = computed(one, "gelu")
    ((asked, given, *_, added),) = one.asked
    assert (asked.activation, asked.residual) == (None, True)
    assert given is x
    assert added is residual
    # Its y would be rounded before the activation.
    one = Recorder("residual")
    computed(one, "gelu", "bfloat16")
    ((asked, s, *_),) = one.asked
    assert keras.backend.standardize_dtype(s.dtype) == "float32"
    assert not asked.residual


@pytest.mark.parametrize("step", ["measure", "apply"])
def test_the_other_functions_fuse_what_is_named_for_them(step):
    class Other(Plain):
        def measure(self, call, x, *operands):
            asked.append(call)
            y, statistics = super().measure(call, x, *operands)
            return activate(ops, call.activation, y), statistics

        def apply(self, call, x, *operands):
            asked.append(call)
            return activate(ops, call.activation, super().apply(call, x, *operands))

    asked = []
    call, x = surrounded_call("relu", False), ops.ones((3, 5))
    other = Other(ops)
    other.fuses = {step: frozenset({"relu"})}
    front = engine.Front(ops, [other])
    statistics = Plain(ops).moments(call, x)
    operands = (None, None) if step == "measure" else (statistics, None, None)
    for activation in ("relu", "gelu"):
        call = surrounded_call(activation, False)
        getattr(engine, step)(front, None, call, x, *operands)
    assert [one.activation for one in asked] == ["relu", None]


@pytest.mark.parametrize("fuses", [(), ("residual",), ("residual", "relu")])
def test_a_reason_is_passed_over(fuses):
    one = Recorder(*fuses, reason="it is made up")
    computed(one, "relu")
    assert len(one.asked) == 1
    with pytest.raises(NotImplementedError, match="it is made up"):
        computed(one, "relu", implementation="native")


def test_a_call_without_either_goes_to_the_engine_as_it_is():
    one = Recorder("residual", *ACTIVATIONS[1:])
    computed(one, None, residual=False)
    ((asked, *tensors),) = one.asked
    assert asked.alone is None
    assert len(tensors) == 5


@pytest.mark.skipif(BACKEND == "torch", reason="XLA is for the others")
@pytest.mark.parametrize("activation", [None, "gelu_tanh"])
def test_xla_rounds_the_sum(activation):
    x = np.random.default_rng(0).normal(3, 1, (64, 100)).astype("float32")
    x, residual = ops.cast(x, "bfloat16"), ops.cast(x[::-1] / 100, "bfloat16")

    def function(x, residual):
        return truenorm.ops.layer_normalization(x, residual=residual, activation=activation)

    if BACKEND == "jax":
        import jax

        compiled = jax.jit(function)
    else:
        import tensorflow as tf

        compiled = tf.function(function, jit_compile=True)
    y, s = compiled(x, residual)
    wanted = truenorm.ops.layer_normalization(
        ops.cast(s, "float32"), activation=activation, implementation="plain"
    )
    y, s, wanted, total = (
        ops.convert_to_numpy(ops.cast(one, "float32")) for one in (y, s, wanted, x + residual)
    )
    np.testing.assert_array_equal(s, total)
    # One unit in the last place.
    assert np.all(abs(y - wanted) <= 2.0**-7 * np.maximum(abs(wanted), 2.0**-7))


def test_a_functional_model(tmp_path):
    x, residual = keras.Input((4, 6)), keras.Input((4, 6))
    y, s = truenorm.ops.layer_normalization(x, residual=residual, activation="silu")
    z = truenorm.ops.rms_normalization(y, activation="relu")
    assert y.shape == s.shape == (None, 4, 6)
    model = keras.Model([x, residual], [y, s, z])
    data = np.random.default_rng(0).standard_normal((2, 3, 4, 6)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    wanted, total = truenorm.ops.layer_normalization(data[0], residual=data[1], activation="silu")
    wanted = [wanted, total, truenorm.ops.rms_normalization(wanted, activation="relu")]
    for one in (model, loaded):
        for found, right in zip(one(list(data)), wanted, strict=True):
            np.testing.assert_allclose(
                *map(ops.convert_to_numpy, (found, right)), rtol=1e-5, atol=1e-6
            )
    with pytest.raises(ValueError, match="residual has the shape"):
        truenorm.ops.layer_normalization(x, residual=keras.Input((4, 5)))


def test_what_does_not_fit_is_refused():
    x = np.ones((3, 5), "float32")
    with pytest.raises(ValueError, match=r"residual has the shape \(5,\), but x has \(3, 5\)"):
        truenorm.ops.layer_normalization(x, residual=x[0])
    with pytest.raises(TypeError, match="residual is of dtype float16, but x is of float32"):
        truenorm.ops.layer_normalization(x, residual=x.astype("float16"))
    with pytest.raises(TypeError, match="residual must be a floating-point tensor"):
        truenorm.ops.layer_normalization(x, residual=x.astype("int32"))
    for name in ("tanh", keras.activations.relu, ["relu"]):
        with pytest.raises(ValueError, match="expected None or one of 'relu', 'silu', 'gelu', 'ge"):
            truenorm.ops.layer_normalization(x, activation=name)
    with pytest.raises(ValueError, match="activation='tanh' is unknown"):
        truenorm.ops.layer_normalization(keras.Input((5,)), activation="tanh")
