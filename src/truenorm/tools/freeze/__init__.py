"""`freeze`: batch normalization that keeps its moving statistics, in training too."""

import dataclasses
import importlib
from typing import Any

from truenorm.core.errors import brief
from truenorm.tools.statistics.found import batch_normalizations


@dataclasses.dataclass(frozen=True)
class Report:
    """What `freeze` did; printed, a line for each batch normalization.

    Attributes:
        done: the name and the class of each, and what there is to know of it.
        left: the name of each that is as it was, and why.
        frozen: whether they are frozen now, or no longer.
    """

    done: tuple[tuple[str, str, str], ...]
    left: tuple[tuple[str, str], ...]
    frozen: bool

    def __str__(self) -> str:
        plural = "" if len(self.done) == 1 else "s"
        verb = "frozen" if self.frozen else "thawed"
        lines = [f"{len(self.done)} batch normalization{plural} {verb}"]
        for name, kind, note in self.done:
            lines.append(f"  {name}: {kind}" + (f" ({note})" if note else ""))
        lines += [f"  {name}: left as it was: {why}" for name, why in self.left]
        return "\n".join(lines)

    __repr__ = __str__


def freeze(model: Any, frozen: bool = True, *, affine: bool = True) -> Report:
    """Let batch normalizations use their moving statistics in training, and not change them.

    Gradients still flow to their inputs, and to gamma and beta. That is how a trained backbone is
    commonly fine-tuned on batches that are small or of other data, and how "Rethinking 'Batch' in
    BatchNorm" (Wu and Johnson, 2021, arXiv:2105.07576) trains detectors.

    - torch.nn: stays in inference mode whatever `train()` of the model says. The object stays, with
      its parameters, buffers and hooks, and gets a subclass of its class; the state_dict is the
      same, and copies and pickles are frozen too.
    - flax.nnx: `use_running_average` is True. What the model passes in a call goes before it, and
      `model.train()` ends it.
    - Keras' own layer: `trainable` is False, with which Keras freezes gamma and beta too.
    - truenorm's own: `frozen` is True.

    Args:
        model: a model of torch.nn, flax.nnx or Keras, or a batch normalization; changed in place.
        frozen: False undoes it.
        affine: False freezes gamma and beta as well; with `frozen=False`, makes them trainable
            again. Those of flax become variables of the type nnx.BatchStat; make the optimizer and
            whatever was split from the model anew.

    Returns:
        A report; printed, it shows a line for each batch normalization. A model of Keras that was
        compiled should be compiled again.

    Raises:
        InputError: a ValueError. The model has no batch normalization, or one is not built.
        TypeError: the model is of no known framework, or `frozen` or `affine` is no bool. Nothing
            was changed.
    """
    for name, value in (("frozen", frozen), ("affine", affine)):
        if not isinstance(value, bool):
            raise TypeError(f"{name}={brief(value)}; expected True or False.")
    framework, found = batch_normalizations(model)
    front = importlib.import_module(f"truenorm.tools.freeze.{framework.name}")
    done, left = [], []
    for one in found:
        if one.parameter("mean") is None:
            left.append((one.name, "it keeps no statistics"))
            continue
        kind = type(one.module).__name__
        done.append((one.name, kind, front.switch(one.module, frozen, affine)))
    front.finish(model)
    return Report(tuple(done), tuple(left), frozen)


def has_switch(module: Any) -> bool:
    """Whether it is one of truenorm's own, which has an attribute for it."""
    ours = any(cls.__module__.startswith("truenorm.") for cls in type(module).__mro__)
    return ours and hasattr(module, "frozen")
