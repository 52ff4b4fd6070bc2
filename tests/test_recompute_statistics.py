"""`recompute_statistics`: the statistics of the whole population, and nothing else is changed."""

import re

import keras
import numpy as np
import pytest

import truenorm
from batch_networks import FRONTS, IN, OURS, expected, network, output, statistics
from test_pages import ROOT, run_examples
from truenorm import freeze, recompute_statistics
from truenorm.core.errors import InputError

pytest.importorskip("flax")
import jax
import torch
from flax import nnx

FAR = 3e4  # a mean at which E[x²] - E[x]² in float32 is all noise


@pytest.fixture
def batches(rng):
    return [rng.normal(size=(n, IN)).astype("float32") + 1 for n in (16, 3, 7)]


@pytest.mark.parametrize("layer_by_layer", [False, True])
@pytest.mark.parametrize("front", FRONTS)
def test_numbers(front, layer_by_layer, batches):
    net = network(front)
    report = recompute_statistics(net, batches, layer_by_layer=layer_by_layer)
    wanted = expected(batches, layer_by_layer=layer_by_layer, unbiased="torch" in front)
    for value, right in zip(statistics(net), wanted, strict=True):
        np.testing.assert_allclose(value, right, rtol=2e-5, atol=2e-6)
    assert [one.count for one in report.recomputed] == [26, 26]
    assert report.batches == 3
    # The old statistics are those of new layers, 0 and 1.
    spread = np.sqrt(wanted[1] * (25 / 26 if "torch" in front else 1) + 0.01)
    assert report.recomputed[0].off == pytest.approx(np.abs(wanted[0] / spread).max(), rel=1e-4)
    assert report.recomputed[0].ratio[0] == pytest.approx((1.01 / spread**2).min(), rel=1e-4)
    assert "2 batch normalizations recomputed from 3 batches" in str(report)


@pytest.mark.parametrize("front", FRONTS)
def test_two_passes_differ(front, batches):
    """So that the test above tells one from the other."""
    one, other = (expected(batches, layer_by_layer=way, unbiased=False) for way in (False, True))
    assert np.abs(one[2] - other[2]).max() > 1e-2


def of_one(front):
    """A normalization of (N, 5, 3) alone, and how to read its statistics."""
    if "torch" in front:
        norm = (truenorm.torch if front in OURS else torch.nn).BatchNorm1d(5)
        return norm, lambda: (norm.running_mean.numpy(), norm.running_var.numpy())
    if "flax" in front:
        norm = (truenorm.flax if front in OURS else nnx).BatchNorm(5, axis=1, rngs=nnx.Rngs(0))
        return norm, lambda: (np.array(norm.mean[...]), np.array(norm.var[...]))
    norm = (truenorm if front in OURS else keras.layers).BatchNormalization(axis=1)
    norm.build((None, 5, 3))
    return norm, lambda: tuple(
        keras.ops.convert_to_numpy(one) for one in (norm.moving_mean, norm.moving_variance)
    )


@pytest.mark.parametrize("front", ["torch", "keras", "flax", *OURS])
def test_a_mean_far_from_zero(front, rng):
    norm, read = of_one(front)
    batches = [(FAR + rng.normal(size=(8, 5, 3))).astype("float32") for _ in range(3)]
    recompute_statistics(norm, batches)
    every = np.concatenate(batches).astype("float64")
    mean, variance = read()
    np.testing.assert_allclose(mean, every.mean((0, 2)), rtol=1e-7)
    ddof = int("torch" in front)
    np.testing.assert_allclose(variance, every.var((0, 2), ddof=ddof), rtol=1e-5)


class Failing:
    """Batches, after which comes an exception."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        yield from self.batches
        raise RuntimeError("the disk is gone")


@pytest.mark.parametrize("layer_by_layer", [False, True])
@pytest.mark.parametrize("front", FRONTS)
def test_nothing_changes_after_an_exception(front, layer_by_layer, batches):
    net = network(front)
    recompute_statistics(net, [3 * batches[0]])
    before = statistics(net)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        recompute_statistics(net, Failing(batches), layer_by_layer=layer_by_layer)
    for value, old in zip(statistics(net), before, strict=True):
        np.testing.assert_array_equal(value, old)
    bad = batches[0].copy()
    bad[0, 0] = np.nan
    with pytest.raises(InputError, match="bn1 has values that are not finite"):
        recompute_statistics(net, [batches[1], bad], layer_by_layer=layer_by_layer)
    for value, old in zip(statistics(net), before, strict=True):
        np.testing.assert_array_equal(value, old)


@pytest.mark.parametrize("fails", [False, True])
def test_modes_hooks_and_gradients_of_torch(fails, batches):
    net = network("torch")
    net.drop.eval()
    net(torch.tensor(batches[0])).square().sum().backward()
    net.bn1.running_mean.zero_()
    net.bn1.num_batches_tracked.fill_(7)
    net.bn2.num_batches_tracked.zero_()
    gradients = [one.grad.clone() for one in net.parameters()]
    modes = [module.training for module in net.modules()]
    if fails:
        with pytest.raises(RuntimeError):
            recompute_statistics(net, Failing(batches))
    else:
        recompute_statistics(net, batches)
    assert [module.training for module in net.modules()] == modes
    assert not any(module._forward_pre_hooks for module in net.modules())
    for one, gradient in zip(net.parameters(), gradients, strict=True):
        assert one.requires_grad
        assert torch.equal(one.grad, gradient)
    assert int(net.bn1.num_batches_tracked) == 7
    assert int(net.bn2.num_batches_tracked) == (0 if fails else 3)


def test_flags_and_classes_of_flax(batches):
    net, other = network("flax"), network("flax")
    call = nnx.BatchNorm.__call__
    net.bn1.use_running_average, net.drop.deterministic = None, False
    recompute_statistics(net, batches)
    assert net.bn1.use_running_average is None
    assert net.bn2.use_running_average is False
    assert net.drop.deterministic is False
    assert nnx.BatchNorm.__call__ is call
    np.testing.assert_array_equal(other.bn1.mean[...], 0)


def test_calls_of_keras(batches):
    net = network("keras")
    recompute_statistics(net, batches)
    assert not any("call" in vars(layer) for layer in net.layers)


def test_a_frozen_one_is_recomputed_and_stays_frozen(batches):
    net = network("torch")
    freeze(net)
    recompute_statistics(net, batches)
    assert not net.bn1.training
    wanted = expected(batches, layer_by_layer=False, unbiased=True)
    np.testing.assert_allclose(net.bn2.running_var, wanted[3], rtol=2e-5)


@pytest.mark.parametrize("front", FRONTS)
def test_kinds_of_data(front, batches):
    """All of these are the same data."""
    wanted = expected(batches, layer_by_layer=False, unbiased="torch" in front)
    labels = np.zeros(3)
    kinds = [
        batches,
        iter(batches),
        [(x, labels) for x in batches],
        [[x, labels] for x in batches],
        [torch.tensor(x) for x in batches],
        [jax.numpy.asarray(x) for x in batches],
    ]
    if "keras" not in front:
        kinds.append([{"x": x} for x in batches])
    for data in kinds:
        net = network(front)
        recompute_statistics(net, data)
        for value, right in zip(statistics(net), wanted, strict=True):
            np.testing.assert_allclose(value, right, rtol=2e-5, atol=2e-6)


def test_a_data_loader_and_a_keras_dataset(batches):
    whole = np.concatenate(batches)
    dataset = torch.utils.data.TensorDataset(torch.tensor(whole), torch.zeros(len(whole)))
    net = network("torch")
    loader = torch.utils.data.DataLoader(dataset, batch_size=13)
    recompute_statistics(net, loader, layer_by_layer=True)
    np.testing.assert_allclose(
        statistics(net)[3], expected(batches, layer_by_layer=True, unbiased=True)[3], rtol=2e-5
    )

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return len(batches)

        def __getitem__(self, index):
            return batches[index], np.zeros(len(batches[index]))

    net = network("keras")
    recompute_statistics(net, Batches())
    wanted = expected(batches, layer_by_layer=False, unbiased=False)
    np.testing.assert_allclose(statistics(net)[3], wanted[3], rtol=2e-5)


def test_shared_and_nested_layers_of_keras(rng):
    norm = keras.layers.BatchNormalization(name="shared")
    inner_input = keras.Input((4,))
    inner = keras.Model(inner_input, norm(inner_input), name="inner")
    one, other = keras.Input((4,), name="one"), keras.Input((4,), name="other")
    model = keras.Model([one, other], keras.layers.Add()([inner(one), inner(other)]))
    x, y = (rng.normal(k, k, size=(9, 4)).astype("float32") for k in (1, 3))
    for batch in ([x, y], {"one": x, "other": y}, ([x, y], np.zeros(9))):
        norm.moving_mean.assign(np.zeros(4))
        report = recompute_statistics(model, [batch])
        assert [(row.name, row.count) for row in report.recomputed] == [("inner.shared", 18)]
        both = np.concatenate([x, y])
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(norm.moving_mean), both.mean(0), rtol=1e-5
        )
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(norm.moving_variance), both.var(0), rtol=1e-5
        )


@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_shared_in_torch_and_in_flax(rng, layer_by_layer):
    x = rng.normal(2, 3, size=(9, 4)).astype("float32")
    norm = torch.nn.BatchNorm1d(4, affine=False)
    model = torch.nn.Sequential(norm, norm)
    recompute_statistics(model, [x], layer_by_layer=layer_by_layer)
    both = np.concatenate([x, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)])
    np.testing.assert_allclose(norm.running_mean, both.mean(0), rtol=1e-5)
    flax = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    recompute_statistics(nnx.Sequential(flax, flax), [x], layer_by_layer=layer_by_layer)
    np.testing.assert_allclose(flax.var[...], both.var(0), rtol=1e-5)


def test_masks_count(rng):
    x = rng.normal(2, 3, size=(4, 5, 3)).astype("float32")
    x[0, 2:] = 0
    inputs = keras.Input((5, 3))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(inputs, norm(keras.layers.Masking()(inputs)))
    report = recompute_statistics(model, [x])
    there = x.reshape(-1, 3)[(x != 0).any(-1).reshape(-1)]
    assert report.recomputed[0].count == 17 == len(there)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(norm.moving_mean), there.mean(0), rtol=1e-5
    )
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(norm.moving_variance), there.var(0), rtol=1e-5
    )

    class Masked(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

        def __call__(self, x, mask):
            return self.norm(x, use_running_average=False, mask=mask)

    masked = Masked()
    recompute_statistics(masked, [{"x": x, "mask": (x != 0).any(-1, keepdims=True)}])
    np.testing.assert_allclose(masked.norm.var[...], there.var(0), rtol=1e-5)


def test_a_mask_that_the_layer_ignores(rng):
    x = rng.normal(2, 3, size=(4, 5, 3)).astype("float32")
    x[0, 2:] = 0
    inputs = keras.Input((5, 3))
    norm = truenorm.BatchNormalization(use_mask=False)
    model = keras.Model(inputs, norm(keras.layers.Masking()(inputs)))
    assert recompute_statistics(model, [x]).recomputed[0].count == 20
    mean = keras.ops.convert_to_numpy(norm.moving_mean)
    np.testing.assert_allclose(mean, x.mean((0, 1)), rtol=1e-5)


@pytest.mark.parametrize("home", [keras.layers, truenorm], ids=["keras", "truenorm"])
def test_renorm_trains_on_from_the_new_statistics(home, rng):
    try:
        norm = home.BatchNormalization(renorm=True, momentum=0.5, renorm_momentum=0.5)
    except (TypeError, ValueError):
        pytest.skip("this Keras has no renorm")
    x = rng.normal(2, 3, size=(40, 3)).astype("float32")
    norm.build(x.shape)
    recompute_statistics(norm, [x[:20], x[20:]])
    wanted = norm.get_weights()[2:]
    deviation = np.sqrt(x.var(0) + norm.epsilon)
    for one, other in zip(
        wanted, (x.mean(0), x.var(0), deviation, x.mean(0), deviation), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    norm(x, training=True)  # of the same data: everything stays
    for one, other in zip(norm.get_weights()[2:], wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_what_is_left(batches):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used = torch.nn.BatchNorm1d(IN)
            self.idle = torch.nn.BatchNorm1d(IN)
            self.without = torch.nn.BatchNorm1d(IN, track_running_stats=False)

        def forward(self, x):
            return self.without(self.used(x))

    net = Net()
    for layer_by_layer in (False, True):
        report = recompute_statistics(net, batches, layer_by_layer=layer_by_layer)
        assert [one.name for one in report.recomputed] == ["used"]
        assert dict(report.left) == {
            "without": "it keeps no statistics",
            "idle": "the model did not call it",
        }
        assert "idle: left as it was: the model did not call it" in str(report)
        assert not net.idle.running_mean.any()


def test_a_compiled_model_of_torch(batches):
    net = network("torch")
    model = torch.compile(net, backend="eager")
    recompute_statistics(model, batches)
    wanted = expected(batches, layer_by_layer=False, unbiased=True)
    np.testing.assert_allclose(statistics(net)[3], wanted[3], rtol=2e-5)


class Residual(torch.nn.BatchNorm1d):
    """With the arguments that truenorm's own has."""

    unbiased, axis = False, 2

    def forward(self, input, mask=None, residual=None):
        y = super().forward((input + residual).movedim(2, 1))
        return y.movedim(1, 2)


def test_residual_mask_axis_and_unbiased(rng):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = Residual(3)

        def forward(self, x, mask):
            return self.norm(x, mask, residual=2 * x)

    x, mask = rng.normal(size=(4, 5, 3)).astype("float32"), rng.random((4, 5)) < 0.5
    net = Net()
    recompute_statistics(net, [{"x": x, "mask": mask}])
    np.testing.assert_allclose(net.norm.running_mean, 3 * x[mask].mean(0), rtol=1e-5)
    np.testing.assert_allclose(net.norm.running_var, 9 * x[mask].var(0), rtol=1e-5)


def test_several_axes(rng):
    from truenorm.tools.statistics.moments import moments

    x, mask = rng.normal(size=(4, 5, 3, 2)), rng.random((4, 5)) < 0.5
    found = moments(x, [-1, 1])
    np.testing.assert_allclose(found.mean, x.mean((0, 2)).reshape(-1))
    np.testing.assert_allclose(found.variance(), x.var((0, 2)).reshape(-1))
    found = moments(x, [1, 3], mask)
    there = np.where(mask[..., None, None], x, np.nan)
    wanted = np.nan_to_num(np.nanmean(there[:, mask.any(0)], (0, 2)))
    np.testing.assert_allclose(found.mean.reshape(5, 2)[mask.any(0)], wanted)


class Inlined(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(IN)

    def forward(self, x):
        return x - self.norm.running_mean


ERRORS = {
    "no normalization": (lambda x: (torch.nn.Linear(6, 2), [x], {}), InputError, "has no batch"),
    "no model": (lambda x: (lambda y: y, [x], {}), TypeError, "expected a model of torch.nn"),
    "nothing": (lambda x: (network("torch"), [], {}), InputError, "data has no batches"),
    "nothing to order": (
        lambda x: (network("torch"), [], {"layer_by_layer": True}), InputError, "has no batches",
    ),
    "an array": (lambda x: (network("torch"), x, {}), InputError, "pass a list of batches"),
    "a number": (lambda x: (network("torch"), 3, {}), TypeError, "expected an iterable"),
    "a dict": (lambda x: (network("torch"), {"x": x}, {}), TypeError, "expected an iterable"),
    "words": (lambda x: (network("torch"), ["one"], {}), TypeError, "a batch of data is 'one'"),
    "words to flax": (lambda x: (network("flax"), ["one"], {}), TypeError, "a batch of data is"),
    "words to Keras": (lambda x: (network("keras"), ["one"], {}), TypeError, "a batch of data is"),
    "scalars": (lambda x: (network("torch"), [np.float32(1)], {}), TypeError, "a batch of data"),
    "once": (
        lambda x: (network("flax"), iter([x]), {"layer_by_layer": True}), InputError, "read once",
    ),
    "no statistics": (
        lambda x: (torch.nn.BatchNorm1d(6, track_running_stats=False), [x], {}),
        InputError, "track_running_stats=True",
    ),
    "not built": (
        lambda x: (keras.Sequential([keras.layers.BatchNormalization()]), [x], {}),
        InputError, "not built",
    ),
    "lazy": (lambda x: (torch.nn.LazyBatchNorm1d(), [x], {}), InputError, "not built"),
    "none called": (lambda x: (Inlined(), [x], {}), InputError, "called none of its batch"),
    "traced": (
        lambda x: (Jitted(), [x], {}), InputError, "jit, vmap, scan or another transformation",
    ),
}  # fmt: skip


class Jitted(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(IN, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return nnx.jit(lambda norm, x: norm(x))(self.norm, x)


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case, batches):
    make, kind, message = ERRORS[case]
    model, data, options = make(batches[0])
    with pytest.raises(kind, match=message):
        recompute_statistics(model, data, **options)


def test_averaged_weights():
    """The average of two networks has the statistics of neither: new ones make it right again."""
    from sklearn.datasets import load_digits

    x, labels = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    train, test = slice(0, 1400), slice(1400, None)

    def trained(seed, start=None, epochs=4):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input((64,))])
        for _ in range(3):
            model.add(keras.layers.Dense(48, use_bias=False))
            model.add(keras.layers.BatchNormalization())
            model.add(keras.layers.ReLU())
        model.add(keras.layers.Dense(10))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.5, momentum=0.8), loss)
        if start is not None:
            model.set_weights(start.get_weights())
        model.fit(x[train], labels[train], batch_size=32, epochs=epochs, verbose=0)
        return model

    def accuracy(model):
        return (output(model, x[test]).argmax(1) == labels[test]).mean()

    start = trained(0, epochs=1)
    one, other = trained(1, start), trained(2, start)
    both = zip(one.get_weights(), other.get_weights(), strict=True)
    one.set_weights([(a + b) / 2 for a, b in both])
    stale = accuracy(one)
    data = [x[i : i + 100] for i in range(0, 1400, 100)]
    recompute_statistics(one, data, layer_by_layer=True)
    right = accuracy(one)
    assert right > 0.9
    assert right > stale + 0.02, (stale, right)


def test_the_page(capsys):
    run_examples("docs/statistics.md")
    printed = capsys.readouterr().out
    text = (ROOT / "docs/statistics.md").read_text(encoding="utf-8")
    reports = re.findall(r"```text\n(.*?)```", text, re.S)
    assert printed.splitlines()[0] == reports[0].splitlines()[0]  # after it come random numbers
    assert printed.endswith("".join(reports[1:]))
    assert len(reports) == 3
