"""Batch normalization as a layer: the promise on numbers, and what runs around it."""

import importlib
import pickle

import keras
import numpy as np
import pytest
from keras import ops

from cases import Case
from gradients import value_and_gradients
from promise import Expected
from truenorm.layers import BatchNormalization

BACKEND = keras.backend.backend()
X = np.random.default_rng(1).normal(3, 2, (16, 6, 5)).astype("float32")


def numpy(tensor):
    return np.asarray(ops.convert_to_numpy(tensor))


def built(shape=X.shape, **options):
    """A layer with random gamma and beta, for inputs of this shape."""
    layer = BatchNormalization(**options)
    layer.build((None, *shape[1:]))
    rng = np.random.default_rng(2)
    for one in (layer.gamma, layer.beta):
        one.assign(rng.normal(1, 0.5, one.shape))
    return layer


def moments(layer):
    return [numpy(one) for one in (layer.moving_mean, layer.moving_variance)]


# --- the promise on numbers


@pytest.mark.parametrize("implementation", [None, "plain"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mean", [0, 2e4])
@pytest.mark.parametrize("axis", [-1, 1, [1, 3]], ids=str)
def test_the_promise(axis, mean, masked, implementation):
    if masked and implementation == "plain":
        pytest.skip("only the plain formula takes masks")
    shape = (12, 4, 5, 6)
    rng = np.random.default_rng(3)
    x, cotangent = rng.normal(mean, 2, shape), rng.normal(size=shape)
    x, cotangent = x.astype("float32"), cotangent.astype("float32")
    mask = np.arange(4) < rng.integers(1, 5, (12, 1)) if masked else None
    layer = built(shape, axis=axis, implementation=implementation)
    case = Case("batch", "batch", shape, {"axis": axis})
    gamma, beta = numpy(layer.gamma), numpy(layer.beta)
    expected = Expected(case, x, gamma, beta, mask)
    rest = [ops.convert_to_tensor(one) for one in layer.non_trainable_variables]

    def function(x, gamma, beta):
        return layer.stateless_call([gamma, beta], rest, x, training=True, mask=mask)[0]

    y, gradients = value_and_gradients(function, [x, gamma, beta], cotangent)
    assert expected.forward_error(y) <= 1
    for name, error in expected.gradient_errors(cotangent, *gradients).items():
        assert error <= 1, name


@pytest.mark.parametrize("nothing", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"virtual_batch_size": 4}, {"renorm": True}, {"activation": "gelu"}, {"frozen": True}],
    ids=str,
)
def test_nan_behind_a_mask_stays_out_of_the_gradients(options, nothing):
    """They are those of zeros in its place; the result there is hidden from the loss, too."""
    mask = np.random.default_rng(4).random(X.shape[:2]) < 0.6
    mask[0] = True
    there = mask[..., None]
    layer = built(**options)
    rest = [ops.convert_to_tensor(one) for one in layer.non_trainable_variables]

    def function(x, gamma, beta):
        y = layer.stateless_call([gamma, beta], rest, x, training=True, mask=mask)[0]
        return ops.where(there, y, 0.0)

    cotangent = np.random.default_rng(5).normal(size=X.shape).astype("float32")
    weights = [numpy(layer.gamma), numpy(layer.beta)]
    found, wanted = (
        value_and_gradients(function, [np.where(there, X, hidden), *weights], cotangent)
        for hidden in (np.float32(nothing), np.float32(0))
    )
    for one, other in zip((found[0], *found[1]), (wanted[0], *wanted[1]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_the_promise_in_other_dtypes(dtype):
    if dtype == "float64" and BACKEND == "jax":
        pytest.skip("JAX computes in 32 bits here")
    layer = built(dtype=dtype, momentum=0.0)
    x = numpy(ops.cast(ops.convert_to_tensor(X * 100), dtype))
    y = layer(ops.convert_to_tensor(x), training=True)
    gamma, beta = numpy(layer.gamma), numpy(layer.beta)
    case = Case("batch", "batch", X.shape)
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    assert Expected(case, x, gamma, beta, dtype=dtype).forward_error(numpy(y)) <= 1
    # A variance of 40000 is near what float16 can hold; the weights are not in half precision.
    wide = "float64" if dtype == "float64" else "float32"
    assert [one.dtype for one in layer.non_trainable_variables] == [wide, wide]
    x = x.astype("float64")
    np.testing.assert_allclose(moments(layer)[0], x.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(moments(layer)[1], x.var((0, 1)), rtol=1e-6)
    layer(ops.convert_to_tensor(x * 1e-3), training=False)


@pytest.mark.parametrize("virtual", [None, 3])
def test_an_unbiased_moving_variance(virtual):
    layer = built(momentum=0.0, unbiased=True, virtual_batch_size=virtual)
    layer(X[:7], training=True)
    x = X[:7].astype("float64")
    parts = [x] if virtual is None else [x[:3], x[3:6], x[6:]]
    within = sum(one.var((0, 1)) * len(one) for one in parts) / 7
    np.testing.assert_allclose(moments(layer)[1], within * 42 / 41, rtol=1e-6)


def test_one_element_has_no_unbiased_variance():
    layer = built((1, 5), momentum=0.5, unbiased=True)
    layer(np.full((1, 5), 3, "float32"), training=True)
    np.testing.assert_allclose(moments(layer), [[1.5] * 5, [0.5] * 5])


# --- models, copies, files


def test_copies_are_the_same(tmp_path):
    model = keras.Sequential(
        [keras.Input((6, 5)), BatchNormalization(unbiased=True, renorm=True), keras.layers.Dense(1)]
    )
    model(X, training=True)
    y = numpy(model(X))
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    model.save(tmp_path / "model.keras")
    for copy in (
        pickle.loads(pickle.dumps(model)),
        clone,
        keras.models.load_model(tmp_path / "model.keras"),
    ):
        assert (numpy(copy(X)) == y).all()
        assert copy.layers[0].get_config() == model.layers[0].get_config()
        assert copy.layers[0].unbiased


def test_a_saved_file_opens_with_the_other_class(tmp_path):
    """Each class is made from the other's config, and reads the other's file."""
    path = tmp_path / "model.keras"
    model = keras.Sequential([keras.Input((6, 5)), BatchNormalization(axis=1, momentum=0.5)])
    for cls in (keras.layers.BatchNormalization, BatchNormalization):
        model(X, training=True)
        model.save(path)

        def other(layer, cls=cls):
            return cls.from_config(layer.get_config())

        opened = keras.models.clone_model(model, clone_function=other)
        assert type(opened.layers[0]) is cls
        opened.load_weights(path)
        np.testing.assert_allclose(numpy(opened(X)), numpy(model(X)), rtol=1e-5, atol=1e-5)
        model = opened


def test_a_functional_model_with_a_mask_and_a_residual():
    words, other = keras.Input((None,)), keras.Input((None, 5))
    embedded = keras.layers.Embedding(9, 5, mask_zero=True)(words)
    layer = BatchNormalization(momentum=0.0)
    y, total = layer(embedded, residual=other)
    assert y.shape == total.shape == (None, None, 5)
    model = keras.Model([words, other], [y, total])
    given = np.array([[3, 4, 0, 0], [5, 6, 7, 0]])
    _, total = model([given, X[:2, :4]], training=True)
    real = numpy(total).astype("float64")[given > 0]
    np.testing.assert_allclose(moments(layer), [real.mean(0), real.var(0)], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="residual"):
        layer(keras.Input((4, 5)), residual=keras.Input((3, 5)))


# --- training


def test_eager_training_is_that_of_keras():
    losses = []
    for cls in (keras.layers.BatchNormalization, BatchNormalization):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((6, 5)), keras.layers.Dense(4), cls(), keras.layers.Dense(1)]
        )
        model.compile(keras.optimizers.SGD(0.01), "mse", run_eagerly=True)
        history = model.fit(X, X[..., :1], batch_size=8, epochs=3, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-4)


def moved_by(batches, share, steps=1):
    """Moving mean and variance, of 0 and 1, after these batches in turn."""
    mean, variance = np.zeros(5), np.ones(5)
    for one in np.concatenate([batches] * steps).astype("float64"):
        mean = share * mean + (1 - share) * one.mean((0, 1))
        variance = share * variance + (1 - share) * one.var((0, 1))
    return [mean, variance]


def test_accumulated_gradients_are_those_of_virtual_batches():
    """Each small batch has its own statistics, and moves the moving ones: four for each step."""
    found = []
    for k in (1, 4):
        keras.utils.set_random_seed(0)
        layer = BatchNormalization(momentum=0.8, virtual_batch_size=4 if k == 1 else None)
        model = keras.Sequential([keras.Input((6, 5), 16 // k), layer, keras.layers.Dense(1)])
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=k if k > 1 else None)
        model.compile(optimizer, "mse")
        model.fit(X, X[..., :1], batch_size=16 // k, epochs=3, shuffle=False, verbose=0)
        found.append([numpy(one) for one in model.trainable_variables])
        batches = X.reshape(k, 16 // k, 6, 5)
        wanted = moved_by(batches, 0.8, 3)
        if k == 1:  # the average of those within the virtual batches
            small = X.reshape(4, 4, 6, 5).astype("float64").var((1, 2)).mean(0)
            wanted[1] = 0.8**3 + (1 - 0.8**3) * small
        np.testing.assert_allclose(moments(layer), wanted, rtol=1e-5)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_root_of_the_momentum_keeps_the_time_in_steps():
    """Of batches that are alike, k small ones then move the moving statistics like one."""
    layer = BatchNormalization(momentum=0.8 ** (1 / 4))
    model = keras.Sequential([keras.Input((6, 5)), layer, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), "mse")
    alike = np.concatenate([X[:4]] * 4)
    model.fit(alike, alike[..., :1], batch_size=4, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(moments(layer), moved_by(alike[None], 0.8, 2), rtol=1e-5)


def test_virtual_batches_need_the_batch_size_when_traced():
    layer = BatchNormalization(virtual_batch_size=4)
    model = keras.Sequential([keras.Input((6, 5)), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(X, X[..., :1], batch_size=8, verbose=0)
    assert not (moments(layer)[0] == 0).any()
    if BACKEND != "tensorflow":  # the others trace every batch size by itself
        model.fit(X[:14], X[:14, :, :1], batch_size=8, verbose=0)
        return
    with pytest.raises(ValueError, match=r"needs the number of samples.*give the batch size"):
        model.fit(X[:14], X[:14, :, :1], batch_size=8, verbose=0)
    sized = keras.Sequential([keras.Input((6, 5), batch_size=7), layer, keras.layers.Dense(1)])
    sized.compile("sgd", "mse")
    sized.fit(X[:14], X[:14, :, :1], batch_size=7, verbose=0)


class Cell(keras.layers.Layer):
    """A recurrent cell that normalizes its state."""

    def __init__(self, cls):
        super().__init__()
        self.state_size = 5
        self.norm = cls(momentum=0.5)

    def build(self, shape):
        self.norm.build((None, 5))

    def call(self, x, states, training=None):
        h = self.norm(x + states[0], training=training)
        return h, [h]


def test_a_recurrent_cell():
    layer = keras.layers.RNN(Cell(BatchNormalization))
    if BACKEND == "jax":
        with pytest.raises(NotImplementedError, match="a function that JAX traces by itself"):
            layer(X, training=True)
        layer.cell.norm.frozen = True
        assert layer(X, training=True).shape == (16, 5)
        return
    theirs = keras.layers.RNN(Cell(keras.layers.BatchNormalization))
    y = numpy(theirs(X, training=True))
    np.testing.assert_allclose(numpy(layer(X, training=True)), y, rtol=0, atol=1e-5)
    found, wanted = moments(layer.cell.norm), moments(theirs.cell.norm)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(BACKEND != "torch", reason="a checkpoint of PyTorch repeats the call")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_repeated_call_moves_nothing(reentrant, compiled):
    torch = importlib.import_module("torch")
    from torch.utils.checkpoint import checkpoint

    torch.compiler.reset()
    found = []
    for around in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=reentrant)):
        layer = built(momentum=0.5)
        x = torch.tensor(X, requires_grad=True)

        def step(x, layer=layer):
            return layer(x, training=True)

        if compiled:
            step = torch.compile(step, backend="aot_eager", fullgraph=True)
        around(step, x).pow(3).sum().backward()
        found.append([*moments(layer), x.grad.numpy()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.skipif(BACKEND != "jax", reason="stateless calls are JAX'")
def test_what_jax_traces():
    jax = importlib.import_module("jax")
    layer = built(momentum=0.5)
    trainable = [one.value for one in layer.trainable_variables]
    start = [one.value for one in layer.non_trainable_variables]

    def step(rest, x):
        y, rest = layer.stateless_call(trainable, rest, x, training=True)
        return rest, y

    wanted = start
    for one in X:
        wanted = step(wanted, one)[0]
    mean = np.zeros(5)
    for one in X.astype("float64"):
        mean = (mean + one.mean(0)) / 2
    np.testing.assert_allclose(wanted[0], mean, rtol=1e-5)
    for scanned in (jax.lax.scan, jax.jit(jax.lax.scan, static_argnums=0)):
        np.testing.assert_allclose(scanned(step, start, X)[0], wanted, rtol=1e-6)

    def loss(x, rest, step=step):
        rest, y = step(rest, x)
        return (y**3).sum(), rest

    def repeated(x, rest):
        return loss(x, rest, jax.checkpoint(step))

    gradients = []
    for function in (loss, jax.jit(loss), repeated):  # of a NumPy array, which jax.grad hands down
        slope, (mean, _) = jax.grad(function, has_aux=True)(X, start)
        np.testing.assert_allclose(mean, X.mean((0, 1)) / 2, rtol=1e-5)
        gradients.append(slope)
    np.testing.assert_allclose(gradients[1], gradients[0], atol=1e-3)
    np.testing.assert_allclose(gradients[2], gradients[0], atol=1e-3)
    assert (moments(layer)[0] == 0).all()
    with pytest.raises(NotImplementedError, match="jit without stateless_call"):
        jax.jit(lambda x: layer(x, training=True))(X)
    assert (moments(layer)[0] == 0).all()
