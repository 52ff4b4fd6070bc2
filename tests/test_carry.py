"""`carry`: the same outputs in another framework, and errors that change nothing."""

import keras
import numpy as np
import pytest

import truenorm
from truenorm import carry

pytest.importorskip("flax")
import jax
import torch
from flax import nnx

TOLERANCE = 1e-5
N, H, W, C = 2, 6, 5, 8
EPSILON = 0.037
WAYS = [
    *((one, other) for one in ("torch", "flax", "keras") for other in ("torch", "flax", "keras")),
    *(("truenorm.torch", other) for other in ("torch", "keras", "truenorm")),
    *(("truenorm", other) for other in ("torch", "flax", "keras")),
    *(("torch", "truenorm.torch"), ("keras", "truenorm"), ("flax", "truenorm.torch")),
]
KINDS = ("batch", "layer", "layer of three axes", "instance", "group", "rms", "frn")
RNG = nnx.Rngs(0)


def of_torch(kind, home=torch.nn, **options):
    """The normalization in torch, of (N, C, H, W)."""
    return {
        "batch": lambda: torch.nn.BatchNorm2d(C, **options),
        "layer": lambda: home.LayerNorm(C, **options),
        "layer of three axes": lambda: home.LayerNorm((C, H, W), **options),
        "instance": lambda: home.InstanceNorm2d(C, affine=True, **options),
        "group": lambda: home.GroupNorm(4, C, **options),
        "rms": lambda: home.RMSNorm(C, **options),
        "frn": lambda: truenorm.torch.FilterResponseNorm(C, **options),
    }[kind]()


def of_flax(kind, **options):
    """The normalization in flax, of (N, H, W, C)."""
    axes = {"reduction_axes": (1, 2, 3), "feature_axes": (1, 2, 3)}
    return {
        "batch": lambda: nnx.BatchNorm(C, use_running_average=True, rngs=RNG, **options),
        "layer": lambda: nnx.LayerNorm(C, rngs=RNG, **options),
        "layer of three axes": lambda: nnx.LayerNorm(H * W * C, rngs=RNG, **axes, **options),
        "instance": lambda: nnx.InstanceNorm(C, rngs=RNG, **options),
        "group": lambda: nnx.GroupNorm(C, 4, rngs=RNG, **options),
        "rms": lambda: nnx.RMSNorm(C, rngs=RNG, **options),
    }[kind]()


def of_keras(kind, home=keras.layers, **options):
    """The normalization in Keras, built for (N, H, W, C)."""
    layer = {
        "batch": lambda: keras.layers.BatchNormalization(**options),
        "layer": lambda: home.LayerNormalization(**options),
        "layer of three axes": lambda: home.LayerNormalization(axis=[1, 2, 3], **options),
        "instance": lambda: truenorm.InstanceNormalization(**options),
        "group": lambda: home.GroupNormalization(groups=4, **options),
        "rms": lambda: home.RMSNormalization(**options),
        "frn": lambda: truenorm.FilterResponseNormalization(**options),
    }[kind]()
    layer.build((None, H, W, C))
    return layer


def make(front, kind, epsilon=None):
    options = {} if epsilon is None else {"eps" if "torch" in front else "epsilon": epsilon}
    if "torch" in front:
        return of_torch(kind, truenorm.torch if "truenorm" in front else torch.nn, **options).eval()
    if front == "flax":
        return of_flax(kind, **options)
    return of_keras(kind, truenorm if "truenorm" in front else keras.layers, **options)


def variables(module):
    """All that a module learns or averages, as the framework has it, by name."""
    if isinstance(module, keras.Layer):
        return {one.path: one for one in module.weights}
    if isinstance(module, torch.nn.Module):
        return {name: one for name, one in module.state_dict().items() if one.is_floating_point()}
    kept = nnx.Param, nnx.BatchStat
    return {str(path): one for path, one in nnx.iter_graph(module) if isinstance(one, kept)}


def numpy(value):
    if isinstance(value, nnx.Variable):
        return np.array(value[...])
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    return np.array(keras.ops.convert_to_numpy(value))


def randomize(module, rng):
    for one in variables(module).values():
        value = rng.uniform(0.5, 2, one.shape).astype("float32")
        if isinstance(one, keras.Variable):
            one.assign(value)
        elif isinstance(one, torch.Tensor):
            one.copy_(torch.tensor(value))
        else:
            one[...] = jax.numpy.asarray(value)


def snapshot(module):
    """Everything that carry may change, of a module or a model."""
    values = {name: numpy(one) for name, one in variables(module).items()}
    if isinstance(module, torch.nn.Module) and not isinstance(module, keras.Layer):
        parts = module.modules()
    elif isinstance(module, keras.Layer):
        parts = module._flatten_layers()
    else:
        parts = (one for _, one in nnx.iter_modules(module))
    names = ("eps", "epsilon", "momentum")
    return values, [[getattr(one, name, None) for name in names] for one in parts]


def unchanged(before, module):
    now = snapshot(module)
    return now[1] == before[1] and all((now[0][key] == before[0][key]).all() for key in before[0])


def output(module, x, kind=None):
    """Of x (N, H, W, C), whatever layout the module takes."""
    if isinstance(module, keras.Layer):
        return numpy(module(x))
    if not isinstance(module, torch.nn.Module):
        return np.array(module(jax.numpy.asarray(x)))
    with torch.no_grad():
        if kind in ("layer", "rms"):  # over the last axis, where the channels are in any layout
            return numpy(module(torch.tensor(x)))
        y = numpy(module(torch.tensor(x.transpose(0, 3, 1, 2))))
    return y.transpose(0, 2, 3, 1) if y.ndim == 4 else y


def layout_between(source, target):
    """What has to be said of three axes: flax has one for all of them."""
    if "flax" in (source, target) and "torch" in source + target:
        return "last to first" if "torch" in target else "first to last"
    return None


def has(front, kind):
    return kind != "frn" or front != "flax"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("source", "target"), WAYS, ids=" to ".join)
def test_outputs_agree(source, target, kind, rng):
    if not (has(source, kind) and has(target, kind)):
        pytest.skip("flax has none")
    one, other = make(source, kind, EPSILON), make(target, kind)
    randomize(one, rng)
    before = snapshot(one)
    report = carry(one, other, layout=layout_between(source, target))
    assert unchanged(before, one)
    assert report.carried[0].epsilons[1] == EPSILON
    x = rng.normal(0.5, 0.2, (N, H, W, C)).astype("float32")
    np.testing.assert_allclose(
        output(other, x, kind), output(one, x, kind), atol=TOLERANCE, rtol=TOLERANCE
    )


# --- A network of three layers ---------------------------------------------------------------


class Torch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, C, 3, padding=1)
        self.norm1 = torch.nn.GroupNorm(4, C)
        self.conv2 = torch.nn.Conv2d(C, C, 3, padding=1)
        self.norm2 = torch.nn.LayerNorm((C, H, W))
        self.dense = torch.nn.Linear(C, 4)
        self.norm3 = torch.nn.RMSNorm(4)

    def forward(self, x):
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.norm3(self.dense(x.mean((2, 3))))


class Flax(nnx.Module):
    def __init__(self):
        self.conv1 = nnx.Conv(3, C, (3, 3), rngs=RNG)
        self.norm1 = nnx.GroupNorm(C, 4, rngs=RNG)
        self.conv2 = nnx.Conv(C, C, (3, 3), rngs=RNG)
        self.norm2 = of_flax("layer of three axes")
        self.dense = nnx.Linear(C, 4, rngs=RNG)
        self.norm3 = nnx.RMSNorm(4, rngs=RNG)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = nnx.relu(self.norm2(self.conv2(x)))
        return self.norm3(self.dense(x.mean((1, 2))))


def keras_network():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((H, W, 3)),
            layers.Conv2D(C, 3, padding="same", name="conv1"),
            layers.GroupNormalization(4, name="norm1"),
            layers.ReLU(),
            layers.Conv2D(C, 3, padding="same", name="conv2"),
            layers.LayerNormalization(axis=[1, 2, 3], name="norm2"),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, name="dense"),
            layers.RMSNormalization(name="norm3"),
        ]
    )


NETWORKS = {"torch": Torch, "flax": Flax, "keras": keras_network}
OTHERS = ("conv1", "conv2", "dense")


def trained(front, x, y):
    """A network after some steps of its framework's own training."""
    network = NETWORKS[front]()
    if front == "torch":
        optimizer = torch.optim.SGD(network.parameters(), 0.2)
        for _ in range(5):
            optimizer.zero_grad()
            loss = ((network(torch.tensor(x.transpose(0, 3, 1, 2))) - torch.tensor(y)) ** 2).mean()
            loss.backward()
            optimizer.step()
    elif front == "flax":
        step = nnx.jit(nnx.grad(lambda network: ((network(x) - y) ** 2).mean()))
        for _ in range(5):
            gradients = step(network)
            state = nnx.state(network, nnx.Param)
            nnx.update(network, jax.tree.map(lambda a, b: a - 0.2 * b, state, gradients))
    else:
        network.compile(keras.optimizers.SGD(0.2), "mse")
        network.fit(x, y, batch_size=len(x), epochs=5, verbose=0)
    return network


def others(network):
    """The kernels (H, W, in, out) or (in, out) and biases of what is no normalization."""
    for name in OTHERS:
        if isinstance(network, keras.Layer):
            layer = network.get_layer(name)
            yield name, numpy(layer.kernel), numpy(layer.bias)
        elif isinstance(network, torch.nn.Module):
            layer = getattr(network, name)
            weight = numpy(layer.weight)
            yield (
                name,
                weight.transpose((2, 3, 1, 0)[-weight.ndim :]) if weight.ndim > 2 else (weight.T),
                numpy(layer.bias),
            )
        else:
            layer = getattr(network, name)
            yield name, numpy(layer.kernel), numpy(layer.bias)


def set_others(network, values):
    for name, kernel, bias in values:
        if isinstance(network, keras.Layer):
            network.get_layer(name).set_weights([kernel, bias])
        elif isinstance(network, torch.nn.Module):
            layer = getattr(network, name)
            axes = (3, 2, 0, 1) if kernel.ndim > 2 else (1, 0)
            with torch.no_grad():
                layer.weight.copy_(torch.tensor(kernel.transpose(axes)))
                layer.bias.copy_(torch.tensor(bias))
        else:
            layer = getattr(network, name)
            layer.kernel[...], layer.bias[...] = map(jax.numpy.asarray, (kernel, bias))


@pytest.mark.parametrize("target", NETWORKS)
@pytest.mark.parametrize("source", NETWORKS)
def test_a_trained_network(source, target, rng):
    x = rng.normal(size=(16, H, W, 3)).astype("float32")
    y = rng.normal(size=(16, 4)).astype("float32")
    network, other = trained(source, x, y), NETWORKS[target]()
    assert np.ptp(numpy(next(iter(variables(carried_alone(network)).values())))) > 0
    set_others(other, others(network))
    wanted = output(network, x)
    assert source == target or abs(output(other, x) - wanted).max() > 100 * TOLERANCE
    report = carry(network, other, layout=layout_between(source, target))
    assert report.paired == "by name"
    assert [one.source for one in report.carried] == ["norm1", "norm2", "norm3"]
    np.testing.assert_allclose(output(other, x), wanted, atol=TOLERANCE, rtol=TOLERANCE)


def carried_alone(network):
    """One of its normalizations, whose parameters training has moved."""
    return network.get_layer("norm1") if isinstance(network, keras.Layer) else network.norm1
