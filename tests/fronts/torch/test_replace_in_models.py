"""`replace` on models that torchvision's authors wrote."""

import pytest
import torch
from torch import nn

import truenorm.torch as tn


@pytest.fixture(scope="module")
def models():
    """torchvision's models. Its own operators need CUDA's libraries, and no model here has one."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):  # torchvision describes these two whether they are there or not
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
    return pytest.importorskip("torchvision").models


@pytest.mark.parametrize(
    ("name", "size", "channels_last", "replaced", "left"),
    [
        ("vit_b_16", 64, False, 25, 0),
        ("convnext_tiny", 64, True, 23, 0),  # LayerNorm2d, a subclass, among them
        ("swin_t", 64, True, 29, 0),
        ("swin_v2_t", 64, False, 29, 0),
        ("maxvit_t", 224, False, 79, 0),  # batch normalization among them
        ("resnet18", 64, True, 20, 0),
        ("raft_small", 128, True, 21, 0),  # instance normalization
    ],
)
def test_a_model_computes_what_it_did(models, name, size, channels_last, replaced, left):
    torch.manual_seed(0)
    make = getattr(models, name, None) or getattr(models.optical_flow, name)
    options = {"image_size": size} if name.startswith("vit") else {}
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = make(weights=None, **options).eval().to(memory_format=layout)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():  # a head that would hide everything
            nn.init.normal_(parameter, std=0.02)
    images = [torch.randn(2, 3, size, size).to(memory_format=layout)]
    if name.startswith("raft"):  # where did the pixels of one picture go in the next?
        images.append(images[0].roll(3, dims=-1))
    parameters = list(model.parameters())
    with torch.no_grad():
        wanted = model(*images)
        report = tn.replace(model)
        found = model(*images)
    assert (len(report.replaced), len(report.left)) == (replaced, left)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    if isinstance(wanted, list):
        wanted, found = wanted[-1], found[-1]
    scale = wanted.abs().max()
    assert scale > 0.01
    assert (found - wanted).abs().max() <= 1e-5 * max(1, scale)
