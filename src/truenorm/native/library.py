"""The native core as a shared library: where it is, whether it loads, and its settings."""

import ctypes
import functools
import pathlib
import platform

_SUFFIX = {"Windows": ".dll", "Darwin": ".dylib"}.get(platform.system(), ".so")


def path(name: str) -> pathlib.Path | None:
    """The file of one of the libraries that lie beside this module, or None.

    In an editable install they lie apart from the sources; the package's path names both folders.
    """
    import truenorm.native

    for folder in truenorm.native.__path__:
        file = pathlib.Path(folder) / f"{name}{_SUFFIX}"
        if file.exists():
            return file
    return None


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str | None]:
    """The core, or why there is none."""
    file = path("libtruenorm")
    if file is None:
        return None, (
            "this build of truenorm has no native kernels (there was no C++ compiler when it was "
            "installed)"
        )
    try:
        core = ctypes.CDLL(str(file))
    except OSError as error:
        return None, f"the library of native kernels does not load: {error}"
    for name in ("truenorm_isa", "truenorm_isas", "truenorm_error"):
        getattr(core, name).restype = ctypes.c_char_p
    if not core.truenorm_isa():
        return None, (
            "the environment variable TRUENORM_ISA names none of the instruction sets that this "
            f"machine can run: {core.truenorm_isas().decode()}"
        )
    return core, None


def isa() -> str:
    """The instruction set in use: "avx512", "avx2", "baseline" or "neon"."""
    core, _ = load()
    return core.truenorm_isa().decode() if core else ""


def threads() -> int:
    """How many threads the kernels' own pool uses."""
    core, _ = load()
    return int(core.truenorm_threads()) if core else 0
