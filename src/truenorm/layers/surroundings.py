"""What a call cannot see from its arguments: other replicas, and functions that run around it."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from keras.src.backend import get_stateless_scope  # Keras has no public name for it

from truenorm.core.batch import combined
from truenorm.core.call import Statistics

Tensor = Any


def lasting(value: Tensor, variable: keras.Variable) -> bool:
    """Whether a value that is assigned to a variable here means anything afterwards.

    JAX traces the body of a scan, of a while_loop and of a checkpoint as a function of its own,
    whose values are unknown outside.
    """
    trace = getattr(value, "_trace", None)
    if trace is None:
        return True
    here = getattr(variable.value, "_trace", None)
    scope = get_stateless_scope()
    if here is None and scope is not None and scope.get_current_value(variable) is not None:
        # A known value was given to stateless_call: what jit traces around it may be returned.
        debug_info = getattr(getattr(trace, "frame", None), "debug_info", None)
        return getattr(debug_info, "traced_for", None) == "jit"
    return trace is here


def recomputing() -> bool:
    """Whether this runs in PyTorch's backward pass, which repeats what a checkpoint left out."""
    if keras.backend.backend() != "torch":
        return False
    import torch

    return bool(torch._C._current_graph_task_id() != -1)


def once(before: Tensor, after: Tensor) -> Tensor:
    """What a variable becomes: `after`, and in such a repeated call `before`."""
    if keras.backend.backend() == "torch":
        import torch

        if torch.compiler.is_compiling():  # which would leave its graph to look
            return torch.where(_recomputing(before), before, after)
    return before if recomputing() else after


if keras.backend.backend() == "torch":
    import torch

    def _flag(t: torch.Tensor) -> torch.Tensor:
        return torch.tensor(recomputing(), device=t.device)

    # Of an argument, which keeps compilers from taking the result for a constant.
    _recomputing = torch.library.custom_op("truenorm::recomputing", _flag, mutates_args=())
    _recomputing.register_fake(lambda t: t.new_empty((), dtype=torch.bool))


def pooled(
    count: Tensor, means: list[Tensor], variances: list[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The count, means and variances over the batches of all replicas.

    Replicas are those of a strategy of TensorFlow, or PyTorch's process group.
    """
    gather = gathered()
    if gather is None:
        return count, means, variances
    counts = gather(count)
    found = []
    for pair in zip(means, variances, strict=True):
        parts = gather(ops.stack(pair))
        mean, variance = parts[:, 0], parts[:, 1]
        zero = ops.zeros_like(mean)
        sizes = [-1] + [1] * (len(mean.shape) - 1)
        each = zero + ops.reshape(ops.cast(counts, mean.dtype), sizes)
        found.append(combined(ops, Statistics(mean, zero, variance, each)))
    shared = [one.mean + one.rest for one in found]
    return ops.sum(counts), shared, [one.variance for one in found]


def gathered() -> Callable[[Tensor], Tensor] | None:
    """What stacks a tensor of every replica along a new first axis; None where there is one.

    On JAX there is one: arrays are split over devices without a trace in the program.
    """
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            context = tf.distribute.get_replica_context()
            if context is None or context.num_replicas_in_sync < 2:
                return None

            def stacked(t: Tensor) -> Tensor:
                # A sum, which has a derivative everywhere, of stacks that have one part each.
                count = context.num_replicas_in_sync
                place = tf.one_hot(context.replica_id_in_sync_group, count, dtype=t.dtype)
                mine = tf.reshape(place, [count] + [1] * len(t.shape)) * t
                return context.all_reduce(tf.distribute.ReduceOp.SUM, mine)

            return stacked
        case "torch":
            from truenorm.arrays import torch as arrays

            return arrays.gather if arrays.processes() > 1 else None
    return None
