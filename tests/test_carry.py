"""`carry`: the same outputs in another framework, and errors that change nothing."""

import importlib.util

import keras
import numpy as np
import pytest

import truenorm
from test_pages import ROOT, run_examples
from truenorm import carry
from truenorm.core.errors import InputError

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
    *((one, "truenorm.flax") for one in ("torch", "flax", "keras")),
    *(("truenorm.flax", other) for other in ("torch", "flax", "keras")),
]
if importlib.util.find_spec("truenorm.flax") is None:
    WAYS = [way for way in WAYS if "truenorm.flax" not in way]
KINDS = ("batch", "layer", "layer of three axes", "instance", "group", "rms", "frn")
RNG = nnx.Rngs(0)


def of_torch(kind, home=torch.nn, **options):
    """The normalization in torch, of (N, C, H, W)."""
    return {
        "batch": lambda: home.BatchNorm2d(C, **options),
        "layer": lambda: home.LayerNorm(C, **options),
        "layer of three axes": lambda: home.LayerNorm((C, H, W), **options),
        "instance": lambda: home.InstanceNorm2d(C, affine=True, **options),
        "group": lambda: home.GroupNorm(4, C, **options),
        "rms": lambda: home.RMSNorm(C, **options),
        "frn": lambda: truenorm.torch.FilterResponseNorm(C, **options),
    }[kind]()


def of_flax(kind, home=nnx, **options):
    """The normalization in flax, of (N, H, W, C)."""
    axes = {"reduction_axes": (1, 2, 3), "feature_axes": (1, 2, 3)}
    return {
        "batch": lambda: home.BatchNorm(C, use_running_average=True, rngs=RNG, **options),
        "layer": lambda: home.LayerNorm(C, rngs=RNG, **options),
        "layer of three axes": lambda: home.LayerNorm(H * W * C, rngs=RNG, **axes, **options),
        "instance": lambda: home.InstanceNorm(C, rngs=RNG, **options),
        "group": lambda: home.GroupNorm(C, 4, rngs=RNG, **options),
        "rms": lambda: home.RMSNorm(C, rngs=RNG, **options),
    }[kind]()


def of_keras(kind, home=keras.layers, **options):
    """The normalization in Keras, built for (N, H, W, C)."""
    layer = {
        "batch": lambda: home.BatchNormalization(**options),
        "layer": lambda: home.LayerNormalization(**options),
        "layer of three axes": lambda: home.LayerNormalization(axis=[1, 2, 3], **options),
        "instance": lambda: truenorm.InstanceNormalization(**options),
        "group": lambda: home.GroupNormalization(groups=4, **options),
        "rms": lambda: home.RMSNormalization(**options),
        "frn": lambda: truenorm.FilterResponseNormalization(**options),
    }[kind]()
    layer.build((None, H, W, C))
    return layer


def make(front, kind, epsilon=None, **options):
    if epsilon is not None:
        options["eps" if "torch" in front else "epsilon"] = epsilon
    if "torch" in front:
        return of_torch(kind, truenorm.torch if "truenorm" in front else torch.nn, **options).eval()
    if "flax" in front:
        return of_flax(kind, truenorm.flax if "truenorm" in front else nnx, **options)
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
        return np.array(value.detach().cpu())
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
    if "flax" in source + target and "torch" in source + target:
        return "last to first" if "torch" in target else "first to last"
    return None


@pytest.mark.parametrize(
    ("source", "target", "kind"),
    [(*way, kind) for way in WAYS for kind in KINDS if kind != "frn" or "flax" not in str(way)],
)
def test_outputs_agree(source, target, kind, rng):
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


# --- What is carried, one by one -------------------------------------------------------------


def test_the_report():
    network = Torch()
    assert str(carry(network, keras_network())) == (
        "3 normalizations carried, paired by name\n"
        "  norm1 -> norm1: group (8,), epsilon 0.001 -> 1e-05\n"
        "  norm2 -> norm2: layer (8, 6, 5) -> (6, 5, 8), epsilon 0.001 -> 1e-05, channels moved "
        "from first to last\n"
        "  norm3 -> norm3: rms (4,), epsilon 1e-06 -> 1.1920928955078125e-07"
    )


def test_epsilon_of_the_dtype():
    for dtype, like in (("float32", "float32"), ("bfloat16", "float32"), ("float64", "float64")):
        target = of_torch("rms", eps=0.1)
        report = carry(torch.nn.RMSNorm(C, dtype=getattr(torch, dtype)), target)
        assert target.eps == np.finfo(like).eps
        assert report.carried[0].notes == (() if dtype == "float32" else (f"{dtype} -> float32",))
    target = of_torch("rms")
    assert carry(of_keras("rms"), target).carried[0].epsilons == (None, 1e-6)
    assert target.eps == 1e-6


def test_a_parameter_that_one_side_lacks():
    bare = torch.nn.LayerNorm(C, eps=EPSILON, elementwise_affine=False)
    target = of_flax("layer")
    target.scale[...], target.bias[...] = target.scale[...] + 3, target.bias[...] + 3
    assert carry(bare, target).carried[0].notes == ("gamma set to 1", "beta set to 0")
    assert (numpy(target.scale) == 1).all()
    assert (numpy(target.bias) == 0).all()
    carry(target, bare)  # one and zero need no place
    layer = of_keras("layer", center=False)
    carry(of_torch("layer"), layer)
    target.bias[...] = target.bias[...] + 1
    with pytest.raises(InputError, match=r"the source has a learned beta, .* the target with beta"):
        carry(target, layer)


def test_momentum():
    layer, module = of_keras("batch", momentum=0.97), of_torch("batch", momentum=0.2)
    assert carry(layer, module).carried[0].notes == ("momentum 0.2 -> 0.03",)
    assert module.momentum == 0.03
    flax = of_flax("batch")
    carry(module, flax)
    assert flax.momentum == 0.97
    module.momentum = None
    for target in (flax, layer, of_torch("batch")):
        with pytest.raises(InputError, match="momentum=None averages over all batches"):
            carry(module, target)
    carry(layer, module)
    assert module.momentum == 0.03


def batch_trained(module, batches):
    """Train on batches (N, H, W, C), with the statistics alone; return them."""
    names = {"mean": "moving_mean", "var": "moving_variance"}
    for x in batches:
        if isinstance(module, keras.Layer):
            module(keras.ops.convert_to_tensor(x), training=True)
        elif isinstance(module, torch.nn.Module):
            module.train()(torch.tensor(x.transpose(0, 3, 1, 2)))
            names = {"mean": "running_mean", "var": "running_var"}
        else:
            module(jax.numpy.asarray(x), use_running_average=False)
            names = {"mean": "mean", "var": "var"}
    return [numpy(getattr(module, name)) for name in names.values()]


OURS = ("truenorm.torch", "truenorm", "truenorm.flax")


@pytest.mark.parametrize("target", OURS)
@pytest.mark.parametrize("source", ["torch", "flax", "keras", *OURS])
def test_batch_normalization_trains_on_alike(source, target, rng):
    """With the momentum and the denominator of the variance that the source has."""
    share = {"momentum": 0.3 if "torch" in source else 0.7}
    one, other = make(source, "batch", EPSILON, **share), make(target, "batch")
    batches = rng.normal(2, 3, (5, N, H, W, C)).astype("float32")
    batch_trained(one, batches[:3])
    report = carry(one, other)
    assert report.carried[0].notes[0] == (
        "momentum 0.1 -> 0.3" if "torch" in target else "momentum 0.99 -> 0.7"
    )
    unbiased = "torch" in source
    assert other.unbiased == unbiased
    assert (f"unbiased={unbiased}" in report.carried[0].notes) == (unbiased != ("torch" in target))
    found, wanted = (batch_trained(module, batches[3:]) for module in (other, one))
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCE)


def test_batch_normalization_over_several_axes(rng):
    """Their axes move, those of the statistics too; they are not those of equal size by chance."""
    module, layer = (
        truenorm.torch.BatchNorm2d((C, H), axis=(1, 2)),
        of_keras("batch", truenorm, axis=[1, 3]),
    )
    randomize(module, rng)
    assert "channels moved from first to last" in carry(module, layer).carried[0].notes
    x = rng.normal(size=(N, H, W, C)).astype("float32")
    np.testing.assert_allclose(output(layer, x), output(module.eval(), x), atol=TOLERANCE)
    back = truenorm.torch.BatchNorm2d((C, H), axis=(1, 2)).eval()
    carry(layer, back)
    np.testing.assert_allclose(output(back, x), output(layer, x), atol=TOLERANCE)
    square = truenorm.torch.BatchNorm2d((C, C), affine=False, axis=(1, 2))
    layer = truenorm.BatchNormalization(axis=[1, 3], center=False, scale=False)
    layer.build((None, C, W, C))
    with pytest.raises(InputError, match="in more than one way"):
        carry(square, layer)
    with pytest.raises(InputError, match="the number of axes with parameters: 2 in the source, 1"):
        carry(module, of_keras("batch", truenorm))


def test_batch_normalization_of_other_ranks():
    for cls in (torch.nn.BatchNorm1d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm):
        assert carry(cls(C), of_flax("batch")).carried[0].kind == "batch"
    carry(torch.nn.InstanceNorm3d(C), torch.nn.InstanceNorm1d(C))


def test_moving_statistics_on_one_side():
    bare = torch.nn.BatchNorm2d(C, track_running_stats=False)
    with pytest.raises(InputError, match="the target has a moving mean, and the source has none"):
        carry(bare, of_keras("batch"))
    with pytest.raises(InputError, match="the source has a moving mean, for which the target"):
        carry(of_keras("batch"), bare)
    with pytest.raises(InputError, match="the source has a moving mean, for which the target"):
        carry(torch.nn.InstanceNorm2d(C, track_running_stats=True), of_flax("instance"))
    carry(bare, torch.nn.BatchNorm2d(C, track_running_stats=False))
    layer = of_keras("batch", center=False, scale=False)
    with pytest.raises(InputError, match=r"shape \(9,\) do not fit the target's, \(8,\)"):
        carry(torch.nn.BatchNorm2d(9, affine=False), layer)
    carry(torch.nn.BatchNorm2d(C, affine=False), layer)


def test_groups_of_one_channel_are_instances():
    layer = keras.layers.GroupNormalization(groups=-1)
    layer.build((None, H, W, C))
    carry(torch.nn.InstanceNorm2d(C), layer)
    carry(layer, torch.nn.GroupNorm(C, C))
    carry(nnx.GroupNorm(C, C, rngs=RNG), of_keras("instance"))
    carry(torch.nn.GroupNorm(C, C, affine=False), of_flax("instance"))
    with pytest.raises(InputError, match="names="):
        carry(of_torch("group"), of_flax("instance"))
    with pytest.raises(InputError, match="groups: 4 in the source, 2 in the target"):
        carry(of_torch("group"), nnx.GroupNorm(C, 2, rngs=RNG))


def test_the_learned_epsilon_of_filter_response_normalization(rng):
    with_it = of_keras("frn", learned_epsilon=True)
    with_it.eps_learned.assign([-0.25])
    target = of_torch("frn")
    assert carry(with_it, target).carried[0].notes == ("with the learned epsilon",)
    assert target.eps == 0.25 + 1e-6
    target = of_torch("frn", learned_eps=True)
    carry(with_it, target)
    assert numpy(target.learned_eps) == [-0.25]
    assert target.eps == 1e-6
    x = rng.normal(size=(N, H, W, C)).astype("float32")
    np.testing.assert_allclose(output(target, x), output(with_it, x), atol=TOLERANCE)
    assert carry(of_torch("frn"), with_it).carried[0].notes == ("learned epsilon set to 0",)


def test_half_precision_is_said():
    target = torch.nn.GroupNorm(4, C, dtype=torch.bfloat16)
    source = of_keras("group")
    source.gamma.assign(np.full(C, 1.2345, "float32"))
    assert carry(source, target).carried[0].notes == ("float32 -> bfloat16",)
    assert target.weight.dtype == torch.bfloat16
    back = of_flax("group")
    carry(target, back)
    assert (numpy(back.scale) == np.float32(1.234375)).all()
    layer = of_keras("group", dtype="bfloat16")
    assert carry(source, layer).carried[0].notes == ("float32 -> bfloat16",)
    carry(layer, back := of_torch("group"))
    assert (numpy(back.weight) == np.float32(1.234375)).all()


# --- Layouts ---------------------------------------------------------------------------------


def cube(size=C):
    layer = keras.layers.LayerNormalization(axis=[1, 2, 3])
    layer.build((None, size, size, size))
    return layer


def test_both_layouts_fit(rng):
    source, target = torch.nn.LayerNorm((C, C, C)), cube()
    randomize(source, rng)
    before = snapshot(target)
    with pytest.raises(
        InputError, match="pass layout='same' or 'first to last' or 'last to first'"
    ):
        carry(source, target)
    assert unchanged(before, target)
    for layout, axes in (
        ("same", (0, 1, 2)), ("first to last", (1, 2, 0)), ("last to first", (2, 0, 1)),
    ):  # fmt: skip
        carry(source, target, layout=layout)
        np.testing.assert_array_equal(numpy(target.gamma), numpy(source.weight).transpose(axes))
    carry(torch.nn.LayerNorm((C, C, C), elementwise_affine=False), target)  # nothing to move


def test_one_layout_fits(rng):
    source, target = torch.nn.LayerNorm((C, 5)), torch.nn.LayerNorm((5, C))
    randomize(source, rng)
    carry(source, target)
    np.testing.assert_array_equal(numpy(target.weight), numpy(source.weight).T)
    with pytest.raises(InputError, match=r"\(8, 5\) do not fit .* \(5, 8\) with layout='same'"):
        carry(source, target, layout="same")
    with pytest.raises(InputError, match="do not fit the target's"):
        carry(source, torch.nn.LayerNorm((C, 6)))
    with pytest.raises(InputError, match="the number of axes with parameters: 2 in the source, 1"):
        carry(source, of_flax("layer"))
    with pytest.raises(InputError, match="expected None or one of 'same', 'first to last'"):
        carry(source, target, layout="channels_last")
    # Within a framework, and between flax and Keras, axes of equal sizes stay.
    randomize(layer := cube(4), rng)
    carry(layer, other := cube(4))
    np.testing.assert_array_equal(numpy(layer.gamma), numpy(other.gamma))


def test_the_axes_of_flax():
    odd = nnx.LayerNorm(C, reduction_axes=(1, 2, 3), feature_axes=-1, rngs=RNG)
    with pytest.raises(InputError, match="reduction_axes and feature_axes"):
        carry(odd, of_torch("layer"))
    carry(odd, nnx.LayerNorm(C, reduction_axes=(1, 2, 3), feature_axes=-1, rngs=RNG))
    with pytest.raises(InputError, match="reduction_axes and feature_axes"):
        carry(of_torch("group"), nnx.GroupNorm(C, 4, reduction_axes=(-1,), rngs=RNG))


# --- Models ----------------------------------------------------------------------------------


class Many(nnx.Module):
    """Whose normalizations come in another order by the alphabet."""

    def __init__(self, count=3):
        self.z = nnx.GroupNorm(C, 4, rngs=RNG)
        self.blocks = nnx.List([nnx.Sequential(of_flax("layer")) for _ in range(count)])
        self.again = self.z
        self.a = nnx.RMSNorm(C, rngs=RNG)


def nested():
    inner = keras.Sequential([keras.Input((H, C)), keras.layers.LayerNormalization(name="l")])
    x = inputs = keras.Input((H, C))
    x = keras.layers.GroupNormalization(4, name="g")(x)
    x = keras.layers.TimeDistributed(keras.layers.LayerNormalization(name="t"), name="time")(x)
    x = inner(x)
    x = keras.layers.RNN(truenorm.rnn.LayerNormSimpleRNNCell(C, name="cell"), name="rnn")(x)
    return keras.Model(inputs, keras.layers.RMSNormalization(name="r")(x))


def test_every_layer_is_found():
    source = torch.nn.Sequential(
        of_torch("group"), *(of_torch("layer") for _ in range(3)), torch.nn.ReLU(), of_torch("rms")
    )
    report = carry(source, Many())
    assert [one.target for one in report.carried] == [
        "z", "blocks.0.layers.0", "blocks.1.layers.0", "blocks.2.layers.0", "a",
    ]  # fmt: skip
    assert report.paired == "by order"
    found = [one.target.split(".") for one in carry(nested(), nested()).carried]
    assert [parts[0].rstrip("_0123456789") for parts in found] == [
        "g", "time", "sequential", "rnn", "r",
    ]  # fmt: skip
    assert [parts[-1] for parts in found] == ["g", "t", "l", "layernorm", "r"]


def test_names():
    source, target = Torch(), Flax()
    before = snapshot(target)
    for names in ({}, {"norm1": "norm9"}, {"norm9": "norm1"}, {"norm1": "norm1", "norm2": "norm1"}):
        with pytest.raises(InputError, match=r"names=.*\nsource: norm1 \(group.*\ntarget: norm1"):
            carry(source, target, names=names)
    with pytest.raises(InputError, match="a group normalization is not a rms normalization"):
        carry(source, target, names={"norm1": "norm3"})
    assert unchanged(before, target)
    report = carry(source, target, names={"norm3": "norm3", "norm1": "norm1"})
    assert report.left == ("norm2",)
    assert report.paired == "as given"
    assert [one.source for one in report.carried] == ["norm1", "norm3"]
    assert "left as they were: norm2" in str(report)
    assert target.norm2.epsilon == 1e-6


def test_what_cannot_be_paired():
    with pytest.raises(InputError, match=r"(?s)names=.*source: 0 \(layer, \(8,\)\).*target: z"):
        carry(torch.nn.Sequential(of_torch("layer")), Many())
    with pytest.raises(InputError, match="has none of the normalizations that are known: batch"):
        carry(torch.nn.Linear(2, 2), Many())
    for wrong in ({"scale": 1}, np.ones(3), torch.nn.LayerNorm):
        with pytest.raises(TypeError, match=r"target is .* expected a normalization or a model"):
            carry(of_torch("layer"), wrong)


def test_what_is_not_built():
    with pytest.raises(InputError, match="GroupNormalization in the target is not built"):
        carry(of_torch("group"), keras.layers.GroupNormalization(4))
    for lazy in (torch.nn.LazyBatchNorm2d(), truenorm.torch.LayerNorm(), truenorm.torch.RMSNorm()):
        with pytest.raises(InputError, match="in the source is not built"):
            carry(lazy, of_flax("batch"))
    with pytest.raises(InputError, match="gamma of GroupNorm cannot be read"):
        carry(torch.nn.GroupNorm(4, C, device="meta"), of_flax("group"))


def test_what_has_no_counterpart():
    with pytest.raises(InputError, match="rms_scaling=True"):
        carry(of_keras("layer", truenorm, rms_scaling=True, center=False), of_torch("layer"))
    with pytest.raises(InputError, match="renorm=True"):
        carry(of_keras("batch", renorm=True), of_torch("batch"))
    source = torch.nn.utils.parametrizations.weight_norm(of_torch("layer"), dim=None)
    with pytest.raises(InputError, match=r"weight of .* is computed from other parameters"):
        carry(of_flax("layer"), source)


@pytest.mark.parametrize("target", NETWORKS)
def test_an_error_changes_nothing(target, rng):
    """The first two fit, the last does not."""
    source, other = Torch(), NETWORKS[target]()
    randomize(source, rng)
    source.norm3 = torch.nn.RMSNorm(5)
    before = snapshot(other)
    with pytest.raises(
        InputError, match=r"Nothing was carried\.\nnorm3 -> norm3: parameters of shape"
    ):
        carry(source, other, layout=layout_between("torch", target))
    assert unchanged(before, other)
    source.norm3 = torch.nn.RMSNorm(4)
    carry(source, other, layout=layout_between("torch", target))
    assert not unchanged(before, other)


def test_compiled_functions_take_the_new_epsilon(rng):
    x = rng.normal(size=(N, H, W, 3)).astype("float32")
    model, network = keras_network(), Flax()
    network.norm1.epsilon = network.norm3.epsilon = 0.5
    call = nnx.jit(lambda network, x: network(x))
    for compiled, plain, source in (
        (lambda: model.predict(x, verbose=0), lambda: output(model, x), network),
        (lambda: np.array(call(network, x)), lambda: output(network, x), keras_network()),
    ):
        before = compiled()
        carry(source, network if source is not network else model)
        assert abs(compiled() - before).max() > 1e-3
        np.testing.assert_allclose(compiled(), plain(), atol=TOLERANCE, rtol=TOLERANCE)


def test_parameters_stay_those_of_the_optimizer(rng):
    module = torch.nn.GroupNorm(4, C)
    optimizer = torch.optim.SGD(module.parameters(), 1.0)
    weight = module.weight
    randomize(layer := of_keras("group"), rng)
    carry(layer, module)
    assert module.weight is weight
    assert weight.requires_grad
    module(torch.ones(2, C)).sum().backward()
    optimizer.step()
    assert (numpy(weight) == numpy(layer.gamma)).all()  # whose gradient is zero here
    assert (numpy(module.bias) == numpy(layer.beta) - 2).all()


def test_a_subclass_is_what_it_inherits_from():
    class Channels(torch.nn.LayerNorm):
        pass

    assert carry(Channels(C), of_flax("layer")).carried[0].kind == "layer"


def test_the_page(capsys):
    run_examples("docs/carry.md")
    shown = (ROOT / "docs/carry.md").read_text().split("```text\n")[1].split("```")[0]
    assert shown in capsys.readouterr().out


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="a layer is a module of torch there")
def test_layers_inside_a_module():
    source = torch.nn.Sequential(of_torch("group"), of_torch("layer"))
    target = torch.nn.Sequential(of_keras("group", truenorm), of_keras("layer"))
    assert [one.target for one in carry(source, target).carried] == ["0", "1"]
    assert target[1].epsilon == 1e-5
