"""One small network with two batch normalizations in each framework, and its numbers in NumPy.

Its normalizations are the framework's own, or truenorm's.
"""

import keras
import numpy as np
import pytest

pytest.importorskip("flax")
import jax
import torch
from flax import nnx

import truenorm
import truenorm.flax
import truenorm.torch

OURS = ("truenorm torch", "truenorm keras", "truenorm flax")
FRONTS = ("torch", "keras", "keras subclassed", "flax", *OURS)
IN, HIDDEN, OUT, EPSILON = 6, 5, 4, 0.01


def parameters():
    """Kernels and gammas and betas of the two layers."""
    rng = np.random.default_rng(1)
    return [
        (
            rng.normal(size=(a, b)).astype("float32"),
            rng.uniform(0.5, 2, b).astype("float32"),
            rng.normal(size=b).astype("float32"),
        )
        for a, b in ((IN, HIDDEN), (HIDDEN, OUT))
    ]


class TorchNet(torch.nn.Module):
    """Linear, batch normalization, ReLU, dropout, linear, batch normalization."""

    def __init__(self, home=torch.nn):
        super().__init__()
        self.linear1 = torch.nn.Linear(IN, HIDDEN, bias=False)
        self.bn1 = home.BatchNorm1d(HIDDEN, eps=EPSILON)
        self.drop = torch.nn.Dropout(0.5)
        self.linear2 = torch.nn.Linear(HIDDEN, OUT, bias=False)
        self.bn2 = home.BatchNorm1d(OUT, eps=EPSILON)

    def forward(self, x):
        x = self.drop(torch.relu(self.bn1(self.linear1(x))))
        return self.bn2(self.linear2(x))


class FlaxNet(nnx.Module):
    """The same in flax."""

    def __init__(self, home=nnx):
        rngs = nnx.Rngs(0)
        self.linear1 = nnx.Linear(IN, HIDDEN, use_bias=False, rngs=rngs)
        self.bn1 = home.BatchNorm(HIDDEN, epsilon=EPSILON, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.linear2 = nnx.Linear(HIDDEN, OUT, use_bias=False, rngs=rngs)
        self.bn2 = home.BatchNorm(OUT, epsilon=EPSILON, rngs=rngs)

    def __call__(self, x):
        x = self.drop(nnx.relu(self.bn1(self.linear1(x))))
        return self.bn2(self.linear2(x))


def keras_layers(home=keras.layers):
    """The same layers in Keras."""
    return {
        "linear1": keras.layers.Dense(HIDDEN, use_bias=False, name="linear1"),
        "bn1": home.BatchNormalization(epsilon=EPSILON, name="bn1"),
        "relu": keras.layers.ReLU(name="relu"),
        "drop": keras.layers.Dropout(0.5, name="drop"),
        "linear2": keras.layers.Dense(OUT, use_bias=False, name="linear2"),
        "bn2": home.BatchNormalization(epsilon=EPSILON, name="bn2"),
    }


class KerasNet(keras.Model):
    """The same as a subclassed model."""

    def __init__(self):
        super().__init__()
        self.parts = keras_layers()

    def call(self, x, training=None):
        for layer in self.parts.values():
            x = layer(x, training=training)
        return x


def network(front):
    """The network, with `parameters()`, in training mode where there is one."""
    ours = front in OURS
    if "torch" in front:
        net = TorchNet(truenorm.torch if ours else torch.nn)
        with torch.no_grad():
            for number, (kernel, gamma, beta) in enumerate(parameters(), 1):
                getattr(net, f"linear{number}").weight.copy_(torch.tensor(kernel.T))
                getattr(net, f"bn{number}").weight.copy_(torch.tensor(gamma))
                getattr(net, f"bn{number}").bias.copy_(torch.tensor(beta))
        return net
    if "flax" in front:
        net = FlaxNet(truenorm.flax if ours else nnx)
        for number, (kernel, gamma, beta) in enumerate(parameters(), 1):
            getattr(net, f"linear{number}").kernel[...] = jax.numpy.asarray(kernel)
            getattr(net, f"bn{number}").scale[...] = jax.numpy.asarray(gamma)
            getattr(net, f"bn{number}").bias[...] = jax.numpy.asarray(beta)
        return net
    if front != "keras subclassed":
        layers = keras_layers(truenorm if ours else keras.layers)
        net = keras.Sequential([keras.Input((IN,)), *layers.values()])
    else:
        net = KerasNet()
        net(np.ones((1, IN), "float32"))
    for number, (kernel, gamma, beta) in enumerate(parameters(), 1):
        layer(net, f"linear{number}").kernel.assign(kernel)
        layer(net, f"bn{number}").gamma.assign(gamma)
        layer(net, f"bn{number}").beta.assign(beta)
    return net


def layer(net, name):
    """A layer of the network."""
    if isinstance(net, KerasNet):
        return net.parts[name]
    return net.get_layer(name) if isinstance(net, keras.Model) else getattr(net, name)


def statistics(net):
    """Mean and variance of both batch normalizations."""
    result = []
    for one in (layer(net, "bn1"), layer(net, "bn2")):
        if isinstance(one, keras.layers.Layer):
            pair = (one.moving_mean, one.moving_variance)
            result += [np.array(keras.ops.convert_to_numpy(value)) for value in pair]
        elif isinstance(one, torch.nn.Module):
            result += [one.running_mean.numpy().copy(), one.running_var.numpy().copy()]
        else:
            result += [np.array(one.mean[...]), np.array(one.var[...])]
    return result


def output(net, x):
    """The network's result in inference, as an array."""
    if isinstance(net, keras.layers.Layer):
        return np.array(keras.ops.convert_to_numpy(net(x, training=False)))
    if isinstance(net, torch.nn.Module):
        with torch.no_grad():
            return net(torch.as_tensor(x)).numpy()
    return np.array(net(jax.numpy.asarray(x)))


def normalized(x, mean, variance, gamma, beta):
    """Batch normalization."""
    return (x - mean) / np.sqrt(variance + EPSILON) * gamma + beta


def expected(batches, *, layer_by_layer, unbiased):
    """The statistics that both batch normalizations must have, in float64."""
    (kernel1, gamma, beta), (kernel2, _, _) = parameters()
    first = [x.astype("float64") @ kernel1 for x in batches]
    every = np.concatenate(first)
    mean, variance = every.mean(0), every.var(0, ddof=int(unbiased))
    second = []
    for x in first:
        used = (mean, variance) if layer_by_layer else (x.mean(0), x.var(0))
        second.append(np.maximum(normalized(x, *used, gamma, beta), 0) @ kernel2)
    last = np.concatenate(second)
    return [mean, variance, last.mean(0), last.var(0, ddof=int(unbiased))]
