"""A process of its own that reads an HDF5 file from stdin and writes what is in it to stdout.

The HDF5 library is C, and a broken or malicious file can make it crash or run for ever. Here that
ends this process only, which `hdf5.py` starts, limits and waits for. It is run by its path and
imports nothing of truenorm.

Output: the length of a JSON header (8 bytes, little-endian), the header, the bytes of the arrays.
The header is {"groups": {path: {attribute: text, texts or number}}, "arrays": [[path, dtype,
shape]]}, or {"error": why the file is refused}.
"""

import io
import json
import sys
from typing import Any

DEPTH = 60  # of groups in groups
OBJECTS = 200_000
SLACK = 64 << 20  # bytes that a file may unfold to, however small it is
EXPANSION = 100  # more than this times its size, and it is a bomb


class Refused(Exception):
    """The reason against a file."""


def read(data: bytes) -> tuple[dict[str, Any], list[Any]]:
    """Return the header and the arrays, in the header's order."""
    import h5py

    groups: dict[str, Any] = {}
    listed: list[Any] = []
    arrays: list[Any] = []
    seen: set[int] = set()
    room = SLACK + EXPANSION * len(data)

    def visit(group: Any, path: str) -> None:
        nonlocal room
        if path.count("/") > DEPTH or len(seen) > OBJECTS:
            raise Refused("has too many groups, or groups nested too deeply")
        groups[path] = attributes(group)
        for name in group:
            link = group.get(name, getlink=True)
            here = f"{path}/{name}" if path else name
            if not isinstance(link, h5py.HardLink):
                raise Refused(
                    f"has a {type(link).__name__} at {here!r}, which may lead to another file"
                )
            one = group[name]
            address = h5py.h5o.get_info(one.id).addr
            if address in seen:
                raise Refused(f"has the same object at {here!r} and at another place")
            seen.add(address)
            if isinstance(one, h5py.Group):
                visit(one, here)
            elif (
                isinstance(one, h5py.Dataset) and one.dtype.kind in "fiub" and one.shape is not None
            ):
                if one.is_virtual or one.external:
                    raise Refused(f"keeps the data of {here!r} in another file")
                room -= one.nbytes
                if room < 0:
                    raise Refused(
                        f"declares far more numbers, up to {here!r}, than {len(data)} bytes can "
                        "hold"
                    )
                array = one[()]
                listed.append([here, array.dtype.str, list(array.shape)])
                arrays.append(array)

    def attributes(group: Any) -> dict[str, Any]:
        nonlocal room
        found = {}
        for name in group.attrs:
            try:
                value = group.attrs[name]
            except (OSError, TypeError, ValueError):  # a type that NumPy does not have
                continue
            value = value.tolist() if hasattr(value, "tolist") else value
            found[name] = text(value)
            room -= len(str(value))
            if room < 0:
                raise Refused("has attributes larger than itself")
        return found

    with h5py.File(io.BytesIO(data), "r") as file:
        visit(file, "")
    return {"groups": groups, "arrays": listed}, arrays


def text(value: Any) -> Any:
    """Bytes as text, in lists too."""
    if isinstance(value, list):
        return [text(one) for one in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, (str, int, float)) else None


def limit(seconds: int, size: int) -> None:
    """End the process after so much computing time or memory, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    memory = (2 << 30) + 2 * (SLACK + EXPANSION * size)
    limits = (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)
    for name, wanted in limits:
        _, hard = resource.getrlimit(name)
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(name, (wanted, hard))


def main() -> None:
    """Read stdin, write stdout."""
    data = sys.stdin.buffer.read()
    limit(int(sys.argv[1]), len(data))
    arrays: list[Any] = []
    try:
        header, arrays = read(data)
    except Refused as error:
        header = {"error": str(error)}
    except Exception as error:  # whatever h5py says of a broken file
        header = {"error": f"is broken: {type(error).__name__}: {str(error)[:200]}"}
    head = json.dumps(header).encode()
    out = sys.stdout.buffer
    out.write(len(head).to_bytes(8, "little") + head)
    for array in arrays:
        out.write(array.tobytes())
    out.flush()


if __name__ == "__main__":
    main()
