"""What truenorm's modules for PyTorch share."""

from collections.abc import Sequence
from typing import Any

from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from truenorm.core import arguments, engine
from truenorm.core.view import integer_axes


class Base:
    """What the modules share: options, repr, and parameters of the first input's sizes."""

    _names: tuple[str, ...] = ("weight", "bias")
    _running: tuple[str, ...] = ()  # the buffers of their sizes
    _default_axis: int | None = 1
    activation: str | None = None  # also of modules that were pickled before there was one

    def _set_options(
        self, eps: float | None, axis: Any, activation: str | None, implementation: str | None
    ) -> None:
        """Check and keep them; an eps of None stays, and the axis is the caller's to check."""
        self.eps: Any = None if eps is None else arguments.check_epsilon(eps, "eps")
        self.axis = axis
        self.activation = arguments.check_activation(activation)
        self.implementation = engine.check(implementation)

    def extra_repr(self) -> str:
        """The arguments, as torch.nn has them, and those that have not their default."""
        text = super().extra_repr()  # type: ignore[misc]
        return more(
            text,
            axis=(self.axis, self._default_axis),
            activation=(self.activation, None),
            implementation=(self.implementation, None),
        )

    def _make_lazy(self, device: Any, dtype: Any) -> None:
        """Put uninitialized parameters and buffers in the place of those there are."""
        options = {"device": device, "dtype": dtype}
        kinds = ((self._names, UninitializedParameter), (self._running, UninitializedBuffer))
        for names, kind in kinds:
            for name in names:
                if getattr(self, name) is not None:
                    setattr(self, name, kind(**options))

    def _materialize(self, sizes: tuple[int, ...]) -> None:
        """Give what is uninitialized these sizes, and its first values."""
        lazy = [
            one for name in (*self._names, *self._running) if is_lazy(one := getattr(self, name))
        ]
        for one in lazy:
            one.materialize(sizes)
        if lazy:
            self.reset_parameters()  # type: ignore[attr-defined]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in (*self._names, *self._running):
            given = state_dict.get(prefix + name)
            if given is not None and is_lazy(getattr(self, name)):
                getattr(self, name).materialize(given.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[misc]


def kept_axes(axis: int | Sequence[int]) -> int | tuple[int, ...]:
    """Axis or axes as a module keeps them: plain integers, a tuple where several were given."""
    axes = integer_axes(axis)
    return axes if isinstance(axis, (list, tuple)) else axes[0]


def is_lazy(one: Any) -> bool:
    """Whether a parameter or a buffer has no sizes yet."""
    return isinstance(one, (UninitializedParameter, UninitializedBuffer))


def more(text: str, **options: tuple[Any, Any]) -> str:
    """The repr's text, with the options that have another value than their default."""
    added = [f"{k}={value!r}" for k, (value, default) in options.items() if value != default]
    return ", ".join([text, *added])
