"""Batch normalization as a layer: numbers, modes, Keras' files, training."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import batch_definition
import truenorm
from gradients import value_and_gradients
from truenorm.layers import BatchNormalization

BACKEND = keras.backend.backend()
EPSILON = 1e-3


def numpy(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


defined = functools.partial(batch_definition.defined, epsilon=EPSILON)


def made(shape, axes=None, **options):
    """A layer of random weights for inputs of this shape, and the weights."""
    layer = BatchNormalization(**options)
    layer.build((None, *shape[1:]))
    rng = np.random.default_rng(2)
    weights = [rng.normal(1, 0.5, one.shape) for one in layer.get_weights()]
    weights = [np.abs(one) + 0.1 if i > 2 else one for i, one in enumerate(weights)]
    layer.set_weights(weights)
    return layer, [np.asarray(one, np.float64) for one in layer.get_weights()]


def numbers(shape, mean=0.0):
    return np.random.default_rng(1).normal(mean, 2, shape).astype("float32")


def close(found, wanted, unit=4e-6):
    scale = max(1, np.max(abs(np.asarray(wanted, np.float64)), initial=0))
    np.testing.assert_allclose(numpy(found), wanted, rtol=0, atol=unit * scale)


CASES = [
    ((6, 4, 3, 5), -1, (3,)),
    ((6, 5, 4, 3), 1, (1,)),
    ((300, 16), -1, (1,)),
    ((3, 4, 5, 6), [1, 3], (1, 3)),
]


@pytest.mark.parametrize("implementation", [None, "plain"])
@pytest.mark.parametrize("mean", [0.0, 2e4])
@pytest.mark.parametrize(("shape", "axis", "axes"), CASES, ids=str)
def test_training_is_the_definition(shape, axis, axes, mean, implementation):
    layer, (gamma, beta, old_mean, old_variance) = made(
        shape, axis=axis, momentum=0.7, implementation=implementation
    )
    x = numbers(shape, mean)
    y = layer(x, training=True)
    wanted, m, v = defined(x, gamma, beta, axes)
    close(y, wanted)
    np.testing.assert_allclose(numpy(layer.moving_mean), 0.7 * old_mean + 0.3 * m, rtol=3e-7)
    np.testing.assert_allclose(
        numpy(layer.moving_variance), 0.7 * old_variance + 0.3 * v, rtol=1e-6
    )


def test_gradients_are_the_definition():
    layer, (gamma, *_) = made((6, 4, 5))
    x = numbers((6, 4, 5), 30.0)
    cotangent = np.random.default_rng(3).normal(size=x.shape).astype("float32")
    weights, rest = layer.trainable_variables, layer.non_trainable_variables
    rest = [keras.ops.convert_to_tensor(one) for one in rest]

    def function(x, gamma, beta):
        return layer.stateless_call([gamma, beta], rest, x, training=True)[0]

    given = [x, *(numpy(one) for one in weights)]
    _, (dx, dgamma, dbeta) = value_and_gradients(function, given, cotangent)
    wanted = batch_definition.gradients(x, gamma, cotangent, (2,), EPSILON)
    for found, other in zip((dx, dgamma, dbeta), wanted, strict=False):
        close(found, other, 1e-5)


@pytest.mark.parametrize("frozen", ["inference", "trainable", "frozen"])
def test_the_moving_statistics_are_used_and_stay(frozen):
    layer, (gamma, beta, mean, variance) = made((6, 4, 5))
    kept = layer.get_weights()
    if frozen == "trainable":
        layer.trainable = False
    layer.frozen = frozen == "frozen"
    x = numbers((6, 4, 5))
    y = layer(x, training=frozen != "inference")
    close(y, (x - mean) / np.sqrt(variance + EPSILON) * gamma + beta)
    for one, other in zip(layer.get_weights(), kept, strict=True):
        assert (one == other).all()
    assert len(layer.trainable_weights) == (0 if frozen == "trainable" else 2)


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_what_a_mask_hides_stays_out(shape):
    layer, (gamma, beta, *_) = made((4, 3, 5), momentum=0.0)
    x = numbers((4, 3, 5), 10.0)
    mask = np.random.default_rng(4).random(shape) < 0.6
    mask[0] = True
    full = np.broadcast_to(mask.reshape(shape + (1,) * (3 - len(shape))), x.shape)
    wanted, m, v = defined(x, gamma, beta, (2,), full)
    y = layer(np.where(full, x, np.nan).astype("float32"), training=True, mask=mask)
    close(numpy(y)[full], wanted[full])
    close(layer.moving_mean, m)
    close(layer.moving_variance, v)
    kept = layer.get_weights()
    layer(x, training=True, mask=np.zeros(shape, bool))
    layer(x[:0], training=True)
    for one, other in zip(layer.get_weights(), kept, strict=True):
        assert (one == other).all()


@pytest.mark.parametrize("rows", [8, 10, 3])
def test_virtual_batches_have_statistics_of_their_own(rows):
    layer, (gamma, beta, *_) = made((rows, 4, 3), momentum=0.0, virtual_batch_size=4)
    x = numbers((rows, 4, 3), 5.0)
    y = layer(x, training=True)
    parts = [defined(x[i : i + 4], gamma, beta, (2,)) for i in range(0, rows, 4)]
    close(y, np.concatenate([one[0] for one in parts]))
    shares = [one[0].shape[0] / rows for one in parts]
    close(layer.moving_mean, sum(p[1] * s for p, s in zip(parts, shares, strict=True)))
    close(layer.moving_variance, sum(p[2] * s for p, s in zip(parts, shares, strict=True)))


@pytest.mark.parametrize("shape", [(0, 4, 3), (10, 0, 3)])
@pytest.mark.parametrize("options", [{}, {"virtual_batch_size": 4}, {"renorm": True}])
@pytest.mark.parametrize("training", [True, False])
def test_axes_that_are_empty(shape, options, training):
    layer, weights = made(shape, **options)
    assert layer(np.zeros(shape, "float32"), training=training).shape == shape
    for one, other in zip(layer.get_weights(), weights, strict=True):
        assert (one == other).all()


@pytest.mark.parametrize("clipping", [None, {"rmin": 0.9, "rmax": 1.1, "dmax": 0.2}])
def test_renorm_is_that_of_keras(clipping):
    options = {"renorm": True, "renorm_clipping": clipping, "momentum": 0.8}
    layer, _ = made((8, 4, 3), **options)
    try:
        theirs = keras.layers.BatchNormalization(**options)
    except (TypeError, ValueError):
        pytest.skip("this Keras has no renorm")
    theirs.build((None, 4, 3))
    assert [one.name for one in theirs.weights] == [one.name for one in layer.weights]
    theirs.set_weights(layer.get_weights())
    for seed in range(3):
        x = numbers((8, 4, 3), 1.0 + seed)
        close(layer(x, training=True), numpy(theirs(x, training=True)), 1e-5)
    for one, other in zip(layer.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_schedule_of_the_clips_of_renorm(tmp_path):
    # From none, as in the paper: r = 1 and d = 0, to a wide one.
    schedule = [(1.0, 0.0), (1.1, 0.2), (3.0, 5.0)]
    names = ("rmax", "dmax")
    clips = {name: keras.Variable(0.0, trainable=False, name=name) for name in names}
    clips["rmax"].assign(1.0)
    options = {"renorm": True, "momentum": 0.5, "renorm_momentum": 0.5, "name": "norm"}

    class Widen(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            for name, value in zip(names, schedule[epoch], strict=True):
                clips[name].assign(value)

    def trained(layer, epochs, callbacks):
        model = keras.Sequential([keras.Input((4, 3)), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        if callbacks:
            model.fit(x, t, batch_size=8, epochs=epochs, callbacks=callbacks, verbose=0)
        return model

    x, t = numbers((8, 4, 3), 2.0), numbers((8, 4, 3), 1.0)
    model = trained(BatchNormalization(renorm_clipping=clips, **options), 3, [Widen()])
    # The same with numbers, in a layer for each epoch.
    before = None
    for values in schedule:
        clipping = dict(zip(names, values, strict=True))
        one = trained(BatchNormalization(renorm_clipping=clipping, **options), 1, None)
        if before is not None:
            one.layers[0].set_weights(before)
        one.fit(x, t, batch_size=8, verbose=0)
        before = one.layers[0].get_weights()
    for number, other in zip(model.layers[0].get_weights(), before, strict=True):
        np.testing.assert_allclose(number, other, rtol=1e-5, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras").layers[0]
    assert again.renorm_clipping == {"rmax": 3.0, "dmax": 5.0}
    for number, other in zip(again.get_weights(), before, strict=True):
        np.testing.assert_allclose(number, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_dtypes(policy):
    if policy == "float64" and BACKEND == "jax":
        pytest.skip("JAX computes in 32 bits here")
    layer, (gamma, beta, *_) = made((6, 4, 5), dtype=policy, momentum=0.0)
    x = numbers((6, 4, 5), 300.0)
    y = layer(x, training=True)
    wanted, m, v = defined(x, gamma, beta, (2,))
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    close(
        keras.ops.cast(y, "float32"),
        wanted,
        {"mixed_float16": 1e-3, "float64": 1e-6}.get(policy, 8e-3),
    )
    close(layer.moving_mean, m, 1e-6)
    close(layer.moving_variance, v, 1e-6)


def test_nan_stays_in_its_channel_and_one_element_yields_beta():
    layer, (_, beta, *_) = made((4, 3, 2))
    x = numbers((4, 3, 2))
    x[1, 1, 1] = np.nan
    y = numpy(layer(x, training=True))
    assert np.isfinite(y[..., 0]).all()
    assert np.isnan(y[..., 1]).all()
    layer, (_, beta, *_) = made((1, 5))
    close(layer(numbers((1, 5)), training=True), beta[None])


def test_an_activation_and_a_residual():
    x, other = numbers((4, 3, 5)), numbers((4, 3, 5)) + 1
    layer, (gamma, beta, *_) = made((4, 3, 5), activation="relu")
    y, total = layer(x, training=True, residual=other)
    close(total, x + other)
    close(y, np.maximum(defined(x + other, gamma, beta, (2,))[0], 0))


def test_config_and_weights_are_those_of_keras(tmp_path):
    theirs = keras.layers.BatchNormalization(axis=1, momentum=0.5, epsilon=1e-4, scale=False)
    ours = BatchNormalization.from_config(theirs.get_config())
    config = ours.get_config()
    # Those of renorm, which older releases of Keras do not know, are there only where they are set.
    wanted = {k: v for k, v in theirs.get_config().items() if not k.startswith("renorm")}
    assert config == {**wanted, "dtype": config["dtype"]}
    again = keras.layers.BatchNormalization.from_config(config)
    x = numbers((4, 3, 5), 2.0)
    for one in (theirs, ours, again):
        one.build(x.shape)
    ours.set_weights(theirs.get_weights())
    close(ours(x, training=True), numpy(theirs(x, training=True)), 1e-5)
    again.set_weights(ours.get_weights())
    close(again(x), numpy(ours(x)))
    full = BatchNormalization(virtual_batch_size=2, frozen=True, unbiased=True, activation="relu")
    config = full.get_config()
    full.build((4, 3))
    assert full.get_config() == config
    assert BatchNormalization.from_config(config).get_config() == config
    old = {"axis": [3], "momentum": 0.9, "renorm": False, "fused": True, "adjustment": None}
    assert BatchNormalization(**old).axis == 3


@pytest.mark.parametrize("ending", ["keras", "weights.h5"])
def test_files_are_those_of_keras_both_ways(tmp_path, ending):
    def model(cls):
        return keras.Sequential([keras.Input((4,)), cls(), keras.layers.Dense(2), cls(axis=-1)])

    theirs, ours = model(keras.layers.BatchNormalization), model(BatchNormalization)
    x = numbers((16, 4), 3.0)
    theirs(x, training=True)
    path = tmp_path / f"model.{ending}"
    if ending == "keras":
        ours.set_weights(theirs.get_weights())
        ours.save(path)
        close(keras.models.load_model(path)(x), numpy(theirs(x)), 1e-5)
        return
    theirs.save_weights(path)
    ours.load_weights(path)
    close(ours(x), numpy(theirs(x)), 1e-5)
    ours(x, training=True)
    ours.save_weights(path)
    theirs.load_weights(path)
    close(theirs(x), numpy(ours(x)), 1e-5)


@pytest.mark.parametrize("jit", [True, False])
def test_a_training_of_200_steps_is_that_of_keras(jit):
    if jit and BACKEND == "torch":
        pytest.skip("torch.compile takes a minute")
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (64, 5)).astype("float32")
    y = (x[:, :1] * x[:, 1:2] > 0).astype("float32")
    losses = []
    for cls in (keras.layers.BatchNormalization, BatchNormalization):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([
            keras.Input((5,)), keras.layers.Dense(16), cls(), keras.layers.ReLU(),
            keras.layers.Dense(1),
        ])  # fmt: skip
        model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=jit)
        losses.append(
            model.fit(x, y, batch_size=16, epochs=50, shuffle=False, verbose=0).history["loss"]
        )
    assert losses[0][-1] < 0.7 * losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-4)


def test_frozen_statistics_keep_their_bits_in_fit():
    layer = BatchNormalization()
    model = keras.Sequential([keras.Input((5,)), layer, keras.layers.Dense(1)])
    x = numbers((64, 5), 2.0)
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit(x, x[:, :1], batch_size=16, epochs=2, verbose=0)
    layer.frozen = True
    model.compile(keras.optimizers.SGD(0.05), "mse")
    kept = layer.get_weights()
    model.fit(x, x[:, :1], batch_size=16, epochs=12, verbose=0)
    now = layer.get_weights()
    assert [bool((a == b).all()) for a, b in zip(now, kept, strict=True)] == [
        False, False, True, True,
    ]  # fmt: skip


@pytest.mark.skipif(BACKEND != "jax", reason="stateless calls are JAX'")
def test_stateless_call_and_loops():
    import jax

    layer, (gamma, beta, mean, _) = made((6, 4, 5), momentum=0.5)
    x = numbers((6, 4, 5), 2.0)
    trainable = [one.value for one in layer.trainable_variables]
    rest = [one.value for one in layer.non_trainable_variables]
    y, after = jax.jit(lambda t, n, x: layer.stateless_call(t, n, x, training=True))(
        trainable, rest, x
    )
    wanted, m, _ = defined(x, gamma, beta, (2,))
    close(y, wanted)
    close(after[0], 0.5 * mean + 0.5 * m)

    def looped(x):
        return jax.lax.scan(lambda _, one: (0, layer(one, training=True)), 0, x)[1]

    with pytest.raises(NotImplementedError, match="inside a function that JAX traces by itself"):
        looped(x)
    layer.frozen = True
    assert looped(x).shape == x.shape


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BatchNormalization(axis=0), ValueError, "axis=0 names the batch axis"),
        (lambda: BatchNormalization(momentum=2), ValueError, "momentum=2 must be from 0 to 1"),
        (
            lambda: BatchNormalization(virtual_batch_size=2, synchronized=True),
            ValueError,
            "virtual_batch_size=2 and synchronized=True contradict each other",
        ),
        (
            lambda: BatchNormalization(renorm=True, renorm_clipping={"max": 2}),
            ValueError,
            "has max; expected some of rmin, rmax and dmax",
        ),
        (
            lambda: BatchNormalization(renorm=True, renorm_clipping={"rmin": 2, "rmax": 1}),
            ValueError,
            "leaves nothing; expected rmin <= rmax",
        ),
        (lambda: BatchNormalization(adjustment=len), ValueError, "adjustment is a function"),
        (
            lambda: BatchNormalization(scale=False, center=False).build((2, None)),
            ValueError,
            "needs the size of axes",
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


DEVICES = {
    "jax": {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"},
    "tensorflow": {},
    "torch": {},
}


def test_over_devices():
    """The training is that on one; `batch_on_devices.py` runs it in a process of its own."""
    assert truenorm.BatchNormalization is BatchNormalization
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("batch_on_devices.py")],
        env=os.environ | {"KERAS_BACKEND": BACKEND, **DEVICES[BACKEND]},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split()[-1:] == ["same"], done.stderr[-3000:]
