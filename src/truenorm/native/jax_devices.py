"""The native kernels under JAX, for arrays that are split over devices.

A primitive of `jax_primitives.py` takes the first `lead` axes of x apart from the others: it keeps
all of them, so each device computes what it has of them. All other axes are whole on every device.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from truenorm.core.call import Call

Compute = Callable[..., Any]  # the foreign function call on what one device has


@functools.lru_cache(maxsize=1024)
def forward(compute: Compute, call: Call, lead: int) -> Any:
    """(x, gamma, beta) -> y, statistics: each device its part."""

    def local(x: Any, gamma: Any, beta: Any) -> Any:  # not a partial: JAX reads the signature
        return compute(x, gamma, beta, call=call, lead=lead)

    def partition(mesh: Any, arguments: Any, results: Any) -> Any:
        x, gamma, _ = _shardings(mesh, arguments, call, lead)
        return mesh, local, (x, x), (x, gamma, gamma)

    def infer(mesh: Any, arguments: Any, results: Any) -> Any:
        x, _, _ = _shardings(mesh, arguments, call, lead)
        return x, x

    partitioned = custom_partitioning(local)
    partitioned.def_partition(
        partition, infer_sharding_from_operands=infer, **_rule(call, lead, "xpp->xs")
    )
    return partitioned


@functools.lru_cache(maxsize=1024)
def backward(compute: Compute, call: Call, lead: int) -> Any:
    """(x, gamma, dy, statistics) -> dx, dgamma, dbeta: the last two are sums over devices."""

    def local(x: Any, gamma: Any, dy: Any, statistics: Any) -> Any:
        return compute(x, gamma, dy, statistics, call=call, lead=lead)

    def partition(mesh: Any, arguments: Any, results: Any) -> Any:
        x, gamma, summed = _shardings(mesh, arguments, call, lead)

        def local_and_sum(*operands: Any) -> Any:
            dx, dgamma, dbeta = local(*operands)
            if summed:
                dgamma, dbeta = jax.lax.psum((dgamma, dbeta), summed)
            return dx, dgamma, dbeta

        return mesh, local_and_sum, (x, gamma, gamma), (x, gamma, x, x)

    def infer(mesh: Any, arguments: Any, results: Any) -> Any:
        x, gamma, _ = _shardings(mesh, arguments, call, lead)
        return x, gamma, gamma

    partitioned = custom_partitioning(local)
    partitioned.def_partition(
        partition, infer_sharding_from_operands=infer, **_rule(call, lead, "xpxs->xpp")
    )
    return partitioned


def _shardings(
    mesh: Any, arguments: Any, call: Call, lead: int
) -> tuple[NamedSharding, NamedSharding, tuple[str, ...]]:
    """Those of x and of gamma, and the mesh axes that split x but not gamma.

    `arguments` are the operands as they come, x first.
    """
    given = arguments[0].sharding
    spec = list(given.spec) if isinstance(given, NamedSharding) else []
    leading = (spec + [None] * lead)[:lead]
    varying = [axis for axis in call.view.parameter_axes if axis < lead]
    summed: list[str] = []
    for axis, mesh_axes in enumerate(leading):
        if axis not in varying and mesh_axes is not None:
            summed += [mesh_axes] if isinstance(mesh_axes, str) else list(mesh_axes)
    x, gamma = (
        NamedSharding(mesh, PartitionSpec(*one))
        for one in (leading, [leading[axis] for axis in varying])
    )
    return x, gamma, tuple(summed)


def _rule(call: Call, lead: int, signature: str) -> dict[str, Any]:
    """Shardy's rule: leading axes are split alike in all operands, all others are not split.

    `signature` names the operands and results: x (or y, of its shape), p (a parameter) and s, the
    statistics.
    """
    leading = [f"n{i}" for i in range(lead)]
    others = [f"x{i}" for i in range(call.view.rank - lead)]
    parameter = [(leading + others)[axis] for axis in call.view.parameter_axes]
    spelled = {"x": leading + others, "p": parameter, "s": [*leading, "g", "t"]}
    sides = [", ".join(" ".join(spelled[one]) for one in side) for side in signature.split("->")]
    return {"sharding_rule": " -> ".join(sides), "need_replication_factors": (*others, "g", "t")}
