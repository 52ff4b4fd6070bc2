"""TensorFlow's checkpoints and the metadata of Keras' SavedModels, read without TensorFlow.

A checkpoint is PREFIX.index, a sorted table (LevelDB's format) from names to where a tensor is, and
PREFIX.data-*, the tensors' bytes. One of its entries is the graph of the objects that were saved:
which layer has which children and variables, under which names. `Checkpoint` walks that graph.

Everything here reads bytes with lengths that it checks; a broken file is an `InputError`.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from truenorm.core.errors import InputError

MAGIC = bytes.fromhex("57fb808b247547db")
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
DTYPES = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    4: "u1",
    5: "<i2",
    6: "i1",
    9: "<i8",
    10: "?",
    14: "<u2",  # bfloat16: the upper half of a float32
    17: "<u2",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}
BFLOAT16 = 14
Array = np.ndarray[Any, Any]


class Broken(Exception):
    """What is wrong with the bytes."""


@dataclasses.dataclass
class Node:
    """An object of the graph: the numbers of its children by name, and the key of its value."""

    children: dict[str, int]
    key: str | None


@dataclasses.dataclass
class Checkpoint:
    """The objects that were saved, the model first, and their arrays by key."""

    nodes: list[Node]
    arrays: dict[str, Array]

    def child(self, node: int, name: str) -> int | None:
        """The number of a child, or None."""
        found = self.nodes[node].children.get(name)
        return found if found is not None and found < len(self.nodes) else None

    def value(self, node: int | None) -> Array | None:
        """The array of a variable's node, or None."""
        key = self.nodes[node].key if node is not None else None
        return None if key is None else self.arrays.get(key)


def latest(folder: pathlib.Path) -> pathlib.Path:
    """The newest checkpoint of a folder, as its file `checkpoint` names it."""
    text = (folder / "checkpoint").read_bytes()[:10_000].decode("utf-8", "replace")
    found = re.search(r'model_checkpoint_path: "([^"\n]*)"', text)
    name = pathlib.PurePath(found[1]).name if found else ""
    if not name:
        raise InputError(f"{folder / 'checkpoint'} does not name a checkpoint.")
    return folder / name


def read(prefix: pathlib.Path) -> Checkpoint:
    """Read PREFIX.index and the tensors of PREFIX.data-*.

    Raises:
        InputError: a file is missing, broken, or not a checkpoint of objects.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    if not index.is_file():
        raise InputError(f"{index} does not exist; a TensorFlow checkpoint has such a file.")
    try:
        entries = table(index.read_bytes())
        shards = number(dict(fields(entries.pop("", b""))).get(1, 1))
        if not 0 < shards < 100_000:
            raise Broken(f"it names {shards} data files")
        paths = [
            prefix.with_name(f"{prefix.name}.data-{i:05d}-of-{shards:05d}")
            for i in range(shards)
            if i < 1000 or not entries
        ]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise InputError(f"{missing[0]} is missing beside {index}.")
        data = [np.memmap(path, mode="r") if path.stat().st_size else b"" for path in paths]
        graph = entries.pop(GRAPH, None)
        if graph is None:
            raise InputError(
                f"{prefix} names variables and not the objects that own them, as TensorFlow 1 "
                "wrote checkpoints; load it in Keras 2 and save it as .h5."
            )
        nodes = object_graph(string(graph, data))
        arrays = {
            key: one
            for key, entry in entries.items()
            if (one := tensor(key, entry, data)) is not None
        }
    except (Broken, ValueError, IndexError, OverflowError) as error:
        raise InputError(f"{index} is not a checkpoint, or broken: {error}.") from None
    return Checkpoint(nodes, arrays)


def model_metadata(path: pathlib.Path) -> str:
    """The JSON text on the model itself in keras_metadata.pb."""
    try:
        for field, value in fields(path.read_bytes()):
            node = dict(fields(content(value))) if field == 1 else {}
            if content(node.get(3, b"")) in (b"root",) or content(node.get(3, b"")) == b"root":
                return content(node.get(5, b"")).decode()
    except (Broken, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} is broken: {error}.") from None
    raise InputError(f"{path} says nothing of a model.")


def varint(data: bytes, start: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = shift = 0
    for position in range(start, min(start + 10, len(data))):
        value |= (data[position] & 127) << shift
        if data[position] < 128:
            return value, position + 1
        shift += 7
    raise Broken(f"a number at byte {start} does not end")


def cut(data: Any, start: int, size: int) -> Any:
    """data[start : start + size], all of it."""
    if start + size > len(data):
        raise Broken(f"{size} bytes at byte {start} are beyond the end")
    return data[start : start + size]


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer's message: their numbers and values."""
    position = 0
    while position < len(data):
        tag, position = varint(data, position)
        kind = tag & 7
        value: int | bytes
        if kind == 0:
            value, position = varint(data, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value = int.from_bytes(cut(data, position, size), "little")
            position += size
        elif kind == 2:
            size, position = varint(data, position)
            value = cut(data, position, size)
            position += size
        else:
            raise Broken(f"a field of kind {kind}")
        yield tag >> 3, value


def content(value: int | bytes) -> bytes:
    """A field that holds bytes."""
    if isinstance(value, int):
        raise Broken("a number where bytes should be")
    return value


def number(value: int | bytes) -> int:
    """A field that holds a number."""
    if not isinstance(value, int):
        raise Broken("bytes where a number should be")
    return value


def table(data: bytes) -> dict[str, bytes]:
    """The entries of a sorted table."""
    if len(data) < 48 or data[-8:] != MAGIC:
        raise Broken("it does not end as a table does")
    footer = data[-48:-8]
    _, position = varint(footer, 0)
    _, position = varint(footer, position)
    offset, position = varint(footer, position)
    size, _ = varint(footer, position)
    entries = {}
    for _, handle in block(data, offset, size):
        offset, position = varint(handle, 0)
        size, _ = varint(handle, position)
        for key, value in block(data, offset, size):
            entries[key.decode("utf-8", "replace")] = value
    return entries


def block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a block; a key begins with as much of the one before as it says."""
    piece = cut(data, offset, size + 1)
    if piece[-1] != 0:
        raise Broken("it is compressed, as TensorFlow does not write it")
    restarts = int.from_bytes(cut(piece, size - 4, 4), "little") if size >= 4 else 0
    end = size - 4 - 4 * restarts
    if end < 0:
        raise Broken("a block ends before it begins")
    position, key = 0, b""
    while position < end:
        shared, position = varint(piece, position)
        own, position = varint(piece, position)
        length, position = varint(piece, position)
        key = key[:shared] + cut(piece, position, own)
        yield key, cut(piece, position + own, length)
        position += own + length


def location(entry: bytes, data: list[Any]) -> tuple[int, list[int], Any]:
    """The dtype, shape and bytes of a tensor."""
    dtype, shard, offset, size, shape = 0, 0, 0, 0, []
    for field, value in fields(entry):
        if field == 1:
            dtype = number(value)
        elif field == 2:
            for inner, dimension in fields(content(value)):
                if inner == 2:
                    shape.append(number(dict(fields(content(dimension))).get(1, 0)))
        elif field == 3:
            shard = number(value)
        elif field == 4:
            offset = number(value)
        elif field == 5:
            size = number(value)
        elif field == 7:
            raise Broken("a tensor is cut into slices, which this cannot join")
    if shard >= len(data):
        raise Broken(f"a tensor is in data file {shard} of {len(data)}")
    return dtype, shape, cut(data[shard], offset, size)


def tensor(key: str, entry: bytes, data: list[Any]) -> Array | None:
    """A tensor of numbers; None for one of texts."""
    dtype, shape, raw = location(entry, data)
    if dtype not in DTYPES:
        return None
    array = np.frombuffer(bytes(raw), DTYPES[dtype])
    if any(one > 1 << 40 for one in shape) or array.size != int(np.prod(shape, dtype=object)):
        raise Broken(f"{key} has {array.size} numbers for the shape {tuple(shape)}")
    array = array.reshape(shape)
    if dtype == BFLOAT16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array


def string(entry: bytes, data: list[Any]) -> bytes:
    """A tensor of one text: its length, a checksum, its bytes."""
    _, _, raw = location(entry, data)
    raw = bytes(raw)
    length, position = varint(raw, 0)
    return bytes(cut(raw, position + 4, length))


def object_graph(data: bytes) -> list[Node]:
    """The objects, the model first."""
    nodes = []
    for field, value in fields(data):
        if field != 1:
            continue
        node = Node({}, None)
        for inner, part in fields(content(value)):
            if inner in (1, 2):
                found = dict(fields(content(part)))
            if inner == 1:
                name = content(found.get(2, b"")).decode("utf-8", "replace")
                node.children[name] = number(found.get(1, 0))
            elif inner == 2 and content(found.get(1, b"")) == b"VARIABLE_VALUE":
                node.key = content(found.get(3, b"")).decode("utf-8", "replace")
        nodes.append(node)
    if not nodes:
        raise Broken("the graph of objects is empty")
    return nodes
