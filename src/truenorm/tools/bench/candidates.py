"""Who is timed on a case: truenorm, Keras' layer, the framework's own, and the yardstick.

Each framework has one function, `case, trained -> {name: run}`, where `run(x, dy)` computes y, or
also the gradients of x, gamma and beta, and returns when they are there. JAX and TensorFlow run
compiled (jit, tf.function), PyTorch eagerly: as Keras' fit does on a CPU.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import keras
from keras import backend

import truenorm
from truenorm.core.kinds import Kind
from truenorm.layers.base import NormalizationLayer
from truenorm.tools.bench.cases import Case

Run = Callable[[Any, Any], Any]

TRUENORM = "truenorm"
FUNCTION = "truenorm function"  # on PyTorch, without the layer around it, as torch.nn.functional
FUNCTIONAL = "torch.nn"  # torch.nn.functional.*
PLAIN = "plain"
KERAS = "Keras"
YARDSTICK = "a * 1.01"


def like(name: str, names: Any) -> str:
    """Which of truenorm's times another candidate is compared with: layers with layers."""
    alone = name in (KERAS, PLAIN, TRUENORM) or FUNCTION not in names
    return TRUENORM if alone else FUNCTION


class OfKind(NormalizationLayer):
    """The layer of a kind that has none of its own."""

    def __init__(self, kind: Kind, groups: dict[str, int], axis: int, **options: Any) -> None:
        super().__init__(scale="gamma" in kind.learned, center="beta" in kind.learned, **options)
        self.kind, self.groups, self.axis = kind, groups, axis

    def partition(self) -> dict[str, Any]:
        """See the base class."""
        return {"axis": self.axis, **self.groups}


def layers(case: Case) -> dict[str, Any]:
    """The built layers of a case: truenorm's, on its plain path, and Keras'."""
    row, options = case.row, dict[str, Any](axis=case.axis, epsilon=1e-5)
    options["dtype"] = "float32" if case.dtype == "float32" else "mixed_bfloat16"
    groups = {} if case.groups is None else {"groups": case.groups}
    if hasattr(truenorm.layers, row.keras):
        own = options | (groups if row.groups else {})
        ours = functools.partial(getattr(truenorm.layers, row.keras), **own)
    else:
        ours = functools.partial(OfKind, row, groups, **options)
    made = {TRUENORM: ours(), PLAIN: ours(implementation="plain")}
    theirs = "GroupNormalization" if case.kind == "instance" else row.keras  # Keras has no other
    if hasattr(keras.layers, theirs):
        made[KERAS] = getattr(keras.layers, theirs)(**options, **groups)
    for layer in made.values():
        layer.build(case.shape)
    return made


def inputs(case: Case, count: int) -> list[tuple[Any, Any]]:
    """`count` pairs of x and dy, each in memory of its own."""
    generator = keras.random.SeedGenerator(0)
    return [
        tuple(keras.random.normal(case.shape, dtype=case.dtype, seed=generator) for _ in range(2))
        for _ in range(count)
    ]


def candidates(case: Case, trained: bool) -> dict[str, Run]:
    """Everything that is timed on a case, by name, for the active backend."""
    return {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}[backend.backend()](
        case, trained
    )


def _jax(case: Case, trained: bool) -> dict[str, Run]:
    import jax

    # Each function returns y, and what the call changed besides: moving statistics, or nothing.
    def compiled(function: Callable[..., Any], parameters: Any, trained: bool) -> Run:
        def step(parameters: Any, x: Any, dy: Any) -> Any:
            if not trained:
                return function(parameters, x)
            y, gradients, changed = jax.vjp(function, parameters, x, has_aux=True)
            return y, gradients(dy), changed

        run = jax.jit(step)
        return lambda x, dy: jax.block_until_ready(run(parameters, x, dy))

    def layer_function(layer: Any) -> Callable[..., Any]:
        moving = [v.value for v in layer.non_trainable_variables]
        return lambda parameters, x: layer.stateless_call(parameters, moving, x, **case.options)

    made = {
        name: compiled(layer_function(layer), [v.value for v in layer.trainable_variables], trained)
        for name, layer in layers(case).items()
    }
    if importlib.util.find_spec("flax") and (own := _flax(case)) is not None:
        from flax import nnx

        graph, state, rest = nnx.split(own, nnx.Param, ...)
        parameters, tree = jax.tree.flatten(state)

        def of_flax(parameters: Any, x: Any) -> tuple[Any, Any]:
            state = jax.tree.unflatten(tree, parameters)
            module = nnx.merge(graph, state, rest, copy=True)  # a trace changes only its own
            return module(x), jax.tree.leaves(nnx.state(module, nnx.BatchStat))

        made["flax.nnx"] = compiled(of_flax, parameters, trained)
    made[YARDSTICK] = compiled(lambda _, x: (x * 1.01, ()), (), False)
    return made


def _flax(case: Case) -> Any:
    """The layer of flax.nnx, or None: its group normalization takes channels last only."""
    import jax.numpy as jnp
    from flax import nnx

    if case.row.flax is None or not hasattr(nnx, case.row.flax):
        return None
    features = case.shape[case.axis]
    shared = {"epsilon": 1e-5, "dtype": getattr(jnp, case.dtype), "rngs": nnx.Rngs(0)}
    if case.kind in ("group", "instance"):
        if case.layout == "first":
            return None
        return nnx.GroupNorm(features, num_groups=case.groups, **shared)
    if case.kind == "batch":
        return nnx.BatchNorm(features, use_running_average=False, axis=case.axis, **shared)
    return getattr(nnx, case.row.flax)(
        features, reduction_axes=case.axis, feature_axes=case.axis, **shared
    )


def _tensorflow(case: Case, trained: bool) -> dict[str, Run]:
    import tensorflow as tf

    def compiled(layer: Any, trained: bool, xla: bool = False) -> Run:
        @tf.function(jit_compile=xla)  # type: ignore[untyped-decorator]
        def step(x: Any, dy: Any) -> Any:
            if not trained:
                return layer(x, **case.options)
            weights = [v.value for v in layer.trainable_variables]
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, **case.options)
            return y, tape.gradient(y, [x, *weights], output_gradients=dy)

        return step  # type: ignore[no-any-return]

    made = {name: compiled(layer, trained) for name, layer in layers(case).items()}
    if KERAS in made:
        made["Keras, XLA"] = compiled(layers(case)[KERAS], trained, xla=True)
    made[YARDSTICK] = compiled(lambda x, **_: x * 1.01, False)
    return made


def _torch(case: Case, trained: bool) -> dict[str, Run]:
    import torch

    def eager(function: Callable[[Any], Any], parameters: list[Any], trained: bool) -> Run:
        def run(x: Any, dy: Any) -> Any:
            if not trained:
                with torch.no_grad():
                    return function(x)
            x = x.detach().requires_grad_()
            y = function(x)
            return y, torch.autograd.grad(y, [x, *parameters], dy)

        return run

    made = {
        name: eager(
            functools.partial(layer, **case.options),
            [v.value for v in layer.trainable_variables],
            trained,
        )
        for name, layer in layers(case).items()
    }
    dtype = torch.float32 if case.dtype == "float32" else torch.bfloat16
    features = case.shape[case.axis]
    parameters = [torch.ones(features), torch.zeros(features)][: len(case.row.learned)]
    parameters = [one.requires_grad_() for one in parameters]
    made[FUNCTION] = eager(_function(case, parameters), parameters, trained)
    parameters = [one.detach().to(dtype).requires_grad_() for one in parameters]
    if (own := _functional(case, parameters)) is not None:
        made[FUNCTIONAL] = eager(own, parameters, trained)
        torch.compiler.reset()  # what it compiled for other cases counts against a limit
        compiled = torch.compile(own, fullgraph=True, dynamic=False)
        made["torch.compile"] = eager(compiled, parameters, trained)
    made[YARDSTICK] = eager(lambda x: x * 1.01, [], False)
    return made


def _function(case: Case, parameters: list[Any]) -> Callable[[Any], Any]:
    """truenorm's function of x on a case."""
    if case.kind == "batch":
        moving = _moving(parameters)
        return lambda x: truenorm.torch.functional.batch_norm(
            x, *moving, *parameters, eps=1e-5, axis=case.axis, **case.options
        )
    gamma, beta = (*parameters, None, None)[:2]
    partition: dict[str, Any] = {"axis": case.axis, "groups": case.groups}
    return lambda x: truenorm.ops.normalize(
        case.row, x, gamma, beta, None, **partition, epsilon=1e-5, implementation=None
    )


def _moving(parameters: list[Any]) -> tuple[Any, Any]:
    """A moving mean and variance to begin with: zeros and ones, as beta and gamma are."""
    gamma, beta = (one.detach().clone() for one in parameters)
    return beta, gamma


def _functional(case: Case, parameters: list[Any]) -> Callable[[Any], Any] | None:
    """PyTorch's own function of x on a case, if it has one; it sees x's axes in its own order."""
    from torch.nn import functional

    if not hasattr(functional, f"{case.kind}_norm"):
        return None

    between: tuple[Any, ...]  # what stands between x and gamma
    if case.kind == "batch":
        name, between, wanted = "batch_norm", _moving(parameters), 1
    elif case.groups is None:
        name, between = f"{case.kind}_norm", ((case.shape[case.axis],),)
        wanted = len(case.shape) - 1
    elif case.kind == "group":
        name, between, wanted = "group_norm", (case.groups,), 1
    else:
        name, between, wanted = "instance_norm", (None, None), 1  # no moving statistics
    function = getattr(functional, name)

    def compute(x: Any) -> Any:
        return function(x, *between, *parameters, eps=1e-5, **case.options)

    if case.axis == wanted:
        return compute
    return lambda x: compute(x.movedim(case.axis, wanted)).movedim(wanted, case.axis)
