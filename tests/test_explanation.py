"""`explain` against brute force: which elements share statistics, by their definitions."""

import collections
import itertools
import math
import os
import random
import subprocess
import sys

import keras
import numpy as np
import pytest

import truenorm
from truenorm.cli import commands as cli
from truenorm.core.errors import InputError
from truenorm.tools.explain import drawing
from truenorm.tools.explain.drawing import block, faces
from truenorm.tools.explain.explanation import Explanation, explain, parse_axis, parse_shape

# name, shape, options, channel axis
CASES = [
    ("batch", (3, 2, 2, 4), {}, 3),
    ("batch", (3, 4, 2, 2), {"axis": 1}, 1),
    ("batch", (5, 4), {}, 1),
    ("batch", (3, 2, 2, 4), {"axis": (1, 3)}, 3),
    ("batch", (2, 3, 4, 2), {"axis": [2, 1]}, 2),
    ("batch", (10, 2, 2, 3), {"virtual_batch_size": 4}, 3),
    ("batch", (6, 3), {"virtual_batch_size": 9}, 1),
    ("batch", (8, 3, 2, 2), {"devices": 4, "axis": 1}, 1),
    ("batch", (8, 3), {"devices": 2, "synchronized": True}, 1),
    ("batch", (12, 2, 2, 3), {"devices": 2, "virtual_batch_size": 4, "axis": [1, 3]}, 3),
    ("layer", (3, 2, 2, 4), {"axis": 3}, 3),
    ("layer", (3, 2, 2, 4), {"axis": [1, 2, 3]}, 3),
    ("layer", (3, 2, 2, 4), {"axis": [3, 1, 2]}, 3),
    ("layer", (2, 3, 2, 4), {"axis": [1, 3]}, 3),
    ("layer", (2, 3, 4, 2), {"axis": [-2]}, 2),
    ("layer", (2, 4, 2, 3), {"axis": 1}, 1),
    ("layer", (3, 5, 4), {"axis": [1]}, 1),
    ("layer", (2, 2, 2, 2, 3), {"axis": [2, 4]}, 4),
    ("instance", (3, 2, 3, 4), {}, 3),
    ("instance", (3, 4, 2, 3), {"axis": 1}, 1),
    ("instance", (3, 4), {}, 1),
    ("group", (3, 2, 2, 6), {"groups": 3}, 3),
    ("group", (3, 2, 2, 6), {"groups": 2}, 3),
    ("group", (3, 6, 2, 2), {"groups": 3, "axis": 1}, 1),
    ("group", (2, 2, 6, 2), {"groups": 2, "axis": -2}, 2),
    ("group", (3, 5, 6), {"groups": 1}, 2),
    ("group", (3, 6), {"groups": 6}, 1),
    ("group", (2, 2, 2, 2, 4), {"groups": -1}, 4),
    ("rms", (3, 5, 4), {}, 2),
    ("rms", (2, 2, 3, 4), {"axis": [2, 3]}, 3),
]


def key_of(name, shape, options, channel):
    """The definition: elements with the same key share statistics."""
    axis = options.get("axis", -1)
    axes = {one % len(shape) for one in (axis if isinstance(axis, (list, tuple)) else [axis])}
    if name == "batch":
        together = options.get("synchronized", False)
        each = shape[0] if together else shape[0] // options.get("devices", 1)
        virtual = options.get("virtual_batch_size", each)
        return lambda index: (
            index[0] // each, index[0] % each // virtual, *(index[one] for one in axes),
        )  # fmt: skip
    if name in ("layer", "rms"):
        return lambda index: tuple(at for one, at in enumerate(index) if one not in axes)
    groups = {"instance": shape[channel], "group": options.get("groups", 32)}[name]
    width = 1 if groups == -1 else shape[channel] // groups
    return lambda index: (index[0], index[channel] // width)


def indices(shape):
    return list(itertools.product(*(range(size) for size in shape)))


@pytest.mark.parametrize(("name", "shape", "options", "channel"), CASES)
def test_counts_are_those_of_the_definition(name, shape, options, channel):
    explanation = explain(name, shape, **options)
    key = key_of(name, shape, options, channel)
    sets = {}
    for index in indices(shape):
        sets.setdefault(key(index), []).append(index)
    assert explanation.groups_of_elements == len(sets)
    assert explanation.elements_per_group == len(sets[key((0,) * len(shape))])
    counts = {
        part.count(reduced=True)[0]: part.count(reduced=False)[0] for part in explanation.parts
    }
    assert counts == collections.Counter(len(one) for one in sets.values())


@pytest.mark.parametrize(("name", "shape", "options", "channel"), CASES)
def test_parameters_are_those_of_keras(name, shape, options, channel):
    if name == "instance":  # which Keras lacks
        layer = keras.layers.GroupNormalization(groups=-1, **options)
    elif name == "batch":  # of which Keras' takes one axis
        layer = truenorm.BatchNormalization(
            **{option: value for option, value in options.items() if option != "devices"}
        )
    else:
        classes = {"layer": "Layer", "group": "Group", "rms": "RMS"}
        layer = getattr(keras.layers, f"{classes[name]}Normalization")(**options)
    layer.build(shape)
    explanation = explain(name, shape, **options)
    assert {explanation.parameter_shape} == {weight.shape for weight in layer.trainable_weights}
    assert explanation.parameters == sum(
        math.prod(weight.shape) for weight in layer.trainable_weights
    )


@pytest.mark.parametrize(("name", "shape", "options", "channel"), CASES)
def test_blue_cells_are_one_set_of_the_definition(name, shape, options, channel):
    cells = block(explain(name, shape, **options))
    assert cells.exact
    spatial = [axis for axis in range(1, len(shape)) if axis != channel]
    positions = indices([shape[axis] for axis in spatial])
    blue = set()
    for n, c, s in itertools.product(*cells.blue):
        index = [n] * len(shape)
        index[channel] = c
        for axis, at in zip(spatial, positions[s], strict=True):
            index[axis] = at
        blue.add(tuple(index))
    key = key_of(name, shape, options, channel)
    assert blue == {index for index in indices(shape) if key(index) == key((0,) * len(shape))}


@pytest.mark.parametrize(
    ("channels", "groups", "drawn", "width"),
    [(10, 5, 10, 2), (64, 32, 8, 2), (64, 8, 9, 3), (64, 2, 6, 3), (64, 1, 6, 6), (64, 64, 6, 1)],
)
def test_schematic_blocks_show_whole_groups(channels, groups, drawn, width):
    cells = block(explain("group", (8, 28, 28, channels), groups=groups))
    assert cells.shape == (8, drawn, 6)
    assert cells.blue == (frozenset({0}), frozenset(range(width)), frozenset(range(6)))
    assert cells.width == width
    assert not cells.exact


def test_several_channel_axes_have_a_gamma_and_a_beta_for_each_pair():
    pairs = explain("batch", (8, 6, 5, 10), axis=(1, 3))
    assert pairs.title == "BatchNormalization(axis=[1, 3])"
    assert "60 groups of elements (6 rows × 10 channels)" in str(pairs)
    assert "vary over axes 1 and 3 (H, C), shape (6, 10) each: 120 parameters" in str(pairs)
    assert explain("batch", (8, 6, 5, 10), axis=[2, 1]).axis_names == ("N", "H", "C", "W")
    assert str(explain(truenorm.BatchNormalization(axis=[1, 3]), (8, 6, 5, 10))) == str(pairs)


@pytest.mark.parametrize(("samples", "size"), [(10, 4), (8, 4), (7, 3), (5, 9), (3, 1)])
def test_the_virtual_batches_are_those_the_layer_computes_with(samples, size):
    layer = truenorm.BatchNormalization(virtual_batch_size=size, epsilon=1e-3)
    x = np.random.default_rng(0).normal(size=(samples, 2, 3)).astype("float32")
    y = keras.ops.convert_to_numpy(layer(x, training=True))
    split = explain(layer, x.shape).split
    batches = [split.batch(0, index) for index in range(split.batches)]
    assert [*itertools.chain(*batches)] == [*range(samples)]
    for batch in batches:
        some = x[batch.start : batch.stop].astype("float64")
        expected = (some - some.mean((0, 1))) / np.sqrt(some.var((0, 1)) + 1e-3)
        np.testing.assert_allclose(y[batch.start : batch.stop], expected, atol=1e-5)


def test_the_words_of_a_batch_that_is_cut():
    def facts(shape, **options):
        return " ".join(str(explain("batch", shape, **options)).partition("Watch")[0].split())

    virtual = facts((10, 28, 28, 10), virtual_batch_size=4)
    assert virtual.startswith("BatchNormalization(axis=3, virtual_batch_size=4) of x")
    assert "Samples that share statistics in training: 0–3, 4–7, 8–9. 20 groups" in virtual
    assert "20 groups of elements (2 virtual batches × 10 channels), each with its" in virtual
    assert "10 groups of elements (1 smaller virtual batch × 10 channels), each" in virtual
    assert "1,568 elements in each (2 samples × 28 rows × 28 columns)." in virtual
    own = facts((8, 10), devices=2)
    assert own.startswith("BatchNormalization(axis=1) of x")
    assert "share statistics in training: 0–3 on device 0; 4–7 on device 1. 20 groups" in own
    assert "(2 devices × 10 channels)" in own
    shared = facts((8, 10), devices=2, synchronized=True)
    assert shared.startswith("BatchNormalization(axis=1, synchronized=True) of x")
    assert "All samples share statistics in training: 0–3 on device 0; 4–7 on device 1." in shared
    assert "10 groups of elements (10 channels), each with its own mean and variance. 8" in shared
    both = facts((12, 10), devices=2, virtual_batch_size=5)
    assert ": 0–4, 5 on device 0; 6–10, 11 on device 1. 20 groups" in both
    assert "(2 devices × 1 smaller virtual batch × 10 channels)" in both
    many = facts((10**9, 10), devices=8, virtual_batch_size=4)
    assert ": 0–3, …, 124999996–124999999 on device 0; …; 875000000–875000003, …, " in many
    assert "Samples" not in facts((8, 10))
    # A batch of unknown size has one set of statistics, on however many devices it is.
    assert "10 groups of elements (10 channels)" in facts((None, 10), synchronized=True)


@pytest.mark.parametrize(
    ("shape", "options", "drawn", "labels"),
    [
        ((10, 9), {"virtual_batch_size": 4}, ((4, 4, 2),), ["4", "4", "2"]),
        ((100, 9), {"virtual_batch_size": 32}, ((3, 3, 3, 2),), ["32", "32", "32", "4"]),
        ((102, 9), {"virtual_batch_size": 20}, ((4, 4, 2),), ["20", "…", "2"]),
        ((32, 9), {"devices": 2}, ((6,), (6,)), ["16", "16", "device 0", "device 1"]),
        (
            (5000, 9),
            {"devices": 8, "synchronized": True},
            ((4,), (4,), (4,)),
            ["625", "625", "625", "device 0", "…", "device 7"],
        ),
        (
            (1000, 9),
            {"devices": 2, "virtual_batch_size": 3},
            ((2, 2, 1), (2, 2, 1)),
            ["3", "…", "2", "3", "…", "2", "device 0", "device 1"],
        ),
        ((3, 9), {"devices": 3}, ((1,), (1,), (1,)), ["1", "1", "1", "device 0", "1", "2"]),
    ],
)
def test_every_drawn_batch_has_its_size_and_what_is_left_is_smaller(shape, options, drawn, labels):
    explanation = explain("batch", shape, **options)
    cells = block(explanation)
    assert cells.batches == drawn
    assert cells.shape[0] == sum(map(sum, drawn))
    together = cells.shape[0] if options.get("synchronized") else drawn[0][0]
    assert cells.blue[0] == frozenset(range(together))
    texts = [text.get_text() for text in explanation.plot().texts]
    at = texts.index(labels[0])
    assert texts[at : at + len(labels)] == labels
    assert any("stands for samples not drawn" in text for text in texts) == ("…" in labels)


def test_a_pixel_and_a_sample_are_drawn_differently():
    pixel = block(explain("layer", (8, 28, 28, 10), axis=3))
    sample = block(explain("layer", (8, 28, 28, 10), axis=[1, 2, 3]))
    assert pixel.shape == sample.shape == (8, 10, 6)
    assert pixel.blue == (frozenset({0}), frozenset(range(10)), frozenset({0}))
    assert sample.blue == (frozenset({0}), frozenset(range(10)), frozenset(range(6)))


def inside(point, corners):
    """Whether a point is in a convex polygon."""
    turns = [
        (bx - ax) * (point[1] - ay) - (by - ay) * (point[0] - ax)
        for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True)
    ]
    return all(turn > 0 for turn in turns) or all(turn < 0 for turn in turns)


def test_faces_tile_the_block_and_show_the_nearest_cell():
    cells = block(explain("group", (3, 2, 2, 6), groups=3))
    sides = list(faces(cells))
    n, c, s = cells.shape
    assert len({(side.side, side.cell) for side in sides}) == len(sides) == n * s + c * s + n * c
    silhouette = [(0, 0, 0), (n, 0, 0), (n, 0, s), (n, c, s), (0, c, s), (0, c, 0)]
    hexagon = [drawing.project(*corner) for corner in silhouette]
    draw = random.Random(0)
    xs, ys = zip(*hexagon, strict=True)
    hits = 0
    for _ in range(2000):
        point = draw.uniform(min(xs), max(xs)), draw.uniform(min(ys), max(ys))
        covering = [side for side in sides if inside(point, side.corners)]
        assert len(covering) == inside(point, hexagon)
        hits += len(covering)
    assert hits > 1000
    blue = set(itertools.product(*cells.blue))
    assert all(side.blue == (side.cell in blue) for side in sides)
    assert any(side.blue for side in sides)
    # What is seen is nearest: sample 0 on the left, channel 0 on the right, position 0 on top.
    nearest = {"left": 0, "right": 1, "top": 2}
    assert all(side.cell[nearest[side.side]] == 0 for side in sides)


@pytest.mark.parametrize(
    ("name", "options"),
    [("group", {"groups": 5}), ("layer", {"axis": 3}), ("rms", {}), ("all", {"groups": 5})],
)
def test_the_figure_paints_these_faces_in_blue(name, options):
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba

    explanation = explain(name, (8, 28, 28, 10), **options)
    ax = explanation.plot()
    painted = [one for one in ax.collections if isinstance(one, PolyCollection)]
    assert len(painted) == len(explanation.panels())
    blues = {to_rgba(colour) for colour in drawing.BLUE.values()}
    for one, collection in zip(explanation.panels(), painted, strict=True):
        expected = [side.blue for side in faces(block(one))]
        actual = [tuple(colour) in blues for colour in collection.get_facecolor()]
        assert len(actual) == len(expected)
        assert sum(actual) == sum(expected) > 0
    texts = [text.get_text() for text in ax.texts]
    assert "C = 10" in texts
    assert "N = 8" in texts
    assert "H, W = 28 × 28" in texts
    assert any("Schematic" in text for text in texts)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((32, 10), {}),
        ((8, 128, 10), {}),
        ((None, 28, 28, 10), {}),
        ((1, 1, 1, 10), {}),
        ((2, 3, 3, 3, 10), {}),
        ((10, 28, 28, 10), {"virtual_batch_size": 4}),
        ((4, 10), {"devices": 4}),
        ((2, 10), {"devices": 2, "synchronized": True}),
        ((1000, 28, 28, 10), {"devices": 8, "virtual_batch_size": 4}),
        ((4096, 5, 10), {"devices": 64, "synchronized": True}),
        ((12, 5, 10), {"devices": 4, "virtual_batch_size": 2}),
    ],
)
def test_every_text_of_the_picture_is_inside_it_and_apart(shape, options):
    explanation = explain("all", shape, groups=5, **options)
    figure = explanation.figure()
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_plot_draws_into_given_axes_without_pyplot():
    from matplotlib.figure import Figure

    figure = Figure()
    ax = figure.add_subplot()
    assert explain("batch", (8, 4)).plot(ax) is ax
    assert ax.collections
    assert explain("batch", (8, 4)).figure() is not figure


def test_the_words_of_the_readme_example():
    assert str(explain("group", (8, 28, 28, 10), groups=5)) == (
        "GroupNormalization(groups=5, axis=3) of x with shape (N, H, W, C) = (8, 28, 28, 10)\n"
        "  40 groups of elements (8 samples × 5 channel groups), each with its own mean and"
        " variance.\n"
        "  1,568 elements in each (28 rows × 28 columns × 2 channels).\n"
        "  gamma and beta vary over axis 3 (C), shape (10,) each: 20 parameters.\n"
        "Watch for:\n"
        "  - A channel group is 2 neighbouring channels, 0 to 1 the first: the order of the"
        " channels\n"
        "    matters."
    )


NOTES = {
    "one element": "One element per group: it equals its own mean, so the output is beta",
    "one in training": "so the output in training is beta",
    "sign": "only the sign is left",
    "two elements": "+1 and −1",
    "where one": "Where H = W = 1, a group has one element and the output is beta.",
    "noisy": "small batches give noisy statistics; here they are of 8 samples with ",
    "virtual noisy": "small virtual batches give noisy statistics; here they are of 4 samples "
    "with 4 elements and 1 sample with 1 element.",
    "average": "follow the average over the virtual batches",
    "last": "One element per group in the last virtual batch: it equals",
    "own": "Each device moves a moving mean and variance of its own",
    "inference": "In inference nothing of the batch is shared",
    "pixel": "axis=3 normalizes each pixel over its 10 channels, not each sample, although "
    "tutorials say 'all activations of a sample'; for that take axis=[1, 2, 3].",
    "step": "axis=2 normalizes each step over its 10 channels, not each sample; for that",
    "whole sample": "Group normalization with groups=1 has the same statistics",
    "per element": "an entry for every element of a sample",
    "shift": "adding a constant to x changes the output",
    "instance": "this is instance normalization",
    "layer statistics": "One group: the statistics of layer normalization over (H, W, C), but",
    "layer": "One group: this is layer normalization.",
    "neighbours": "A channel group is 2 neighbouring channels",
    "averages": "averaging the output over H, W gives beta",
    "later": "over all steps, later ones too",
}


@pytest.mark.parametrize(
    ("name", "shape", "options", "expected"),
    [
        ("batch", (8, 28, 28, 10), {}, {"noisy", "inference"}),
        ("batch", (1, 10), {}, {"one in training", "inference"}),
        (
            "batch",
            (9, 10),
            {"virtual_batch_size": 4},
            {"last", "one in training", "virtual noisy", "average", "inference"},
        ),
        ("batch", (16, 10), {"devices": 2}, {"noisy", "own", "inference"}),
        ("batch", (8, 10), {"devices": 2, "synchronized": True}, {"noisy", "inference"}),
        ("batch", (8, 10), {"devices": 8}, {"one in training", "own", "inference"}),
        ("layer", (8, 28, 28, 10), {}, {"pixel"}),
        ("layer", (8, 28, 28, 10), {"axis": [1, 2, 3]}, {"whole sample", "per element"}),
        ("layer", (8, 10), {}, set()),
        ("instance", (8, 28, 28, 10), {}, {"averages"}),
        ("instance", (None, None, None, 3), {}, {"where one", "averages"}),
        ("instance", (8, 10), {}, {"one element"}),
        ("group", (8, 28, 28, 10), {"groups": 5}, {"neighbours"}),
        ("group", (8, 28, 28, 10), {"groups": 10}, {"instance", "averages"}),
        ("group", (8, 28, 28, 10), {"groups": -1}, {"instance", "averages"}),
        ("group", (8, 28, 28, 10), {"groups": 1}, {"layer statistics"}),
        ("group", (8, 10), {"groups": 1}, {"layer"}),
        ("group", (8, 10), {"groups": 5}, {"neighbours", "two elements"}),
        ("group", (8, 20, 10), {"groups": 5}, {"neighbours", "later"}),
        ("rms", (8, 20, 10), {}, {"step", "shift"}),
        ("rms", (8, 20, 10), {"axis": [1, 2]}, {"later", "shift", "per element"}),
        ("rms", (8, 1), {}, {"sign", "shift"}),
    ],
)
def test_notes_say_what_applies_and_nothing_else(name, shape, options, expected):
    notes = " ".join(explain(name, shape, **options).notes)
    assert {key for key, phrase in NOTES.items() if phrase in notes} == expected | (
        {"noisy"} & expected
    )


def test_without_beta_the_constant_output_is_zero():
    explanation = explain("instance", (8, 10), center=False)
    assert explanation.learned == ("gamma",)
    assert "the output is 0" in str(explanation)
    assert "10 parameters; there is no beta." in str(explanation)
    bare = explain("instance", (8, 10), center=False, scale=False)
    assert bare.parameters == 0
    assert "There is no gamma and no beta: nothing is learned." in str(bare)


def test_unknown_sizes_are_symbols():
    explanation = explain("group", (None, None, 28, 10), groups=5)
    assert explanation.groups_of_elements is None
    assert explanation.elements_per_group is None
    assert explanation.parameters == 20
    assert "N × 5 groups of elements (N samples × 5 channel groups)" in str(explanation)
    assert "H × 56 elements in each (H rows × 28 columns × 2 channels)" in str(explanation)
    assert explain("batch", (None, 10)).groups_of_elements == 10


def test_all_is_the_papers_figure_and_says_what_it_chose():
    everything = explain("all", (8, 28, 28, 10))
    assert [one.title for one in everything.items] == [
        "BatchNormalization(axis=3)",
        "LayerNormalization(axis=[1, 2, 3])",
        "InstanceNormalization(axis=3)",
        "GroupNormalization(groups=5, axis=3)",
    ]
    assert "groups=5, the most, up to 32, that divide the 10 channels" in " ".join(
        str(everything).split()
    )
    for one in everything.items:
        assert str(one) in str(everything)
    first = explain("all", (8, 64, 28, 28), axis=1)
    assert first.items[3].title == "GroupNormalization(groups=32, axis=1)"
    assert explain("all", (8, 7)).items[3].view.groups == 1
    assert explain("all", (8, 1)).items[3].view.groups == 1
    # The four blocks have the same size, that of the one with groups.
    assert {block(one, 8).shape for one in first.items} == {(8, 8, 6)}


class InstanceNormalization(keras.layers.GroupNormalization):
    """Shaped as truenorm's: a group normalization whose `groups` says nothing."""


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize(
    ("layer", "name", "options"),
    [
        (keras.layers.BatchNormalization, "batch", {"axis": 1}),
        (keras.layers.LayerNormalization, "layer", {"axis": 3}),
        (keras.layers.LayerNormalization, "layer", {"axis": [1, 2, 3], "center": False}),
        (keras.layers.GroupNormalization, "group", {"groups": 2, "axis": 1, "scale": False}),
        (keras.layers.RMSNormalization, "rms", {"axis": 3}),
        (InstanceNormalization, "instance", {"axis": 3, "center": False}),
        (truenorm.BatchNormalization, "batch", {"synchronized": True}),
        (truenorm.BatchNormalization, "batch", {"axis": [1, 3], "virtual_batch_size": 1}),
    ],
)
def test_layer_objects_bring_their_settings(layer, name, options, built):
    one = layer(**options)
    if built:
        one.build((2, 4, 4, 32))
    explanation = explain(one, (2, 4, 4, 32))
    assert isinstance(explanation, Explanation)
    assert str(explanation) == str(explain(name, (2, 4, 4, 32), **options))
    if built and name != "instance":
        sizes = [math.prod(weight.shape) for weight in one.trainable_weights]
        assert explanation.parameters == sum(sizes)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("goup", (8, 10), {}, r"unknown normalization 'goup'; did you mean 'group'\? expected one"),
        ("Layer", (8, 10), {}, "did you mean 'layer'?"),
        ("zzz", (8, 10), {}, "unknown normalization 'zzz'; expected one of batch, layer, inst"),
        ("group", (8, 28, 28, 10), {}, r"groups=32 does not divide the 10 .* \(1, 2, 5, 10\)"),
        ("group", (8, 10), {"groups": 0}, "groups=0 must be a positive divisor.*, or -1"),
        ("group", (8, 10), {"groups": -2}, "groups=-2 must be a positive divisor.*, or -1"),
        ("group", (8, 10), {"groups": True}, "groups=True must be an integer"),
        (
            "group",
            (8, 4, 10),
            {"axis": [1, 2], "groups": 2},
            r"axis=.* must be one integer, the channel axis",
        ),
        ("layer", (8, 10), {"groups": 2}, "groups=2 is an option of group normalization"),
        ("layer", (8, 10), {"axis": 2}, "axis=2 is out of range for an input of rank 2"),
        ("layer", (8, 10), {"axis": 0}, "axis=0 names the batch axis"),
        ("layer", (8, 10), {"axis": "x"}, "axis='x' must be an integer"),
        ("layer", (8, None, 10), {"axis": [1, 2]}, "size of axis 1 is unknown .* give its size"),
        ("batch", (8, None), {}, "size of axis 1 is unknown"),
        ("layer", (8, 10), {"devices": 2}, "devices=2 is an option of batch normalization, not of"),
        ("rms", (8, 10), {"virtual_batch_size": 2}, "virtual_batch_size=2 is an option of batch"),
        ("group", (8, 10), {"groups": 2, "synchronized": True}, "synchronized=True is an option"),
        ("weight", (8, 10), {"devices": 2}, "devices cannot be given for 'weight'"),
        (
            "batch",
            (8, 10),
            {"devices": 3},
            "devices=3 does not divide the 8 samples .* divisor of 8",
        ),
        ("batch", (8, 10), {"devices": 0}, "devices=0 must be 1 or more"),
        ("batch", (8, 10), {"devices": 1.5}, "devices=1.5 must be an integer"),
        ("batch", (8, 10), {"virtual_batch_size": 0}, "virtual_batch_size=0 must be 1 or more"),
        ("batch", (None, 10), {"virtual_batch_size": 2}, "=2 needs the number of samples"),
        ("batch", (None, 10), {"devices": 2}, "devices=2 needs the number of samples"),
        (
            "batch",
            (8, 10),
            {"virtual_batch_size": 2, "synchronized": True},
            "virtual_batch_size=2 and synchronized=True contradict each other",
        ),
        (
            truenorm.BatchNormalization(),
            (8, 10),
            {"virtual_batch_size": 2, "devices": 2},
            "^virtual_batch_size cannot be given with a",
        ),
        ("rms", (8, 10), {"center": True}, "RMS normalization has no beta"),
        ("group", (8,), {}, r"shape=\(8,\) has rank 1; expected at least 2 axes"),
        ("group", (8, 0), {}, "sizes of at least 1"),
        ("group", (8, 1.5), {}, "must be a sequence of integers"),
        ("group", 8, {}, "shape=8 must be a sequence of integers"),
        ("all", (8, 4, 10), {"axis": [1, 2]}, r"axis=.* must be one integer, the channel axis"),
        (keras.layers.Dense(3), (8, 10), {}, "expected a name .* or a layer"),
        (keras.layers.LayerNormalization, (8, 10), {}, "an instance of BatchNormalization"),
        (keras.layers.LayerNormalization(), (8, 10), {"axis": 1}, "axis cannot be given with a"),
    ],
)
def test_errors_name_the_problem_and_the_fix(name, shape, options, message):
    with pytest.raises(InputError, match=message):
        explain(name, shape, **options)


def test_texts_of_the_command_line_are_read():
    assert parse_shape("8,28, 28,10") == (8, 28, 28, 10)
    assert parse_shape("(?,10)") == (None, 10)
    assert parse_axis("-1") == -1
    assert parse_axis("1,2, 3") == [1, 2, 3]
    for text in ("8,a", "", "8x28", "8,,10"):
        with pytest.raises(InputError, match="cannot read the shape"):
            parse_shape(text)
    with pytest.raises(InputError, match="cannot read the axis 'c'"):
        parse_axis("c")


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("PDF", b"%PDF")]
)
def test_pictures_are_written_in_the_format_of_their_suffix(tmp_path, suffix, start):
    path = tmp_path / f"norm.{suffix}"
    assert cli.main(["explain", "all", "--out", str(path)]) == 0
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["goup"], "did you mean 'group'?"),
        (["group", "--shape", "8,28,28,10"], "choose a divisor of 10 (1, 2, 5, 10)"),
        (["group", "--shape", "8;28"], "cannot read the shape '8;28'"),
        (["layer", "--axis", "7"], "axis=7 is out of range"),
        (["layer", "--axis", "c"], "cannot read the axis 'c'"),
        (["all", "--out", "norm.gif"], "end the name with .png, .svg or .pdf"),
        (["all", "--out", "norm"], "end the name with .png, .svg or .pdf"),
        (["all", "--out", "nowhere/norm.png"], "the folder 'nowhere' does not exist"),
        (["all", "--out", "folder.png"], "is a folder"),
        (
            ["all", "--out", "there.png"],
            "exists; choose another name, or overwrite it with --force",
        ),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "there.png").write_text("mine")
    assert cli.main(["explain", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("truenorm explain: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert (tmp_path / "there.png").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"folder.png", "there.png"}


def test_the_command_cuts_a_batch(capsys):
    arguments = ["explain", "batch", "--shape", "12,10", "--devices", "2"]
    for more, options in [
        ([], {}),
        (["--virtual-batch-size", "4"], {"virtual_batch_size": 4}),
        (["--synchronized"], {"synchronized": True}),
    ]:
        assert cli.main([*arguments, *more]) == 0
        printed = capsys.readouterr().out
        assert printed == f"{explain('batch', (12, 10), devices=2, **options)}\n"
    assert cli.main([*arguments[:-1], "5"]) == 2
    assert "devices=5 does not divide the 12 samples" in capsys.readouterr().err


def test_devices_are_given_with_a_layer_which_knows_none():
    layer = truenorm.BatchNormalization(synchronized=True)
    assert str(explain(layer, (8, 10), devices=2)) == str(
        explain("batch", (8, 10), devices=2, synchronized=True)
    )


def test_force_overwrites_and_a_failed_write_loses_nothing(tmp_path, monkeypatch, capsys):
    path = tmp_path / "norm.png"
    path.write_text("mine")

    def fail(*names):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", fail)
        assert cli.main(["explain", "batch", "--out", str(path), "--force"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]
    assert cli.main(["explain", "batch", "--out", str(path), "--force"]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_notebooks_show_picture_and_words_and_words_alone_without_matplotlib(monkeypatch):
    explanation = explain("group", (8, 28, 28, 10), groups=5)
    assert explanation._repr_png_().startswith(b"\x89PNG")
    assert '<img alt="' in explanation._repr_html_()
    assert "data:image/svg+xml;base64," in explanation._repr_html_()
    assert "1,568 elements" in explanation._repr_html_()
    assert repr(explanation) == str(explanation)
    monkeypatch.setattr(drawing.importlib.util, "find_spec", lambda name: None)
    assert explanation._repr_png_() is None
    assert "<img" not in explanation._repr_html_()
    assert "1,568 elements" in explanation._repr_html_()
    with pytest.raises(InputError, match=r"pip install matplotlib"):
        explanation.plot()


def test_the_command_prints_the_words_without_importing_matplotlib():
    code = (
        "import sys, keras\nfrom truenorm import cli\n"
        # Keras imports it itself: so it is forgotten, and must not come back.
        "[sys.modules.pop(name) for name in list(sys.modules) if name.startswith('matplotlib')]\n"
        "code = cli.main(['explain', 'group', '--groups', '5', '--shape', '?,28,28,10'])\n"
        "assert code == 0 and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "N × 5 groups of elements" in done.stdout


def test_all_with_an_axis_are_the_panels_that_each_gives_alone():
    together = str(explain("all", (8, 10, 28, 28), axis=1))
    words = " ".join(together.split())
    assert "layer normalization over axis 1, which is the channel axis of the others" in words
    for name in ("batch", "layer", "instance"):
        assert str(explain(name, (8, 10, 28, 28), axis=1)) in together


def test_filter_response_normalization():
    found = explain("frn", (8, 28, 28, 10))
    assert (found.groups_of_elements, found.elements_per_group, found.parameters) == (80, 784, 20)
    assert "root mean square" in str(found)
    first = explain("frn", (8, 10, 28, 28), axis=[2, 3])
    assert first.axis_names == ("N", "C", "H", "W")
    assert first.elements_per_group == 784
    layer = truenorm.FilterResponseNormalization(axis=[2, 3])
    assert str(explain(layer, (8, 10, 28, 28))) == str(first)
    with pytest.raises(InputError, match=r"axis=1 leaves the axes \[2, 3\]"):
        explain("frn", (8, 10, 28, 28), axis=1)
    with pytest.raises(InputError, match="center is no option of 'frn'"):
        explain("frn", (8, 10, 28, 28), center=False)


def test_weight_normalization():
    found = explain("weight", (3, 3, 16, 32))
    assert found.axis_names == ("H", "W", "I", "O")
    assert (found.groups_of_elements, found.elements_per_group, found.parameters) == (32, 144, 32)
    words = " ".join(str(found).split())
    assert "32 groups of elements (32 output units), each with its own length g" in words
    assert "No statistics of the data are taken" in words
    for options in ({"axis": 1}, {"groups": 2}):
        with pytest.raises(InputError, match=r"weight|group normalization"):
            explain("weight", (3, 3, 16, 32), **options)
    with pytest.raises(InputError, match="must be known"):
        explain("weight", (None, 8))
    with pytest.raises(InputError, match=r"explain\('weight', kernel_shape\)"):
        explain(truenorm.WeightNormalization(keras.layers.Dense(3)), (8, 4))


def test_channels_that_are_not_drawn_are_said_in_text_that_can_be_read():
    picture = explain("group", (8, 7, 7, 512)).image("svg").decode()
    for text in ("…", "C = 512", "stands for channels not drawn", "Group normalization"):
        assert f"{text}" in picture
    assert "not drawn" not in explain("group", (8, 7, 7, 10), groups=5).image("svg").decode()
