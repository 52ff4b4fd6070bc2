"""Pictures of explanations: an isometric block with the elements that share statistics in blue.

`block` decides which cells are drawn and which of them are blue, in integers; `faces` turns
them into polygons; `draw` paints those with matplotlib, which is imported only there.
"""

import base64
import dataclasses
import functools
import html
import importlib.util
import io
import itertools
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from truenorm.core.errors import InputError
from truenorm.tools.explain.parts import Split, shown
from truenorm.tools.figures import need_matplotlib
from truenorm.tools.writing import checked_path, write

if TYPE_CHECKING:
    from truenorm.tools.explain.explanation import Explanation

FORMATS = ("png", "svg", "pdf")
CHANNELS = 10  # the most channels that are drawn one by one
DEVICE = 2  # how far the border between devices goes on below the block, in cells
SAMPLES = 12  # the most samples of a batch that is cut
INCH = 0.2  # the edge of a cell
MARGIN = 0.45 / INCH  # beside a block
COS, SIN = math.cos(math.radians(28)), math.sin(math.radians(28))
# Blue against grey differs in lightness too, for every kind of colour vision and for grey print.
BLUE = {"top": "#4a9be0", "left": "#1f77c4", "right": "#155a99"}
PLAIN = {"top": "#f7f8fa", "left": "#e9ebef", "right": "#d9dce2"}
EDGE, EDGE_BLUE, INK, FAINT = "#9aa1ad", "#0d3f70", "#2b3240", "#6b7280"


class Drawable:
    """What one explanation and several side by side have in common: the picture."""

    def panels(self) -> "tuple[Explanation, ...]":
        """The explanations to draw, from left to right."""
        raise NotImplementedError

    def plot(self, ax: Any = None) -> Any:
        """Draw into this matplotlib Axes, or into those of a new figure, and return the Axes.

        The figure is none of pyplot's: nothing needs to be closed.

        Raises:
            InputError: matplotlib is not installed.
        """
        need_matplotlib()
        return draw(self.panels(), ax)

    def figure(self) -> Any:
        """A new matplotlib Figure with the picture."""
        return self.plot().figure

    def image(self, format: str = "png") -> bytes:
        """The picture as the bytes of a png, svg or pdf file.

        Its ground is white, so that it is read on dark pages, too.
        """
        buffer = io.BytesIO()
        import matplotlib

        with matplotlib.rc_context({"svg.fonttype": "none"}):  # text that can be read and found
            self.figure().savefig(buffer, format=format, dpi=200)
        return buffer.getvalue()

    def save(self, path: str | os.PathLike[str], force: bool = False) -> None:
        """Write the picture to a .png, .svg or .pdf file; `force` overwrites an existing one.

        Raises:
            InputError: the suffix is another, the file exists, or it cannot be written.
        """
        check_output(path, force)
        path = pathlib.Path(path)
        write(path, self.image(_format(path)))

    def _repr_html_(self) -> str:
        """The picture and the words, for notebooks; the words alone without matplotlib."""
        words = f"<pre>{html.escape(str(self))}</pre>"
        if importlib.util.find_spec("matplotlib") is None:
            return words
        # An <img>, as the ids of two inline SVGs could collide on one page.
        data = base64.b64encode(self.image("svg")).decode()
        return (
            '<img alt="the elements that share statistics" style="max-width: 100%" '
            f'src="data:image/svg+xml;base64,{data}">{words}'
        )

    def _repr_png_(self) -> bytes | None:
        return self.image("png") if importlib.util.find_spec("matplotlib") else None


def check_output(path: str | os.PathLike[str], force: bool) -> None:
    """Raise InputError unless a picture can be written there; cheap, so ask before drawing."""
    path = checked_path(path)
    _format(path)
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder; name a file in it, such as norm.png.")
    if path.exists() and not force:
        raise InputError(
            f"{str(path)!r} exists; choose another name, or overwrite it with --force "
            "(force=True in Python)."
        )
    if not path.parent.is_dir():
        raise InputError(
            f"the folder {str(path.parent)!r} does not exist; create it, or name another."
        )
    need_matplotlib()


def _format(path: pathlib.Path) -> str:
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise InputError(
            f"cannot tell the format of {str(path)!r}; end the name with .png, .svg or .pdf."
        )
    return suffix


@dataclasses.dataclass(frozen=True)
class Block:
    """The cells that are drawn: (sample, channel, position), position being H and W (or T) merged.

    Attributes:
        shape: how many samples, channels and positions are drawn.
        blue: the samples, the channels and the positions of one set of elements that share
            statistics; the set is their product.
        width: how many drawn channels make a group; None where channels are not grouped.
        batches: for each drawn device how many samples of each virtual batch are drawn.
        exact: whether every element has its cell; else the drawing is schematic.
    """

    shape: tuple[int, int, int]
    blue: tuple[frozenset[int], frozenset[int], frozenset[int]]
    width: int | None
    batches: tuple[tuple[int, ...], ...]
    exact: bool


def block(explanation: "Explanation", channels: int | None = None) -> Block:
    """Choose the cells to draw; `channels` is how many, where the channels are not in groups."""
    view, shape = explanation.view, explanation.shape
    channel, spatial = _channel_and_spatial(explanation)
    kept = {factor.axis for factor in view.factors if not factor.reduced}

    split = explanation.split
    batches = ((_few(shape[0]),),) if split is None else _few_batches(split)
    samples = sum(map(sum, batches))
    width = None
    if view.groups is not None and view.groups != -1:
        groups, width = _few_groups(explanation.parameter_shape[0], view.groups)
        channels = groups * width
    elif channels is None:
        channels = _few(shape[channel], CHANNELS)

    # H and W are one axis where they are treated alike, else each is drawn with a few cells.
    if len({axis in kept for axis in spatial}) > 1:
        lengths = [min(shape[axis] or 3, 3 if len(spatial) == 2 else 2) for axis in spatial]
        fixed = [axis in kept for axis in spatial]
    else:
        unknown = any(shape[axis] is None for axis in spatial)
        lengths = [_few(None if unknown else math.prod(shape[axis] or 1 for axis in spatial))]
        fixed = [any(axis in kept for axis in spatial)]
    positions = list(itertools.product(*(range(length) for length in lengths)))

    # Every kept coordinate is 0 in the set that is shown, so that it reaches the front corner.
    together = samples if split is None or split.synchronized else batches[0][0]
    blue_samples = [0] if 0 in kept else range(together)
    if width is not None:
        blue_channels: Sequence[int] = range(width)
    else:
        blue_channels = [0] if channel in kept else range(channels)
    blue_positions = [
        index
        for index, position in enumerate(positions)
        if all(at == 0 for at, one in zip(position, fixed, strict=True) if one)
    ]
    drawn = samples * channels * len(positions)
    return Block(
        (samples, channels, len(positions)),
        (frozenset(blue_samples), frozenset(blue_channels), frozenset(blue_positions)),
        width,
        batches,
        None not in shape and drawn == math.prod(size or 1 for size in shape),
    )


def _few(size: int | None, most: int = 8) -> int:
    """How many cells to draw along an axis: all where they are few, six for many."""
    return size if size is not None and size <= most else 6


def _few_batches(split: Split) -> tuple[tuple[int, ...], ...]:
    """How many samples to draw of each batch that is drawn: of a smaller one fewer."""
    devices, batches = shown(split.devices), shown(split.batches)
    width = split.size
    if split.samples > SAMPLES:
        width = min(width, max(SAMPLES // (len(devices) * len(batches)), 2))
    row = [width] * len(batches)
    left = len(split.batch(0, split.batches - 1))
    if left < split.size:
        row[-1] = min(left, width - 1)
    return (tuple(row),) * len(devices)


def _few_groups(channels: int, groups: int) -> tuple[int, int]:
    """How many groups of channels to draw, and how wide."""
    if channels <= CHANNELS:
        return groups, channels // groups
    width = min(channels // groups, 3 if groups > 1 else 6)
    return min(groups, max(9 // width, 1) if width > 1 else 6), width


@dataclasses.dataclass(frozen=True)
class Face:
    """One visible side of one cell, as a polygon in the plane of the drawing."""

    side: str
    cell: tuple[int, int, int]
    corners: tuple[tuple[float, float], ...]
    blue: bool


def faces(cells: Block) -> Iterator[Face]:
    """The visible sides of the block, which hide everything else: nothing overlaps.

    The nearest vertical edge is at x = 0, between the face of sample 0 on the left (its channels
    count leftwards) and the face of channel 0 on the right (its samples count rightwards);
    position 0 is at the top.
    """
    samples, channels, positions = cells.shape

    def face(side: str, cell: tuple[int, int, int], *corners: tuple[int, int, int]) -> Face:
        blue = all(at in chosen for at, chosen in zip(cell, cells.blue, strict=True))
        return Face(side, cell, tuple(project(*corner) for corner in corners), blue)

    for s in range(positions):
        high, low = positions - s, positions - s - 1
        for c in range(channels):
            corners = (0, c, low), (0, c + 1, low), (0, c + 1, high), (0, c, high)
            yield face("left", (0, c, s), *corners)
        for n in range(samples):
            corners = (n, 0, low), (n + 1, 0, low), (n + 1, 0, high), (n, 0, high)
            yield face("right", (n, 0, s), *corners)
    for n, c in itertools.product(range(samples), range(channels)):
        top = (n, c), (n + 1, c), (n + 1, c + 1), (n, c + 1)
        yield face("top", (n, c, 0), *((*at, positions) for at in top))


def project(n: float, c: float, height: float) -> tuple[float, float]:
    """Isometric projection: samples run to the right and back, channels to the left and back."""
    return (n - c) * COS, (n + c) * SIN + height


def draw(explanations: Sequence["Explanation"], ax: Any = None) -> Any:
    """Draw the blocks side by side into `ax`, or a new figure's, and return the Axes."""
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.figure import Figure

    grouped = [block(one).shape[1] for one in explanations if block(one).width is not None]
    blocks = [block(one, max(grouped, default=None)) for one in explanations]
    line = 0.21 / INCH  # one line of text, in the units of the drawing
    margins = [_left_label(one, cells)[1] for one, cells in zip(explanations, blocks, strict=True)]
    widths = [
        max((cells.shape[0] + cells.shape[1]) * COS + 2 * margin, 3.6 / INCH)
        for cells, margin in zip(blocks, margins, strict=True)
    ]
    width = sum(widths)
    shared = " or ".join(dict.fromkeys(one.statistics for one in explanations))
    footer = [f"In blue: elements that share one {shared}."]
    if not all(cells.exact for cells in blocks):
        footer.append("Schematic: fewer cells than elements.")
    rows = [_sample_labels(one, cells) for one, cells in zip(explanations, blocks, strict=True)]
    left_out = ["channels"] if any(map(_leaves_out, explanations, blocks)) else []
    if any(text == "…" for labels in itertools.chain(*rows) for *_, text in labels):
        left_out.append("samples")
    if left_out:
        footer.append(f"… stands for {' and '.join(left_out)} not drawn.")
    if len(blocks) > 1:
        footer = [" ".join(footer)]
    top = max(project(*cells.shape)[1] for cells in blocks) + 3.2 * line
    below = 2.2 + max(map(len, rows))  # the lines between the block and its caption
    bottom = -(below + 4.1 + len(footer)) * line
    if ax is None:
        figure = Figure(figsize=(width * INCH, (top - bottom) * INCH), facecolor="white")
        ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_aspect("equal")
    ax.set_xlim(0, width)
    ax.set_ylim(bottom, top)

    x = 0.0
    for one, cells, panel in zip(explanations, blocks, widths, strict=True):
        # The front edge is where the block is centred in its panel.
        front = x + (panel - (cells.shape[0] - cells.shape[1]) * COS) / 2
        sides = sorted(faces(cells), key=lambda side: side.blue)  # blue edges over grey ones
        ax.add_collection(
            PolyCollection(
                [[(front + px, py) for px, py in side.corners] for side in sides],
                facecolors=[(BLUE if side.blue else PLAIN)[side.side] for side in sides],
                edgecolors=[EDGE_BLUE if side.blue else EDGE for side in sides],
                linewidths=0.6,
                joinstyle="round",
            )
        )
        ax.add_collection(
            LineCollection(
                [[(front + px, py) for px, py in path] for _, path in _outline(cells)],
                colors=INK,
                linewidths=[wide for wide, _ in _outline(cells)],
                capstyle="round",
                joinstyle="round",
            )
        )
        _label(ax, front, one, cells, line, below)
        x += panel
    for row, text in enumerate(footer):
        at = -(below + 3.6 + row) * line
        ax.text(width / 2, at, text, ha="center", va="top", size=9, color=FAINT, style="italic")
    return ax


def _outline(cells: Block) -> Iterator[tuple[float, list[tuple[float, float]]]]:
    """The edges of the block and the borders in it, with the widths of the lines.

    Between groups of channels, between batches, and, wider, between devices.
    """
    samples, channels, height = cells.shape
    around = [(0, 0, 0), (samples, 0, 0), (samples, 0, height), (samples, channels, height)]
    around += [(0, channels, height), (0, channels, 0), (0, 0, 0), (0, 0, height)]
    lines = [(1.3, around), (1.3, [(0, channels, height), (0, 0, height), (samples, 0, height)])]
    if cells.width is not None:
        for c in range(cells.width, channels, cells.width):
            lines.append((1.3, [(0, c, 0), (0, c, height), (samples, c, height)]))
    *batches, _ = itertools.accumulate(itertools.chain(*cells.batches))
    for n in batches:
        lines.append((1.3, [(n, 0, 0), (n, 0, height), (n, channels, height)]))
    for n in itertools.accumulate(map(sum, cells.batches[:-1])):
        lines.append((2.0, [(n, 0, -DEVICE), (n, 0, height), (n, channels, height)]))
    for wide, corners in lines:
        yield wide, [project(*corner) for corner in corners]


def _label(ax: Any, x: float, one: "Explanation", cells: Block, line: float, below: float) -> None:
    """Write the title, the axes and the caption of one block whose front edge is at x."""
    samples, channels, height = cells.shape
    write = functools.partial(ax.text, size=10.5, color=INK)
    channel, _ = _channel_and_spatial(one)
    text, margin = _left_label(one, cells)
    px, py = project(0, channels, height / 2)
    rotation = 90 if margin == MARGIN else 0
    write(x + px - line / 2, py, text, rotation=rotation, ha="right", va="center")
    px, py = project(0, channels / 2, 0)
    write(x + px - 0.3 * line, py - 0.3 * line, _size(one, channel), ha="right", va="top")
    rows = _sample_labels(one, cells)
    for row, labels in enumerate(rows):
        for at, side, text in labels:
            px, py = project(at, 0, 0)
            write(x + px, py - (0.3 + row) * line, text, ha=side, va="top", size=8.5)
    px, py = project(samples / 2, 0, 0)
    under = (0.3 + 1.4 * len(rows)) * line
    write(x + px + 0.3 * line, py - under, _size(one, 0), ha="left", va="top")

    if _leaves_out(one, cells):
        px, py = project(0, channels, height)
        write(x + px - 0.2 * line, py, "…", ha="right", va="bottom", weight="bold")
    middle = x + (samples - channels) * COS / 2
    top = project(samples, channels, height)[1]
    write(middle, top + 1.7 * line, one.heading, ha="center", va="bottom", size=13, weight="bold")
    write(middle, top + 0.6 * line, one.subtitle, ha="center", va="bottom", color=FAINT)
    for row, text in enumerate(one.caption()):
        write(middle, -(below + row) * line, text, ha="center", va="top", size=9.5)


def _sample_labels(one: "Explanation", cells: Block) -> list[list[tuple[float, str, str]]]:
    """Where along the samples to write how many make a batch, and which device has them.

    A row for each, of places, alignments and texts; none where there is one batch, or one device.
    """
    if one.split is None:
        return []
    sizes, names, begin = [], [], 0
    for drawn, device in zip(cells.batches, shown(one.split.devices), strict=True):
        name = "…" if device is None else f"device {device}"
        if sum(drawn) > 1:
            names.append((begin + 0.35, "left", name))
        else:  # one cell has room for the number: the word is beside the block, once
            names.append((begin + 0.85, "right", name if begin == 0 else name.split()[-1]))
        for width, index in zip(drawn, shown(one.split.batches), strict=True):
            text = "…" if index is None else f"{len(one.split.batch(0, index))}"
            sizes.append((begin + width / 2, "center", text))
            begin += width
    return [row for row in (sizes, names) if len(row) > 1]


def _leaves_out(one: "Explanation", cells: Block) -> bool:
    """Whether fewer channels are drawn than there are, or are known."""
    there = one.shape[one.channel_axis]
    return there is None or cells.shape[1] < there


def _left_label(one: "Explanation", cells: Block) -> tuple[str, float]:
    """The label of the vertical axis, and the margin that it needs."""
    _, spatial = _channel_and_spatial(one)
    text = _size(one, *spatial) if spatial else ""
    length = 0.085 * len(text) / INCH
    # Upright where the block is tall enough for it.
    return text, MARGIN if length < cells.shape[2] + 1 else length + 0.2 / INCH


def _channel_and_spatial(one: "Explanation") -> tuple[int, list[int]]:
    """The channel axis, and those that are neither the samples' nor the channels'."""
    channel = one.channel_axis
    return channel, [axis for axis in range(1, len(one.shape)) if axis != channel]


def _size(one: "Explanation", *axes: int) -> str:
    """The label of one or more axes: "H, W = 28 × 28"."""
    letters = ", ".join(one.axis_names[axis] for axis in axes)
    sizes = (one.shape[axis] for axis in axes)
    return f"{letters} = {' × '.join('?' if size is None else str(size) for size in sizes)}"
