"""`freeze`: training does not move the statistics, gradients flow, and copies stay frozen."""

import copy
import io
import pickle

import keras
import numpy as np
import pytest

from batch_networks import FRONTS, IN, OUT, layer, network, output, statistics
from truenorm import freeze
from truenorm.core.errors import InputError

pytest.importorskip("flax")
import jax
import torch
from flax import nnx


@pytest.fixture
def x(rng):
    return rng.normal(1, 2, size=(16, IN)).astype("float32")


def train(net, x):
    """A step of training; returns the gradient of the input where a framework gives it."""
    cotangent = np.random.default_rng(5).normal(size=(len(x), OUT)).astype("float32")
    if isinstance(net, keras.Model):
        net.compile(keras.optimizers.SGD(0.1), "mean_squared_error")
        net.fit(x, cotangent, verbose=0)
    elif isinstance(net, torch.nn.Module):
        net.train().zero_grad()
        inputs = torch.tensor(x, requires_grad=True)
        (net(inputs) * torch.tensor(cotangent)).sum().backward()
        with torch.no_grad():
            for one in net.parameters():
                one -= 0.1 * one.grad if one.grad is not None else 0
        return inputs.grad.numpy()
    else:

        def loss(net, x):
            return (net(x) * cotangent).sum()

        gradients, of_x = nnx.grad(loss, argnums=(0, 1))(net, jax.numpy.asarray(x))
        state = nnx.state(net, nnx.Param)
        nnx.update(net, jax.tree.map(lambda a, b: a - 0.1 * b, state, gradients))
        return np.array(of_x)
    return None


def affine(net):
    """gamma and beta of the first."""
    one = layer(net, "bn1")
    if isinstance(one, keras.layers.Layer):
        return [np.array(keras.ops.convert_to_numpy(value)) for value in (one.gamma, one.beta)]
    if isinstance(one, torch.nn.Module):
        return [value.detach().numpy().copy() for value in (one.weight, one.bias)]
    return [np.array(value[...]) for value in (one.scale, one.bias)]


def moved(before, after):
    return [not np.array_equal(one, other) for one, other in zip(before, after, strict=True)]


@pytest.mark.parametrize("with_affine", [True, False])
@pytest.mark.parametrize("front", FRONTS)
def test_training_moves_no_statistics(front, with_affine, x):
    net = network(front)
    train(net, x)
    report = freeze(net, affine=with_affine)
    assert [name for name, _, _ in report.done] == ["bn1", "bn2"]
    assert "2 batch normalizations frozen" in str(report)
    before, learned = statistics(net), affine(net)
    gradient = train(net, x)
    assert not any(moved(before, statistics(net)))
    assert gradient is None or np.abs(gradient).max() > 1e-3
    assert any(moved(learned, affine(net))) == (
        with_affine and front not in ("keras", "keras subclassed")
    )
    report = freeze(net, False, affine=with_affine)
    assert "2 batch normalizations thawed" in str(report)
    if "flax" in front:
        assert isinstance(net.bn1.scale, nnx.Param)
    train(net, x)
    assert all(moved(before, statistics(net)))
    assert all(moved(learned, affine(net)))


@pytest.mark.parametrize("front", ["torch", "flax", "truenorm torch", "truenorm flax"])
def test_gradients_are_those_of_the_moving_statistics(front, x):
    """The derivative of the outputs with moving statistics, by differences."""
    net = network(front)
    train(net, x)
    freeze(net)
    if "torch" in front:
        net.drop.eval()
        net.drop.p = 0.0
    else:
        net.drop.deterministic = True
    other = copy.deepcopy(net)
    gradient = train(net, x)
    cotangent = np.random.default_rng(5).normal(size=(len(x), OUT)).astype("float32")
    if "torch" in front:
        other.eval()
    step = np.zeros_like(x)
    step[3] = 1e-2
    difference = ((output(other, x + step) - output(other, x - step)) * cotangent).sum() / 2e-2
    assert gradient[3].sum() == pytest.approx(difference, rel=2e-2)


def copies():
    def saved(net):
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    return {
        "as it is": lambda net: net,
        "deepcopy": copy.deepcopy,
        "pickle": lambda net: pickle.loads(pickle.dumps(net)),
        "torch.save": saved,
    }


@pytest.mark.parametrize("how", copies())
def test_copies_of_torch_stay_frozen(how, x):
    net = network("torch")
    keys, first = list(net.state_dict()), net.bn1
    freeze(net)
    assert net.bn1 is first
    assert list(net.state_dict()) == keys
    assert isinstance(net.bn1, torch.nn.BatchNorm1d)
    made = copies()[how](net)
    before = statistics(made)
    train(made, x)
    assert made.training
    assert not made.bn1.training
    assert made.linear1.training
    assert not any(moved(before, statistics(made)))
    assert all(one.weight.grad is not None for one in (made.bn1, made.bn2))
    freeze(made, False)
    assert type(made.bn1) is torch.nn.BatchNorm1d
    train(made, x)
    assert all(moved(before, statistics(made)))


def test_twice_is_once():
    net = network("torch")
    freeze(net)
    kind = type(net.bn1)
    freeze(net)
    assert type(net.bn1) is kind
    assert kind.__name__ == "FrozenBatchNorm1d"
    freeze(net, False)
    freeze(net, False)
    assert type(net.bn1) is torch.nn.BatchNorm1d


def test_a_subclass_keeps_what_it_does(x):
    class Louder(torch.nn.BatchNorm1d):
        def forward(self, x):
            return 10 * super().forward(x)

    norm = Louder(IN)
    freeze(norm)
    norm.train()
    x = torch.tensor(x)
    torch.testing.assert_close(norm(x), 10 * x / np.sqrt(1 + 1e-5))
    assert not norm.running_mean.any()


def test_a_compiled_model_of_keras_forgets_its_steps(x):
    net = network("keras")
    y = np.zeros((len(x), OUT), "float32")
    net.compile("sgd", "mean_squared_error")
    net.fit(x, y, verbose=0)
    freeze(net)
    before = statistics(net)
    net.compile("sgd", "mean_squared_error")
    net.fit(x, y, verbose=0)
    assert not any(moved(before, statistics(net)))


def test_an_attribute_frozen_of_our_own_is_set():
    """A layer of truenorm's has a switch of its own, and keeps gamma and beta trainable."""

    class BatchNormalization(keras.layers.BatchNormalization):
        frozen = False

    BatchNormalization.__module__ = "truenorm.layers.batch_normalization"
    norm = BatchNormalization()
    norm.build((None, 4))
    freeze(norm)
    assert norm.frozen
    assert norm.trainable
    freeze(norm, affine=False)
    assert not norm.trainable
    freeze(norm, False, affine=False)
    assert norm.trainable
    assert not norm.frozen

    class BatchNorm1d(torch.nn.BatchNorm1d):
        frozen = False

    BatchNorm1d.__module__ = "truenorm.torch.modules"
    norm = BatchNorm1d(4)
    freeze(norm)
    assert norm.frozen
    assert type(norm) is BatchNorm1d


def test_the_switch_is_all_that_is_set_in_flax(x):
    """So that what `eval()` set stays, and `train()` does not thaw it."""
    net = network("truenorm flax")
    net.eval()
    freeze(net)
    freeze(net, False)
    assert net.bn1.use_running_average
    freeze(net)
    net.train()
    before = statistics(net)
    train(net, x)
    assert not any(moved(before, statistics(net)))


def test_what_is_left():
    net = torch.nn.Sequential(
        torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3, track_running_stats=False)
    )
    report = freeze(net)
    assert report.left == (("1", "it keeps no statistics"),)
    assert "1: left as it was: it keeps no statistics" in str(report)
    net.train()
    assert [one.training for one in net] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((torch.nn.Linear(2, 2),), InputError, "has no batch normalization"),
        ((3,), TypeError, "expected a model of torch.nn"),
        ((torch.nn.BatchNorm1d(2), 1), TypeError, "frozen=1; expected True or False"),
        ((keras.layers.BatchNormalization(),), InputError, "not built"),
    ],
)
def test_errors(arguments, kind, message):
    with pytest.raises(kind, match=message):
        freeze(*arguments)
