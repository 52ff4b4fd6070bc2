"""What `truenorm bench --device cuda` times: cases, and candidates of PyTorch and JAX."""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

from truenorm.core.kinds import KINDS

EPSILON = 1e-5
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Case:
    """One normalization of one tensor; of a batch as in training, without moving statistics.

    Attributes:
        name: as the table has it.
        kind: of `KINDS`.
        shape: of x.
        axis: the channels, or what is normalized.
        groups: of group normalization.
        fused: "", "silu" after it, or "add" of a residual before it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    axis: int = -1
    groups: int | None = None
    fused: str = ""

    @property
    def size(self) -> int:
        """The size of gamma."""
        return self.shape[self.axis]

    @property
    def rows(self) -> bool:
        """Whether it normalizes the last axis."""
        return KINDS[self.kind].axis_is == "statistics" and self.axis == -1


CASES = (
    *(Case(f"layer, rows {n} x {width}", "layer", (n, width)) for n, width in (
        (524288, 64), (262144, 128), (131072, 256), (32768, 1024), (8192, 8192), (4096, 16384),
        (2048, 32768), (1024, 65536), (1024, 50257),
    )),
    Case("RMS, rows 16384 x 4096", "rms", (16384, 4096)),
    Case("layer over axis 1, 32 x 256 x 56 x 56", "layer", (32, 256, 56, 56), 1),
    Case("layer over axis 1, 64 x 96 x 56 x 56", "layer", (64, 96, 56, 56), 1),
    Case("group last, 32 x 56 x 56 x 256", "group", (32, 56, 56, 256), -1, 32),
    Case("group last, 8 x 128 x 128 x 512", "group", (8, 128, 128, 512), -1, 32),
    Case("group last, 4 x 256 x 256 x 128", "group", (4, 256, 256, 128), -1, 32),
    Case("instance last, 16 x 128 x 128 x 64", "instance", (16, 128, 128, 64)),
    Case("group first, 32 x 256 x 56 x 56", "group", (32, 256, 56, 56), 1, 32),
    Case("instance first, 16 x 64 x 128 x 128", "instance", (16, 64, 128, 128), 1),
    Case("group + SiLU last, 32 x 56 x 56 x 256", "group", (32, 56, 56, 256), -1, 32, "silu"),
    Case("add + RMS, rows 16384 x 4096", "rms", (16384, 4096), fused="add"),
    Case("batch last, 32 x 56 x 56 x 256", "batch", (32, 56, 56, 256)),
    Case("batch last, 256 x 14 x 14 x 1024", "batch", (256, 14, 14, 1024)),
    Case("batch last, 16 x 128 x 128 x 64", "batch", (16, 128, 128, 64)),
    Case("batch first, 32 x 256 x 56 x 56", "batch", (32, 256, 56, 56), 1),
    Case("batch first, 256 x 1024 x 14 x 14", "batch", (256, 1024, 14, 14), 1),
    Case("batch first, 16 x 64 x 128 x 128", "batch", (16, 64, 128, 128), 1),
    Case("batch first, 2 x 32 x 128 x 128 x 128", "batch", (2, 32, 128, 128, 128), 1),
    Case("batch + SiLU last, 32 x 56 x 56 x 256", "batch", (32, 56, 56, 256), fused="silu"),
    Case("small batch, 4096 x 1024", "batch", (4096, 1024)),
    Case("small group last, 32 x 26 x 26 x 10", "group", (32, 26, 26, 10), -1, 5),
)  # fmt: skip
# The same ways through the program at sizes that a test has time for.
TINY = (
    Case("layer, rows", "layer", (8, 16)),
    Case("layer over axis 1", "layer", (2, 6, 4, 4), 1),
    Case("group + SiLU last", "group", (2, 4, 4, 6), -1, 3, "silu"),
    Case("instance last", "instance", (2, 4, 4, 6)),
    Case("add + RMS, rows", "rms", (8, 16), fused="add"),
    Case("batch + SiLU first", "batch", (2, 6, 4, 4), 1, fused="silu"),
    Case("batch last", "batch", (2, 4, 4, 6)),
)

Candidates = Iterator[tuple[str, Callable[..., Any]]]


def torch_candidates(case: Case) -> Candidates:
    """Name and function of (x, gamma, beta, residual); where x is not fit for it, it says so."""
    import torch

    from truenorm.torch import functional

    def ours(implementation: str | None, fused: str = case.fused) -> Callable[..., Any]:
        function = getattr(functional, f"{case.kind}_norm")
        options: dict[str, Any] = {"axis": case.axis, "eps": EPSILON}
        options |= {"implementation": implementation}
        options |= {"activation": "silu"} if fused == "silu" else {}

        def run(x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
            more = options | ({} if residual is None else {"residual": residual})
            if case.kind == "group":
                return function(x, case.groups, gamma, beta, **more)
            if case.kind == "instance":
                return function(x, weight=gamma, bias=beta, **more)
            if case.kind == "batch":
                return function(x, None, None, gamma, beta, training=True, **more)
            given = (gamma,) if case.kind == "rms" else (gamma, beta)
            return function(x, case.size, *given, **more)

        return run

    alone = ours(None, fused="")

    def apart(x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        """Ours, and what would be fused by itself."""
        if residual is not None:
            total = x + residual
            return alone(total, gamma, beta, None), total
        return torch.nn.functional.silu(alone(x, gamma, beta, None))

    yield "truenorm", ours(None)
    if case.fused:
        yield "truenorm, apart", apart
        yield "truenorm, without", lambda x, gamma, beta, residual: alone(x, gamma, beta, None)
    if case.name.startswith(("group last, 32", "batch last, 32", "batch first, 32")):
        yield "truenorm, plain", ours("plain")
    peer = _torch_peer(case)
    torch.compiler.reset()  # else it gives up at the ninth case, as at the ninth shape of one
    yield "torch.nn", peer
    yield "torch.compile", torch.compile(peer, dynamic=False)
    if not case.fused and keras_runs_on_torch():
        yield "Keras", _keras(case)
    if case.rows and not case.fused and importlib.util.find_spec("liger_kernel") is not None:
        yield "Liger", _liger(case)


def _torch_peer(case: Case) -> Callable[..., Any]:
    """torch.nn's function; channels last are a view of channels first, as its users have them."""
    import torch
    from torch.nn import functional

    first = case.axis == 1 or case.rows

    def run(x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        total = x if residual is None else x + residual
        z = total if first else total.movedim(-1, 1)
        if case.kind == "group":
            y = functional.group_norm(z, case.groups or 1, gamma, beta, EPSILON)
        elif case.kind == "instance":
            y = functional.instance_norm(z, weight=gamma, bias=beta, eps=EPSILON)
        elif case.kind == "batch":
            y = functional.batch_norm(z, None, None, gamma, beta, training=True, eps=EPSILON)
        elif case.kind == "rms":
            y = functional.rms_norm(z, (case.size,), gamma, EPSILON)
        else:
            z = z if case.rows else z.movedim(1, -1)
            y = functional.layer_norm(z, (case.size,), gamma, beta, EPSILON)
            y = y if case.rows else y.movedim(-1, 1)
        y = y if first else y.movedim(1, -1)
        y = torch.nn.functional.silu(y) if case.fused == "silu" else y
        return y if residual is None else (y, total)

    return run


def keras_runs_on_torch() -> bool:
    """Whether Keras is there, and configured so."""
    if importlib.util.find_spec("keras") is None:
        return False
    import keras

    return bool(keras.backend.backend() == "torch")


def _keras(case: Case) -> Callable[..., Any]:
    import keras

    groups = -1 if case.kind == "instance" else case.groups
    layer = {
        "layer": lambda: keras.layers.LayerNormalization(axis=case.axis, epsilon=EPSILON),
        "rms": lambda: keras.layers.RMSNormalization(axis=case.axis, epsilon=EPSILON),
        "batch": lambda: keras.layers.BatchNormalization(axis=case.axis, epsilon=EPSILON),
    }.get(
        case.kind,
        lambda: keras.layers.GroupNormalization(groups, axis=case.axis, epsilon=EPSILON),
    )()
    layer.build(case.shape)
    options = {"training": True} if case.kind == "batch" else {}

    def run(x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        given = [gamma] if case.kind == "rms" else [gamma, beta]
        moving = [one.value for one in layer.non_trainable_variables]
        return layer.stateless_call(given, moving, x, **options)[0]

    return run


def _liger(case: Case) -> Callable[..., Any]:
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    def run(x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        if case.kind == "rms":
            return LigerRMSNormFunction.apply(x, gamma, EPSILON)
        return LigerLayerNormFunction.apply(x, gamma, beta, EPSILON)

    return run


def jax_candidates(case: Case) -> Candidates:
    """The same for JAX; each is jitted by the caller."""
    import jax
    import jax.numpy as jnp

    from truenorm import jax as truenorm_jax

    function = getattr(truenorm_jax, f"{case.kind}_norm")
    options: dict[str, Any] = {"axis": case.axis, "epsilon": EPSILON}
    options |= {"num_groups": case.groups} if case.kind == "group" else {}
    options |= {"activation": "silu"} if case.fused == "silu" else {}

    def ours(x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        more = options | ({} if residual is None else {"residual": residual})
        y = function(x, *((gamma,) if case.kind == "rms" else (gamma, beta)), **more)
        return y[0] if case.kind == "batch" else y

    def two_passes(x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        total = x if residual is None else x + residual
        shape, z = total.shape, total.astype(jnp.float32)
        axis = case.axis % len(shape)
        if case.kind in ("group", "instance"):
            groups = case.groups or shape[axis]
            z = z.reshape(*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
            reduced = tuple(i for i in range(1, z.ndim) if i != axis)
        elif case.kind == "batch":
            reduced = tuple(i for i in range(z.ndim) if i != axis)
        else:
            reduced = (axis,)
        if case.kind != "rms":
            z = z - z.mean(reduced, keepdims=True)
        z = z * jax.lax.rsqrt(jnp.square(z).mean(reduced, keepdims=True) + EPSILON)
        sizes = [1] * len(shape)
        sizes[axis] = shape[axis]
        y = z.reshape(shape) * gamma.reshape(sizes)
        y = y if case.kind == "rms" else y + beta.reshape(sizes)
        y = jax.nn.silu(y) if case.fused == "silu" else y
        y = y.astype(total.dtype)
        return y if residual is None else (y, total)

    yield "truenorm", ours
    yield "jnp, two passes", two_passes
    if importlib.util.find_spec("flax") is not None and case.axis == -1 and not case.fused:
        yield "flax", _flax(case)


def _flax(case: Case) -> Callable[..., Any]:
    from flax import nnx

    names = {
        "layer": "LayerNorm",
        "rms": "RMSNorm",
        "group": "GroupNorm",
        "instance": "InstanceNorm",
        "batch": "BatchNorm",
    }
    options: dict[str, Any] = {"num_groups": case.groups} if case.kind == "group" else {}
    layer = getattr(nnx, names[case.kind])(case.size, epsilon=EPSILON, rngs=nnx.Rngs(0), **options)
    graph, state = nnx.split(layer)

    def run(x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        given = nnx.merge(graph, state, copy=True)  # batch statistics move, in this trace
        given.scale = nnx.Param(gamma)
        if case.kind != "rms":
            given.bias = nnx.Param(beta)
        return given(x).astype(x.dtype)

    return run
