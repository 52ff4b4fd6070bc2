"""`fold`: the same outputs without batch normalization, and a reason for each that is left."""

import copy

import keras
import numpy as np
import pytest

import truenorm
import truenorm.flax
import truenorm.torch as tn
from truenorm import fold, freeze
from truenorm.core.errors import InputError

pytest.importorskip("flax")
import jax
import torch
from flax import nnx
from torch import nn

L = keras.layers
NORMS = (L.BatchNormalization, truenorm.BatchNormalization)
HOMES = {
    "keras": pytest.mark.parametrize("home", [L, truenorm], ids=["keras", "truenorm"]),
    "flax": pytest.mark.parametrize("home", [nnx, truenorm.flax], ids=["flax", "truenorm"]),
}


def randomized(model):
    """Every batch normalization gets statistics, gamma and beta as training could leave them."""
    rng = np.random.default_rng(3)

    def numbers(size):
        uniform = rng.uniform(0.5, 2, (2, size)).astype("float32")
        return (*uniform, *(0.5 * rng.normal(size=(2, size))).astype("float32"))

    if isinstance(model, keras.layers.Layer):
        for one in model._flatten_layers():
            if isinstance(one, NORMS):
                values = numbers(one.moving_mean.shape[0])
                variables = (one.moving_variance, one.gamma, one.moving_mean, one.beta)
                for variable, value in zip(variables, values, strict=True):
                    if variable is not None:
                        variable.assign(value)
    elif isinstance(model, nn.Module):
        for one in model.modules():
            if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.running_mean is not None:
                values = map(torch.tensor, numbers(one.num_features))
                parameters = (one.running_var, one.weight, one.running_mean, one.bias)
                for parameter, value in zip(parameters, values, strict=True):
                    if parameter is not None:
                        parameter.data.copy_(value)
    else:
        for _, one in nnx.iter_modules(model):
            if isinstance(one, nnx.BatchNorm):
                values = numbers(one.num_features)
                for name, value in zip(("var", "scale", "mean", "bias"), values, strict=True):
                    getattr(one, name)[...] = jax.numpy.asarray(value)
    return model


def run(model, x):
    if isinstance(model, keras.layers.Layer):
        return np.array(keras.ops.convert_to_numpy(model(x, training=False)))
    if isinstance(model, nn.Module):
        with torch.no_grad():
            return model(torch.tensor(x)).numpy()
    return np.array(model(jax.numpy.asarray(x)))


def check(model, x, folded=None, **options):
    """The outputs agree within 1e-5 of their scale, and the original is as it was."""
    before = run(model, x)
    made, report = fold(model, **options)
    np.testing.assert_array_equal(run(model, x), before)
    after = run(made, x)
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
    assert np.abs(before).max() > 1e-3
    if folded is not None:
        assert [one.name for one in report.folded] == folded, str(report)
    return made, report


def images(rng, shape):
    return rng.normal(0.5, 1, size=shape).astype("float32")


TORCH_AFTER = {
    "convolution": (lambda: (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), 2),
    "without bias": (lambda: (nn.Conv2d(4, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)), 2),
    "grouped": (lambda: (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), 2),
    "depthwise": (lambda: (nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)), 2),
    "reflecting": (
        lambda: (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6)), 2,
    ),
    "1d": (lambda: (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), 1),
    "3d": (lambda: (nn.Conv3d(4, 6, 2), nn.BatchNorm3d(6)), 3),
    "transposed": (lambda: (nn.ConvTranspose2d(4, 6, 3, 2), nn.BatchNorm2d(6)), 2),
    "transposed, grouped": (
        lambda: (nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False), nn.BatchNorm1d(6)), 1,
    ),
    "linear": (lambda: (nn.Linear(4, 6), nn.BatchNorm1d(6)), 0),
    "without gamma and beta": (lambda: (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)), 2),
    "synchronized": (lambda: (nn.Conv2d(4, 6, 3), nn.SyncBatchNorm(6)), 2),
    "truenorm's": (lambda: (nn.Conv2d(4, 6, 3), tn.BatchNorm2d(6, virtual_batch_size=2)), 2),
    "truenorm's 1d": (lambda: (nn.Linear(4, 6), tn.BatchNorm1d(6, axis=-1)), 0),
    "truenorm's 3d": (lambda: (nn.ConvTranspose3d(4, 6, 2), tn.BatchNorm3d(6, affine=False)), 3),
    "truenorm's synchronized": (lambda: (nn.Conv2d(4, 6, 3), tn.SyncBatchNorm(6)), 2),
}  # fmt: skip


@pytest.mark.parametrize("case", TORCH_AFTER)
def test_after_in_torch(case, rng):
    make, rank = TORCH_AFTER[case]
    model = randomized(nn.Sequential(*make())).eval()
    made, report = check(model, images(rng, (2, 4, *(7, 6, 5)[:rank])), ["1"])
    assert isinstance(made[1], nn.Identity)
    assert made[0].bias is not None
    assert report.folded[0].into == "0"
    assert report.folded[0].where == "after"


TORCH_BEFORE = {
    "convolution": (lambda: (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)), 2),
    "grouped": (lambda: (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2, bias=False)), 2),
    "valid": (lambda: (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding="valid")), 2),
    "of one pixel": (lambda: (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, padding="same")), 2),
    "circular": (
        lambda: (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular")), 2,
    ),
    "linear": (lambda: (nn.BatchNorm1d(4), nn.Linear(4, 6)), 0),
    "truenorm's": (lambda: (tn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2)), 2),
}  # fmt: skip


@pytest.mark.parametrize("case", TORCH_BEFORE)
def test_before_in_torch(case, rng):
    make, rank = TORCH_BEFORE[case]
    model = randomized(nn.Sequential(*make())).eval()
    _, report = check(model, images(rng, (2, 4, *(7, 6, 5)[:rank])), ["0"])
    assert report.folded[0].where == "before"


@pytest.mark.parametrize(
    "make", [lambda: nn.Conv2d(4, 6, 3, padding=1), lambda: nn.ConvTranspose2d(4, 6, 3)]
)
def test_padding_before(make, rng):
    model = randomized(nn.Sequential(nn.BatchNorm2d(4), make())).eval()
    x = images(rng, (2, 4, 7, 6))
    _, report = check(model, x, [])
    assert "puts zeros, which the normalization does not shift" in report.left[0][1]
    model[0].running_mean.zero_()  # nothing to shift
    model[0].bias.data.zero_()
    check(model, x, ["0"])


class Shared(nn.Module):
    """Reasons, each under its own name."""

    def __init__(self):
        super().__init__()
        for name in ("a", "b", "c", "d", "e", "f", "g", "h"):
            setattr(self, name, nn.Conv2d(4, 4, 3))
            setattr(self, f"after_{name}", nn.BatchNorm2d(4))
        self.b.register_forward_hook(lambda module, args, result: None)
        self.after_d = nn.BatchNorm2d(4, track_running_stats=False)
        self.f = nn.utils.parametrizations.weight_norm(self.f)
        self.g.weight = self.h.weight

    def forward(self, x):
        x = self.after_a(torch.relu(self.a(x)))
        x = torch.relu(self.after_b(self.b(torch.relu(x))))
        kept = self.c(x)
        x = torch.relu(self.after_c(kept)) + kept
        x = torch.relu(self.after_d(self.d(x)))
        x = torch.relu(self.after_e(self.e(x)))
        x = torch.relu(self.after_e(x))
        x = torch.relu(self.after_f(self.f(x)))
        x = torch.relu(self.after_g(self.g(x)))
        return torch.relu(self.after_h(self.h(x)))


def test_reasons_in_torch(rng):
    model = randomized(Shared()).eval()
    model.after_h.train()
    x = images(rng, (2, 4, 20, 20))
    made, report = fold(model)
    assert not report.folded
    left = dict(report.left)
    for name, reason in {
        "after_a": "its input comes from relu, which is not linear",
        "after_b": "b has forward hooks",
        "after_c": "its input comes from c, whose result goes to other places too",
        "after_d": "it keeps no statistics",
        "after_e": "it is called 2 times",
        "after_f": "",  # the parametrized convolution is no longer one module for torch.fx
        "after_g": "g shares a parameter with another layer",
        "after_h": "it is in training mode; call eval()",
    }.items():
        assert reason in left[name], (name, left[name])
    assert str(report).startswith("0 batch normalizations folded, 8 left; graph by torch.fx")
    model.after_h.eval()
    made.after_h.eval()
    np.testing.assert_array_equal(run(made, x), run(model, x))


class Branching(nn.Module):
    """Cannot be traced."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.first = nn.Conv2d(4, 4, 3)
        self.aliased = nn.Sequential(self.first, nn.BatchNorm2d(4))

    def forward(self, x):
        x = self.inside(x) if x.sum() > 0 else self.inside(-x)
        return self.aliased(self.norm(self.conv(x))) + self.first(x)[:, :, 2:, 2:].mean()


def test_what_cannot_be_traced(rng):
    model = randomized(Branching()).eval()
    x = images(rng, (2, 4, 12, 12))
    _, report = check(model, x, ["inside.1"])
    assert "only neighbours in nn.Sequential" in report.graph
    assert dict(report.left)["norm"] == "it is not in an nn.Sequential, and the order is not known"
    assert "aliased.1" in dict(report.left)
    _, report = check(model, x, ["norm"], pairs=[("conv", "norm")])
    assert dict(report.left)["inside.1"] == "it is not among the pairs"


def test_several_into_one(rng):
    model = nn.Sequential(
        nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
    )
    model = randomized(model).eval()
    made, _ = check(model, images(rng, (2, 4, 7, 6)), ["0", "2", "3"])
    assert [type(one).__name__ for one in made] == ["Identity", "Conv2d", "Identity", "Identity"]


def test_one_rounding_in_bfloat16(rng):
    """Computed in float64: the kernel is the nearest of its dtype, also after two foldings."""
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6))
    model = randomized(model).eval()
    wide = copy.deepcopy(model).to(torch.bfloat16).double()
    narrow = copy.deepcopy(model).to(torch.bfloat16)
    right, made = fold(wide)[0], fold(narrow)[0]
    assert made[0].weight.dtype == torch.bfloat16
    assert torch.equal(made[0].weight, right[0].weight.to(torch.bfloat16))
    assert torch.equal(made[0].bias, right[0].bias.to(torch.bfloat16))


def test_a_frozen_one_is_folded_in_training(rng):
    model = randomized(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    freeze(model)
    check(model.train(), images(rng, (2, 4, 7, 6)), ["1"])


@pytest.fixture(scope="module")
def models():
    """torchvision's models. Its own operators need CUDA's libraries, and no model here has one."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
    return pytest.importorskip("torchvision").models


@pytest.mark.parametrize(
    ("name", "count", "left"),
    [("resnet18", 20, 0), ("mobilenet_v3_small", 34, 0), ("densenet121", 59, 62)],
)
def test_models_of_torchvision(name, count, left, models, rng):
    model = randomized(getattr(models, name)()).eval()
    _, report = check(model, images(rng, (2, 3, 64, 64)))
    assert (len(report.folded), len(report.left)) == (count, left)


KERAS_AFTER = {
    "Conv1D": (lambda: L.Conv1D(6, 3, padding="causal"), 1),
    "Conv2D": (lambda: L.Conv2D(6, 3, padding="same"), 2),
    "Conv2D without bias": (lambda: L.Conv2D(6, 3, use_bias=False), 2),
    "Conv2D in groups": (lambda: L.Conv2D(6, 3, groups=2), 2),
    "Conv3D": (lambda: L.Conv3D(6, 2), 3),
    "Conv1DTranspose": (lambda: L.Conv1DTranspose(6, 3), 1),
    "Conv2DTranspose": (lambda: L.Conv2DTranspose(6, 3, 2), 2),
    "Conv3DTranspose": (lambda: L.Conv3DTranspose(6, 2), 3),
    "DepthwiseConv1D": (lambda: L.DepthwiseConv1D(3, depth_multiplier=2), 1),
    "DepthwiseConv2D": (lambda: L.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False), 2),
    "SeparableConv1D": (lambda: L.SeparableConv1D(6, 3), 1),
    "SeparableConv2D": (lambda: L.SeparableConv2D(6, 3, depth_multiplier=2), 2),
    "Dense": (lambda: L.Dense(6, use_bias=False), 0),
    "Dense over pixels": (lambda: L.Dense(6), 2),
}


@HOMES["keras"]
@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("case", KERAS_AFTER)
def test_after_in_keras(case, functional, home, rng):
    make, rank = KERAS_AFTER[case]
    shape = (*(7, 6, 5)[:rank], 4)
    layer, norm = make(), home.BatchNormalization(name="norm")
    start = keras.Input(shape)
    if functional:
        model = keras.Model(start, L.ReLU()(norm(layer(start))))
    else:
        model = keras.Sequential([start, layer, norm, L.ReLU()])
    randomized(model)
    made, _ = check(model, images(rng, (2, *shape)), ["norm"])
    assert not any(isinstance(one, NORMS) for one in made.layers)


KERAS_BEFORE = {
    **{name: case for name, case in KERAS_AFTER.items() if "Transpose" not in name},
    "Conv1D": (lambda: L.Conv1D(6, 3), 1),
    "Conv2D": (lambda: L.Conv2D(6, 3, activation="relu"), 2),
    "Conv2D of one pixel": (lambda: L.Conv2D(6, 1, strides=2, padding="same"), 2),
}


@HOMES["keras"]
@pytest.mark.parametrize("case", KERAS_BEFORE)
def test_before_in_keras(case, home, rng):
    make, rank = KERAS_BEFORE[case]
    shape = (*(7, 6, 5)[:rank], 4)
    model = keras.Sequential([keras.Input(shape), home.BatchNormalization(name="norm"), make()])
    check(randomized(model), images(rng, (2, *shape)), ["norm"])


def test_reasons_in_keras(rng):
    x = start = keras.Input((9, 9, 4))
    x = L.BatchNormalization(name="activated")(L.Conv2D(4, 3, activation="relu")(x))
    kept = L.Conv2D(4, 3, name="kept")(L.ReLU()(x))
    x = L.BatchNormalization(name="branch")(kept)
    x = L.Add()([x, kept])
    shared = L.BatchNormalization(name="shared")
    x = shared(L.ReLU()(shared(L.Conv2D(4, 1)(x))))
    x = L.ReLU()(x)
    x = L.BatchNormalization(name="axis", axis=1)(L.Conv2D(4, 1)(x))
    x = L.ReLU()(x)
    x = L.Conv2D(4, 3, padding="same")(L.BatchNormalization(name="padded")(x))
    x = L.BatchNormalization(name="training")(L.Conv2D(4, 1)(L.ReLU()(x)), training=True)
    model = randomized(keras.Model(start, L.ReLU()(x)))
    _, report = check(model, images(rng, (2, 9, 9, 4)), [])
    left = dict(report.left)
    for name, reason in {
        "activated": "has an activation of its own",
        "branch": "kept, whose result goes to other places too",
        "shared": "it is called 2 times",
        "axis": "its channels are in axis 1",
        "padded": "puts zeros",
        "training": "more than its input",
    }.items():
        assert reason in left[name], (name, left[name])
    assert f"padded: left: {left['padded']}" in str(report)


def test_nested_models_of_keras(rng):
    part = keras.Sequential(
        [keras.Input((8, 8, 4)), L.Conv2D(4, 3, padding="same"), L.BatchNormalization(name="in")],
        name="part",
    )
    start = keras.Input((8, 8, 4), name="image")
    x = part(L.ReLU()(part(start)))
    model = keras.Model(start, L.BatchNormalization(name="out")(L.Conv2D(4, 3)(x)) + 1.0)
    randomized(model)
    _, report = check(model, images(rng, (2, 8, 8, 4)))
    assert sorted(one.name for one in report.folded) == ["out", "part.in"]


def test_a_model_of_keras_applications(rng):
    model = keras.applications.MobileNetV2(input_shape=(32, 32, 3), weights=None, classes=10)
    _, report = check(randomized(model), images(rng, (2, 32, 32, 3)))
    assert (len(report.folded), len(report.left)) == (52, 0)


R = nnx.Rngs(0)
FLAX_AFTER = {
    "convolution": lambda: nnx.Conv(4, 6, (3, 3), rngs=R),
    "without bias": lambda: nnx.Conv(4, 6, (3, 3), strides=2, use_bias=False, rngs=R),
    "grouped": lambda: nnx.Conv(4, 6, (3, 3), feature_group_count=2, rngs=R),
    "transposed": lambda: nnx.ConvTranspose(4, 6, (3, 3), strides=(2, 2), rngs=R),
    "transposed kernel": lambda: nnx.ConvTranspose(
        4, 6, (3, 3), transpose_kernel=True, use_bias=False, rngs=R
    ),
    "linear": lambda: nnx.Linear(4, 6, rngs=R),
}


def of_flax(*layers):
    model = randomized(nnx.Sequential(*layers))
    model.eval()
    return model


@HOMES["flax"]
@pytest.mark.parametrize("case", FLAX_AFTER)
def test_after_in_flax(case, home, rng):
    model = of_flax(FLAX_AFTER[case](), home.BatchNorm(6, rngs=R), nnx.relu)
    made, _ = check(model, images(rng, (2, 7, 6, 4)), ["layers.1"])
    assert not any(isinstance(one, nnx.BatchNorm) for _, one in nnx.iter_modules(made))


@pytest.mark.parametrize(
    ("make", "folded"),
    [
        (lambda: nnx.Conv(4, 6, (3, 3), padding="VALID", rngs=R), ["layers.0"]),
        (lambda: nnx.Conv(4, 6, (3, 3), padding=0, feature_group_count=2, rngs=R), ["layers.0"]),
        (lambda: nnx.Conv(4, 6, (3, 3), padding="CIRCULAR", rngs=R), ["layers.0"]),
        (lambda: nnx.Conv(4, 6, (1, 1), rngs=R), ["layers.0"]),
        (lambda: nnx.Linear(4, 6, use_bias=False, rngs=R), ["layers.0"]),
        (lambda: nnx.Conv(4, 6, (3, 3), rngs=R), []),
        (lambda: nnx.Conv(4, 6, (3, 3), padding=((0, 1), (0, 0)), rngs=R), []),
        (lambda: nnx.Conv(4, 6, (3, 3), padding=0, input_dilation=2, rngs=R), []),
        (lambda: nnx.ConvTranspose(4, 6, (3, 3), padding="VALID", rngs=R), []),
    ],
)
@HOMES["flax"]
def test_before_in_flax(make, folded, home, rng):
    check(of_flax(home.BatchNorm(4, rngs=R), make()), images(rng, (2, 7, 6, 4)), folded)


class Block(nnx.Module):
    def __init__(self):
        self.conv1, self.bn1 = nnx.Conv(4, 6, (3, 3), rngs=R), nnx.BatchNorm(6, rngs=R)
        self.conv2, self.bn2 = nnx.Conv(6, 5, (3, 3), rngs=R), nnx.BatchNorm(5, rngs=R)
        self.list = nnx.List([nnx.Linear(5, 3, rngs=R), nnx.BatchNorm(3, rngs=R)])

    def __call__(self, x):
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.relu(self.bn2(self.conv2(x), use_running_average=True))
        return self.list[1](self.list[0](x))


OWN = {
    "activation": ({"activation": "relu"}, "it has an activation of its own"),
    "axis": ({"axis": 2}, "channels are in axis"),
}


@pytest.mark.parametrize("case", OWN)
def test_arguments_of_truenorm_that_are_in_the_way(case, rng):
    options, reason = OWN[case]
    x = images(rng, (2, 6, 6, 6))
    start = keras.Input(x.shape[1:])
    last = truenorm.BatchNormalization(**options)(L.Conv2D(4, 3)(start))
    for model in (
        nn.Sequential(nn.Conv2d(6, 4, 3), tn.BatchNorm2d(4, **options)).eval(),
        keras.Model(start, last),
        of_flax(
            nnx.Conv(6, 4, (3, 3), padding="VALID", rngs=R),
            truenorm.flax.BatchNorm(4, rngs=R, **options),
        ),
    ):
        _, report = check(randomized(model), x, [])
        assert reason in report.left[0][1]


def test_a_residual_between(rng):
    """What a normalization adds before it normalizes is not the layer's alone."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), tn.BatchNorm2d(4)

        def forward(self, x):
            y, _ = self.norm(self.conv(x), residual=x)
            return y

    x = images(rng, (2, 4, 4, 4))
    check(randomized(Net()).eval(), x, [])
    start = keras.Input((4, 4, 4))
    y, _ = truenorm.BatchNormalization()(L.Conv2D(4, 3, padding="same")(start), residual=start)
    check(randomized(keras.Model(start, y)), x, [])

    class Block(nnx.Module):
        def __init__(self):
            self.conv = nnx.Conv(4, 4, (3, 3), rngs=R)
            self.norm = truenorm.flax.BatchNorm(4, use_running_average=True, rngs=R)

        def __call__(self, x):
            y, _ = self.norm(self.conv(x), residual=x)
            return y

    made, _ = fold(randomized(Block()), pairs=[("conv", "norm")])
    with pytest.raises(InputError, match="is called with a residual"):
        run(made, x)


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_ones_of_truenorm_in_training(frozen, rng):
    for model, x in (
        (nn.Sequential(nn.Conv2d(4, 6, 3), tn.BatchNorm2d(6)), images(rng, (2, 4, 7, 6))),
        (
            of_flax(nnx.Conv(4, 6, (3, 3), rngs=R), truenorm.flax.BatchNorm(6, rngs=R)),
            images(rng, (2, 7, 6, 4)),
        ),
    ):
        freeze(randomized(model), frozen)
        model.train()
        _, report = fold(model)
        assert len(report.folded) == frozen
        if frozen:
            check(model, x)
        else:
            assert "in training mode" in report.left[0][1]


def test_pairs_in_flax(rng):
    model = randomized(Block())
    model.eval()
    x = images(rng, (2, 7, 6, 4))
    pairs = [("conv1", "bn1"), ("conv2", "bn2"), ("list.0", "list.1")]
    check(model, x, ["bn1", "bn2", "list.1"], pairs=pairs)
    _, report = check(model, x, [])
    assert "pass pairs=" in dict(report.left)["bn1"]
    model.train()
    _, report = fold(of_flax(nnx.Conv(4, 6, (3, 3), rngs=R), nnx.BatchNorm(6, rngs=R)))
    assert len(report.folded) == 1
    with pytest.raises(InputError, match="it is in training mode; call eval"):
        fold(model, pairs=pairs)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm = L.BatchNormalization()

    def call(self, x):
        return self.norm(x)


def subclassed():
    model = Subclassed()
    model(np.ones((1, 4), "float32"))
    return model


def eager():
    return nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Linear(2, 2)).eval()


ERRORS = {
    "no model": (lambda: 3, {}, TypeError, "expected a model of torch.nn"),
    "no normalization": (lambda: nn.Linear(2, 2), {}, InputError, "has no batch normalization"),
    "subclassed": (subclassed, {}, InputError, "expected a functional or Sequential model"),
    "pairs for Keras": (
        lambda: keras.Sequential([keras.Input((4,)), L.BatchNormalization()]),
        {"pairs": [("a", "b")]}, InputError, "pairs are of torch and flax",
    ),
    "unknown name": (eager, {"pairs": [("0", "7")]}, InputError, r"pairs has \('0', '7'\)"),
    "no pair": (eager, {"pairs": ["01"]}, InputError, "expected names of neighbours"),
    "none": (eager, {"pairs": []}, InputError, "expected names of neighbours"),
    "twice": (eager, {"pairs": [("0", "1"), ("0", "1")]}, InputError, "each normalization once"),
    "other channels": (eager, {"pairs": [("1", "2")]}, InputError, "2 channels, and it has 6"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    make, options, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        fold(make(), **options)
