"""Reverse-mode derivatives of a function of tensors, on whichever backend is active."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


@functools.lru_cache(maxsize=8)
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """JAX's transposed function, compiled once for calls with the same function object."""
    import jax

    def run(tensors: list[Any], cotangent: Any) -> tuple[Any, Any]:
        value, pullback = jax.vjp(function, *tensors)
        return value, pullback(cotangent.astype(value.dtype))

    return jax.jit(run)


def value_and_gradients(
    function: Callable[..., Any], arguments: Sequence[Any], cotangent: Any
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return function(*arguments) and the gradient of sum(cotangent * value) in each argument.

    Arguments and cotangent are NumPy arrays (or backend tensors), and so are the results NumPy
    arrays, of the dtypes that the function and the backend give them. An argument on which the
    value does not depend is an error on TensorFlow and PyTorch, and a zero on JAX.
    """
    tensors = [ops.convert_to_tensor(one) for one in arguments]
    match keras.backend.backend():
        case "jax":
            value, gradients = _compiled(function)(tensors, ops.convert_to_tensor(cotangent))
        case "tensorflow":
            import tensorflow as tf

            with tf.GradientTape() as tape:
                tape.watch(tensors)
                value = function(*tensors)
            gradients = tape.gradient(value, tensors, ops.cast(cotangent, value.dtype))
        case "torch":
            import torch

            tensors = [one.detach().requires_grad_() for one in tensors]
            value = function(*tensors)
            cotangent = ops.cast(ops.convert_to_tensor(cotangent), value.dtype)
            gradients = torch.autograd.grad(value, tensors, cotangent)
        case other:
            raise RuntimeError(f"the {other} backend has no derivatives")
    return ops.convert_to_numpy(value), [ops.convert_to_numpy(one) for one in gradients]
