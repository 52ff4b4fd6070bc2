"""`replace`: what becomes of the normalizations of a model that somebody else wrote."""

import copy

import pytest
import torch
from torch import nn

import truenorm.torch as tn


class Block(nn.Module):
    """Residual, with every normalization that there is, one of them used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.group = nn.GroupNorm(4, 8)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.batch = nn.BatchNorm2d(8)
        self.again = self.group
        self.heads = nn.ModuleList([nn.LayerNorm(8), nn.RMSNorm(8, eps=1e-6)])
        self.local = nn.LocalResponseNorm(2)

    def forward(self, x):
        x = self.again(self.group(self.first(x)) + 1)
        x = self.local(self.batch(self.instance(x)))
        for head in self.heads:
            x = head(x.movedim(1, -1)).movedim(-1, 1)
        return x


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = Block()
    for one in made.parameters():
        nn.init.normal_(one, std=0.5)
    return made


def test_the_same_numbers_from_the_same_parameters(model):
    theirs = copy.deepcopy(model)
    parameters = list(model.parameters())
    report = tn.replace(model)
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    names = ["group", "instance", "batch", "heads.0", "heads.1"]
    assert [one.name for one in report.replaced] == names
    assert {one.name: one.note for one in report.left} == {
        "local": "truenorm has no such normalization",
    }
    assert type(model.again) is tn.GroupNorm
    assert model.again is model.group
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    ours, wanted = model(x), theirs(x)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    cotangent = torch.randn_like(wanted)
    for one, other in zip(
        torch.autograd.grad(ours, [x, *model.parameters()], cotangent),
        torch.autograd.grad(wanted, [x, *theirs.parameters()], cotangent),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    model.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(model.state_dict(), strict=True)
    assert tn.replace(model).replaced == ()


@pytest.mark.parametrize(
    ("to", "classes"),
    [
        ("group", (tn.GroupNorm, tn.GroupNorm, tn.GroupNorm)),
        ("instance", (nn.GroupNorm, tn.InstanceNorm2d, tn.InstanceNorm2d)),
        ("layer", (tn.LayerNorm, tn.LayerNorm, tn.LayerNorm)),
        ("rms", (tn.RMSNorm, tn.RMSNorm, tn.RMSNorm)),
    ],
)
def test_another_kind(model, to, classes):
    weight = model.batch.weight
    report = tn.replace(model, to)
    assert (type(model.group), type(model.instance), type(model.batch)) == classes
    assert model.again is model.group
    assert model.batch.weight is weight
    assert model.batch.eps == 1e-5
    assert model(torch.randn(2, 3, 6, 6)).isfinite().all()
    notes = {one.name: one.note for one in report.replaced}
    dropped = "its bias is dropped, " if to == "rms" else ""
    assert notes["batch"] == f"{dropped}its running statistics are dropped"
    assert type(model.heads[0]) is nn.LayerNorm


def test_the_numbers_of_another_kind():
    model = nn.Sequential(nn.BatchNorm2d(8))
    nn.init.normal_(model[0].weight)
    nn.init.normal_(model[0].bias)
    x = torch.randn(2, 8, 4, 4)
    wanted = nn.functional.group_norm(x, 2, model[0].weight, model[0].bias, 1e-5)
    tn.replace(model, "group", groups=2)
    torch.testing.assert_close(model(x), wanted)


def test_where(model):
    def where(name, module):
        return name.startswith("heads") and isinstance(module, nn.LayerNorm)

    assert [one.name for one in tn.replace(model, where=where).replaced] == ["heads.0"]
    assert type(model.group) is nn.GroupNorm


def test_hooks_and_mode_survive(model):
    seen = []
    model.batch.register_forward_hook(lambda *_: seen.append("hook"))
    model.batch.register_forward_pre_hook(lambda *_: seen.append("pre"))
    model.batch.eval()
    tn.replace(model, "group")
    assert model.training
    assert not model.batch.training
    model(torch.randn(2, 3, 6, 6))
    assert seen == ["pre", "hook"]


def test_full_backward_hooks_and_hooks_with_keywords_survive():
    seen = []
    model = nn.Sequential(nn.BatchNorm2d(4))
    model[0].register_full_backward_hook(lambda module, dx, dy: seen.append((dx, dy)))
    model[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    tn.replace(model, "group", groups=2)
    mask = torch.tensor([True, False])
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    y = model[0](x, mask=mask)
    assert seen == [{"mask": mask}]
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    (dx,), (dy,) = seen[1]
    torch.testing.assert_close(dx, x.grad)
    torch.testing.assert_close(dy, cotangent)
    with pytest.raises(RuntimeError, match="regular backward hooks and full"):
        model[0].register_backward_hook(lambda *_: None)


def test_one_group_for_each_channel():
    model = nn.Sequential(nn.BatchNorm2d(6), nn.BatchNorm2d(4))
    tn.replace(model, "group", groups=-1)
    assert [one.num_groups for one in model] == [6, 4]
    x = torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(model[0](x), nn.functional.instance_norm(x))


@pytest.mark.parametrize("to", ["group", "instance", "layer", "rms"])
def test_what_ours_was_made_with_stays(to):
    """Where the channels are, the activation, and what computes it."""
    if to == "instance":
        made = tn.InstanceNorm2d(6, axis=-1, activation="silu", implementation="plain")
    else:
        made = tn.GroupNorm(2, 6, axis=-1, activation="silu", implementation="plain")
    new = tn.replace(nn.Sequential(made), to).model[0]
    assert (new.axis, new.activation, new.implementation) == (-1, "silu", "plain")
    assert new(torch.randn(2, 4, 5, 6)).shape == (2, 4, 5, 6)


def test_a_report_shows_whose_class_it_was_and_is():
    model = nn.Sequential(Channels(4), nn.LayerNorm(4))
    options = "((4,), eps=1e-05, elementwise_affine=True, bias=True)"
    assert str(tn.replace(model)).splitlines() == [
        "2 normalizations replaced",
        f"  0: {__name__}.Channels{options} -> truenorm.torch.LayerNorm"
        "((4,), eps=1e-05, elementwise_affine=True, bias=True, axis=1)",
        f"  1: torch.nn.LayerNorm{options} -> truenorm.torch.LayerNorm{options}",
    ]


def test_a_model_that_is_a_normalization():
    norm = nn.LayerNorm(4)
    assert tn.replace(norm).model is norm
    assert type(norm) is tn.LayerNorm
    report = tn.replace(nn.BatchNorm2d(4), "group", groups=2)
    assert type(report.model) is tn.GroupNorm
    assert str(report).splitlines() == [
        "1 normalization replaced",
        "  (the model): torch.nn.BatchNorm2d(4, eps=1e-05, momentum=0.1, affine=True, bias=True, "
        "track_running_stats=True) -> truenorm.torch.GroupNorm(2, 4, eps=1e-05, "
        "affine=True, bias=True) (its running statistics are dropped)",
    ]


class Scaled(nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


class Squashed(nn.GroupNorm):
    def forward(self, x):
        return torch.relu(super().forward(x))


class Activated(nn.BatchNorm2d):
    """With its activation inside, as timm's BatchNormAct2d."""

    def forward(self, x):
        return torch.relu(super().forward(x))


class Channels(nn.LayerNorm):
    """Over the channels of (N, C, H, W), as many libraries have it."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Wordy(nn.GroupNorm):
    def forward(self, x):
        return nn.functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


@pytest.mark.parametrize(
    ("module", "axis"), [(Channels(5), 1), (Channels(6), 1), (Wordy(2, 6), 1)], ids=str
)
def test_a_subclass_is_known_by_what_it_computes(module, axis):
    x = torch.randn(2, module.weight.numel(), 4, 6)
    wanted = module(x)
    assert len(tn.replace(module).replaced) == 1
    assert module.axis == axis
    torch.testing.assert_close(module(x), wanted)


@pytest.mark.parametrize(
    ("module", "options", "reason"),
    [
        (Scaled(4), {}, "it is a subclass of LayerNorm that computes something else"),
        (Squashed(2, 4), {}, "it is a subclass of GroupNorm that computes something else"),
        (Activated(4), {}, "it is a subclass of BatchNorm2d that may do more: replace it by hand"),
        (nn.GroupNorm(2, 4), {"to": "sync_batch"}, "it is no batch normalization"),
        (tn.SyncBatchNorm(4), {"to": "sync_batch"}, "it is synchronized"),
        (tn.BatchNorm2d(4, virtual_batch_size=2), {"to": "sync_batch"}, "over virtual batches"),
        (tn.LayerNorm(4), {}, "it is truenorm's"),
        (Activated(4), {"to": "group"}, "it is a subclass of BatchNorm2d that may do more"),
        (Squashed(2, 4), {"to": "rms"}, "it is a subclass of GroupNorm that may do more"),
        (nn.LayerNorm(4), {"to": "group"}, "it does not normalize channels in axis 1"),
        (
            nn.BatchNorm2d(4),
            {"to": "group", "groups": 3},
            "groups=3 does not divide its 4 channels",
        ),
        (nn.BatchNorm1d(4), {"to": "group", "groups": 4}, "one element in a group"),
        (nn.BatchNorm1d(4), {"to": "instance"}, "one element"),
        (nn.BatchNorm2d(1), {"to": "layer"}, "over one channel leaves one element in a group"),
        (nn.GroupNorm(2, 4), {"to": "instance"}, "the rank of its input is not known"),
        (tn.GroupNorm(2), {"to": "layer"}, "its number of channels is not known yet"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_is_left_and_why(module, options, reason):
    report = tn.replace(nn.Sequential(module), **options)
    assert report.replaced == ()
    assert reason in report.left[0].note
    assert report.model[0] is module
    assert "0 normalizations replaced, 1 left" in str(report)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"to='batch' is unknown; expected None, 'group', 'ins"):
        tn.replace(nn.Sequential(), "batch")
    with pytest.raises(ValueError, match=r"groups=4 is an option of to='group' alone"):
        tn.replace(nn.Sequential(), groups=4)
    for groups in (0, -2):
        with pytest.raises(ValueError, match=rf"groups={groups} must be a positive divisor"):
            tn.replace(nn.Sequential(nn.BatchNorm2d(4)), "group", groups=groups)
    with pytest.raises(TypeError, match=r"groups=2\.5 must be an integer"):
        tn.replace(nn.Sequential(nn.BatchNorm2d(4)), "group", groups=2.5)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module; got int"):
        tn.replace(3)
