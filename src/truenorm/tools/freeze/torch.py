"""Batch normalization of torch.nn that stays in inference mode."""

import functools
from typing import Any

import torch

from truenorm.tools.freeze import has_switch


class Frozen(torch.nn.Module):
    """What a frozen module's class has before the class that it had."""

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in inference mode, whatever `mode` is."""
        del mode
        super().train(False)
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickles and copies name the class that torch has; this one is made in each process.
        return _empty, (thawed(type(self)),), self.__dict__


@functools.cache
def frozen(cls: Any) -> Any:
    """The class whose instances stay in inference mode."""
    # In the module of the class: torch.fx takes what is in torch.nn for a whole.
    return type(f"Frozen{cls.__name__}", (Frozen, cls), {"__module__": cls.__module__})


def thawed(cls: Any) -> Any:
    """The class that this was made from."""
    return cls.__bases__[1] if Frozen in cls.__bases__ else cls


def _empty(cls: Any) -> Any:
    """An instance without attributes, frozen, for what is unpickled."""
    made = frozen(cls)
    return made.__new__(made)


def switch(module: Any, on: bool, affine: bool) -> str:
    """Freeze or thaw it, and say what there is to know."""
    if has_switch(module):
        module.frozen = on
    else:
        plain = thawed(type(module))
        module.__class__ = frozen(plain) if on else plain
        if on:
            module.training = False
    notes = [] if on or module.training else ["in inference mode until train() is called"]
    if not affine:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(not on)
        notes.append("gamma and beta too")
    return ", ".join(notes)


def finish(model: Any) -> None:
    """Nothing is left to do."""
