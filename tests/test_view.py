"""The view by brute force: every element's statistics group, by definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from truenorm.core.view import (
    View,
    axes_view,
    canonical_axes,
    channel_view,
    check_groups,
    group_view,
)

SHAPES = {2: (3, 12), 3: (2, 5, 12), 4: (2, 3, 4, 12), 5: (2, 3, 4, 2, 12)}


def definition(shape, reduced, channel=None, groups=None):
    """The group of each element, as an array of labels: kept indices, and the channel's group."""
    labels = np.empty(shape, object)
    for index in np.ndindex(*shape):
        label = tuple(index[axis] for axis in range(len(shape)) if axis not in reduced)
        if channel is not None:
            label += (index[channel] // (shape[channel] // groups),)
        labels[index] = label
    return labels


def groups_of(view: View, shape):
    """The same from the view: the position in (K0, K1) of each element."""
    k0, r0, k1, r1 = view.sizes(shape)
    label = np.broadcast_to(np.arange(k0 * k1).reshape(k0, 1, k1, 1), (k0, r0, k1, r1)).reshape(
        [shape[axis] for axis in view.order]
    )
    return label.transpose(np.argsort(view.order))


def check(view: View, shape, labels):
    found = groups_of(view, shape)
    pairs = set(zip(labels.ravel().tolist(), found.ravel().tolist(), strict=True))
    # A bijection between the two sets of labels: the same partition.
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


@pytest.mark.parametrize(
    ("view", "shape", "sizes"),
    [
        (group_view(4, 3, 5), (2, 3, 4, 10), (2, 12, 5, 2)),
        (group_view(4, 1, 5), (2, 10, 3, 4), (1, 1, 10, 24)),
        (group_view(4, 2, 5), (2, 3, 10, 4), (2, 3, 5, 8)),
        (group_view(4, 3, -1), (2, 3, 4, 10), (2, 12, 10, 1)),
        (group_view(4, 1, -1), (2, 10, 3, 4), (1, 1, 20, 12)),
        (axes_view(3, (2,)), (2, 3, 10), (1, 1, 6, 10)),
        (axes_view(4, (1,)), (2, 3, 4, 5), (2, 3, 20, 1)),
        (axes_view(4, (1, 3)), (2, 3, 4, 5), (2, 3, 4, 5)),
        (axes_view(4, (0, 1, 2), (3,)), (2, 3, 4, 5), (1, 24, 5, 1)),
        (axes_view(4, (0, 2, 3), (1,)), (2, 3, 4, 5), (1, 2, 3, 20)),
        (channel_view(4, [1, 2]), (2, 3, 4, 5), (2, 12, 5, 1)),
        (channel_view(4, [2, 3]), (2, 3, 4, 5), (1, 1, 6, 20)),
        (axes_view(4, (0, 2)), (2, 3, 4, 5), (1, 1, 15, 8)),
    ],
)
def test_rows_of_the_table(view, shape, sizes):
    assert view.sizes(shape) == sizes


def test_only_what_alternates_too_often_is_transposed():
    assert axes_view(4, (0, 2)).order == (1, 3, 0, 2)
    assert not axes_view(4, (1, 3)).transposed
    assert all(
        not group_view(rank, axis, 2).transposed for rank in range(2, 7) for axis in range(1, rank)
    )


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("groups", [1, 3, 12, -1])
def test_group_views_by_definition(rank, groups):
    for axis in range(1, rank):
        shape = list(SHAPES[rank])
        shape[axis], shape[-1] = shape[-1], shape[axis]
        reduced = [one for one in range(rank) if one != 0]
        labels = definition(tuple(shape), reduced, axis, 12 if groups == -1 else groups)
        check(group_view(rank, axis, groups), tuple(shape), labels)


@pytest.mark.parametrize("rank", SHAPES)
def test_axes_views_by_definition(rank):
    for count in range(1, rank + 1):
        for reduced in itertools.combinations(range(rank), count):
            check(axes_view(rank, reduced), SHAPES[rank], definition(SHAPES[rank], reduced))


@pytest.mark.parametrize("rank", SHAPES)
def test_channel_views_by_definition(rank):
    for channel in range(1, rank):
        reduced = [axis for axis in range(1, rank) if axis != channel]
        for axes in (reduced, [axis - rank for axis in reversed(reduced)]):
            view = channel_view(rank, axes)
            assert view.parameter_axes == (channel,)
            check(view, SHAPES[rank], definition(SHAPES[rank], reduced))


@given(st.data())
def test_random_recipes(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=6)))
    rank = len(shape)
    if data.draw(st.booleans()):
        axis = data.draw(st.integers(1, rank - 1))
        groups = data.draw(st.sampled_from([n for n in range(1, 5) if shape[axis] % n == 0]))
        labels = definition(shape, range(1, rank), axis, groups)
        check(group_view(rank, axis, groups), shape, labels)
    else:
        reduced = sorted(data.draw(st.sets(st.integers(0, rank - 1), min_size=1)))
        check(axes_view(rank, reduced), shape, definition(shape, reduced))


def test_canonical_axes():
    assert canonical_axes(-1, 4) == (3,)
    assert canonical_axes([3, -2], 4) == (2, 3)
    assert canonical_axes(np.int64(1), 3) == (1,)


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (4, r"axis=4 is out of range for an input of rank 4; allowed axes are 1 to 3, or -3 to -1"),
        (-5, r"axis=-5 is out of range for an input of rank 4"),
        (0, r"axis=0 names the batch axis of an input of rank 4"),
        (-4, r"axis=-4 names the batch axis"),
        ([1, -3], r"axis=\[1, -3\] names an axis twice for an input of rank 4"),
        ([], r"axis=\[\] names no axis"),
    ],
)
def test_axes_that_do_not_fit(axis, message):
    with pytest.raises(ValueError, match=message):
        canonical_axes(axis, 4, first=1)


def test_the_first_axis_where_it_may_be_named():
    assert canonical_axes([0, -1], 3) == (0, 2)
    assert canonical_axes(0, 1) == (0,)
    with pytest.raises(ValueError, match=r"axis=3 is out of range.* 0 to 2, or -3 to -1"):
        canonical_axes(3, 3)


def test_axes_that_are_no_integers():
    with pytest.raises(TypeError, match=r"axis=1.5 must be an integer or a list of integers"):
        canonical_axes(1.5, 4)


def test_groups_that_do_not_divide():
    message = r"groups=4 does not divide the 10 channels of axis 3; .*1, 2, 5, 10"
    with pytest.raises(ValueError, match=message):
        check_groups(4, 10, 3)
    message = r"groups=7 does not divide the 1000000000000 channels .*\(1, 2, 4, 5, 8, 10, 16, 20,"
    with pytest.raises(ValueError, match=message):
        check_groups(7, 10**12, 3)
    check_groups(5, 10, 3)
    check_groups(4, None, 3)
