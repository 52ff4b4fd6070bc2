"""glibc's allocator, which gives large tensors back to the system: how to keep them, and the cost.

Every page of what it gives back comes again cleared, by a page fault, when the next tensor is made:
for tensors of some tens of megabytes this takes longer than a normalization.
"""

import contextlib
import ctypes
import os
import platform
from collections.abc import Callable, Iterator

# What a user puts before a command on Linux: keep what is freed, up to 4 GiB a block.
SETTINGS = (
    "MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456"
)
# Parameters of glibc's mallopt: what each is while freed memory is kept, and by default.
_MALLOC = {-1: (2**31 - 1, 128 << 10), -4: (0, 65536), -8: (1, 0)}  # trim, mmaps, arenas


@contextlib.contextmanager
def kept_pages() -> Iterator[bool]:
    """Make glibc's allocator keep what is freed, inside the `with` block.

    Where it is another allocator, or the user has set it up by the environment, nothing is done.

    Yields:
        Whether freed memory is kept.
    """
    if platform.libc_ver()[0] != "glibc":
        yield False
        return
    if any(one.split("=")[0] in os.environ for one in SETTINGS.split()):
        yield True
        return
    libc = ctypes.CDLL(None)
    try:
        kept = [libc.mallopt(which, value) for which, (value, _) in _MALLOC.items()]
        yield all(kept)
    finally:
        for which, (_, default) in _MALLOC.items():
            libc.mallopt(which, default)
        libc.malloc_trim(0)


def page_faults(call: Callable[[], object], calls: int = 5) -> int | None:
    """The page faults of a call, the mean of several; None where the system does not count them."""
    try:
        import resource
    except ImportError:
        return None
    for _ in range(5):  # until what is kept suffices
        call()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(calls):
        call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // calls
