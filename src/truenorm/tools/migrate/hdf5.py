"""HDF5 files, read in a process of its own: text and arrays come back, nothing runs."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np

from truenorm.core.errors import InputError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
PROGRAM = pathlib.Path(__file__).with_name("hdf5_process.py")


@dataclasses.dataclass
class Tree:
    """What is in a file: the attributes of each group and the arrays, by their path."""

    groups: dict[str, dict[str, Any]]
    arrays: dict[str, np.ndarray[Any, Any]]

    def below(self, path: str) -> "Tree":
        """The tree of one group."""
        start = f"{path}/"
        groups = {
            key[len(start) :]: one for key, one in self.groups.items() if key.startswith(start)
        }
        arrays = {
            key[len(start) :]: one for key, one in self.arrays.items() if key.startswith(start)
        }
        return Tree({**groups, "": self.groups.get(path, {})}, arrays)

    def texts(self, group: str, name: str) -> list[str]:
        """An attribute that is a list of texts; Keras cuts a long one into NAME0, NAME1, ..."""
        attributes = self.groups.get(group, {})
        if name in attributes:
            parts = [attributes[name]]
        else:
            parts = []
            while f"{name}{len(parts)}" in attributes:
                parts.append(attributes[f"{name}{len(parts)}"])
        if not all(isinstance(part, list) for part in parts):
            raise InputError(f"The attribute {name!r} of {group or '/'!r} is not a list of texts.")
        return [str(one) for part in parts for one in part]


def read_tree(data: bytes, name: str) -> Tree:
    """Read the bytes of an HDF5 file.

    Args:
        data: the file.
        name: what messages call it.

    Raises:
        InputError: it is empty, truncated, no HDF5 file or broken; it leads to other files; it
            unfolds to far more than it holds; or the HDF5 library crashed or hung on it.
    """
    if not data:
        raise InputError(f"{name} is empty.")
    if not data.startswith(SIGNATURE):
        raise InputError(f"{name} is not an HDF5 file: it begins with {data[:8]!r}.")
    seconds = 20 + len(data) // 10_000_000
    done = subprocess.run(
        [sys.executable, "-P", str(PROGRAM), str(seconds)],
        input=data,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    out = done.stdout
    size = int.from_bytes(out[:8], "little")
    if done.returncode or len(out) < 8 + size:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise InputError(
            f"{name} is broken: the HDF5 library did not survive reading it "
            f"(exit code {done.returncode}{', ' + said[0][:200] if said else ''})."
        )
    header = json.loads(out[8 : 8 + size])
    if "error" in header:
        raise InputError(f"{name} {header['error']}.")
    arrays, start = {}, 8 + size
    for path, dtype, shape in header["arrays"]:
        count = int(np.prod(shape, dtype=np.int64))
        taken = memoryview(out)[start : start + count * np.dtype(dtype).itemsize]
        arrays[path] = np.frombuffer(taken, dtype).reshape(shape)
        start += arrays[path].nbytes
    return Tree(header["groups"], arrays)
