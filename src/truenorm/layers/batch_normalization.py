"""Batch normalization."""

import types
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import initializers
from keras.src.backend import in_symbolic_scope  # Keras has no public name for it

from truenorm import ops
from truenorm.core import batch
from truenorm.core.arguments import check_virtual
from truenorm.core.errors import brief
from truenorm.core.kinds import KINDS
from truenorm.layers.base import NormalizationLayer, Shape, checked_axes, wider
from truenorm.layers.surroundings import gathered, lasting, once

# What batch renormalization keeps besides, in the order of Keras' weights.
_RENORM = ("moving_stddev", "renorm_mean", "renorm_stddev")


@keras.saving.register_keras_serializable("truenorm")
class BatchNormalization(NormalizationLayer):
    """Normalize each channel over the batch (Ioffe and Szegedy, 2015, arXiv:1502.03167).

    In training the statistics are the batch's, and the moving ones follow them; in inference, and
    where `trainable` is False or `frozen` True, the moving ones are used and stay. Arguments,
    defaults, weights and config are those of the layer of this name in Keras.

    Args:
        axis: the channel axis, or a list of axes of whose sizes the weights then are; not the
            batch axis 0.
        momentum: the share of the moving statistics that a batch leaves.
        epsilon: added to the variance, in units of the input squared.
        center: add the learned offset beta, of shape (C,).
        scale: multiply by the learned scale gamma, of shape (C,).
        beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer:
            initializers of the weights.
        beta_regularizer, gamma_regularizer: optional regularizers.
        beta_constraint, gamma_constraint: optional constraints.
        renorm: correct towards the moving statistics: batch renormalization (Ioffe, 2017,
            arXiv:1702.03275).
        renorm_clipping: a dict with some of `rmin`, `rmax` and `dmax`, which clip the correction:
            numbers, or scalar `keras.Variable`s, which a schedule may assign between epochs and
            of which the config keeps the numbers.
        renorm_momentum: as momentum, of the statistics that the correction takes.
        synchronized: take statistics over all replicas of a TensorFlow strategy, or all processes
            of PyTorch's group; on JAX they are over all devices of a distribution anyway.
        virtual_batch_size: take statistics over so many samples in turn, and over what is left;
            the moving ones follow their average (Hoffer et al., 2017, arXiv:1705.08741).
        frozen: use the moving statistics in training too, and leave them, while gamma and beta
            learn. It may be set at any time before the layer is compiled.
        unbiased: move the variance by that with n - 1 in the denominator.
        use_mask: keep masked elements (a Keras mask of shape (N,), (N, T), ...) out of the
            statistics, and a batch that is masked whole out of the moving ones.
        implementation: None for the fastest that supports the call, "plain", "native" or "triton".
        activation: None, "relu", "silu", "gelu" (exact) or "gelu_tanh", applied to the result.
        **kwargs: `name`, `dtype`, `trainable`; and `fused` and `adjustment`, which configs of
            tf.keras 2 have and which change no number (an adjustment must be None).

    Input and output: a float tensor (N, ...) of rank 2 or more; unknown sizes are allowed except
    of the channel axes, and except of N with virtual_batch_size.

    Raises:
        ValueError: an argument does not fit; at build, if an axis does not exist.
        TypeError: an axis, or virtual_batch_size, is not an integer.
    """

    kind = KINDS["batch"]

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        renorm: bool = False,
        renorm_clipping: Mapping[str, float | keras.Variable] | None = None,
        renorm_momentum: float = 0.99,
        synchronized: bool = False,
        *,
        virtual_batch_size: int | None = None,
        frozen: bool = False,
        unbiased: bool = False,
        use_mask: bool = True,
        implementation: str | None = None,
        activation: str | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("fused", None)
        if kwargs.pop("adjustment", None) is not None:
            raise ValueError(
                "adjustment is a function that tf.keras 2 took; expected None: multiply gamma and "
                "add to beta in a layer of your own."
            )
        super().__init__(
            epsilon=epsilon,
            center=center,
            scale=scale,
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer,
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
            use_mask=use_mask,
            implementation=implementation,
            activation=activation,
            **kwargs,
        )
        self.axis = _axes(axis)
        self.momentum = _share("momentum", momentum)
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = initializers.get(moving_variance_initializer)
        self.renorm = renorm
        # Not as a dict, whose variables Keras would save before those of build.
        self.renorm_clipping = (
            types.MappingProxyType(_clipping(renorm_clipping)) if renorm else None
        )
        self.renorm_momentum = _share("renorm_momentum", renorm_momentum)
        self.synchronized = synchronized
        devices = "synchronized=True" if synchronized else None
        self.virtual_batch_size = check_virtual(virtual_batch_size, devices)
        self.frozen = frozen
        self.unbiased = unbiased
        self.moving_mean: Any = None
        self.moving_variance: Any = None

    def partition(self) -> dict[str, Any]:
        """See the base class."""
        return {"axis": self.axis}

    def build(self, input_shape: Shape) -> None:
        """Create gamma and beta, the moving statistics, and those of batch renormalization."""
        super().build(input_shape)
        view = self.kind.view(input_shape, **self.partition(), first=1)
        shape = view.parameter_shape(input_shape)
        if None in shape:
            raise ValueError(
                f"{type(self).__name__} {self.name!r} needs the size of axes "
                f"{list(view.parameter_axes)} for its moving statistics, but its input shape is "
                f"{tuple(input_shape)}; give those sizes."
            )
        first, second = self.moving_mean_initializer, self.moving_variance_initializer

        def deviation(shape: Any, dtype: Any = None) -> Any:
            return keras.ops.sqrt(_again(second)(shape, dtype=dtype))

        wanted = {"moving_mean": first, "moving_variance": second}
        if self.renorm:
            made = (deviation, _again(first), deviation)
            wanted |= dict(zip(_RENORM, made, strict=True))
        # In half precision the small step of a batch would be rounded away, or the square overflow.
        dtype = wider(self.variable_dtype, "float32")
        for name, initializer in wanted.items():
            weight = self.add_weight(
                name=name,
                shape=shape,
                initializer=initializer,
                dtype=dtype,
                trainable=False,
                autocast=False,
            )
            setattr(self, name, weight)

    @property
    def variables(self) -> list[keras.Variable]:
        """Those of every layer, and clips that are variables: no weights, but state of a step."""
        clips = [one for one in (self.renorm_clipping or {}).values() if _is_variable(one)]
        return [*super().variables, *clips]

    def call(  # type: ignore[override]
        self,
        inputs: Any,
        training: bool | None = None,
        mask: Any = None,
        residual: Any = None,
        inputs_mask: Any = None,
    ) -> Any:
        """Normalize a tensor of the shape that the layer was built for.

        Args:
            inputs: tensor (N, ...); integers are taken as float32.
            training: use the statistics of the batch, and let the moving ones follow.
            mask: boolean, its shape a prefix of the inputs'; only training looks at it.
            residual: a tensor of the shape and dtype of the inputs, added to them before.
            inputs_mask: what Keras calls the mask of the inputs where there is a residual too.

        Returns:
            The result in the layer's dtype; with a residual the pair of it and of the sum, which
            has the dtype of the inputs, or the layer's where that is wider.
        """
        mask = inputs_mask if mask is None else mask
        call, x, gamma, beta, mask, total = ops.prepared(
            self.kind, self.widened(inputs), self.gamma, self.beta,
            mask if self.use_mask else None, axis=self.axis, epsilon=self.epsilon,
            activation=self.activation,
            residual=None if residual is None else self.widened(residual),
        )  # fmt: skip
        if training and self.trainable and not self.frozen:
            if self.virtual_batch_size is not None and x.shape[0] is None:
                raise ValueError(
                    f"virtual_batch_size={self.virtual_batch_size} needs the number of samples "
                    f"when the layer is traced, but the input shape is {tuple(x.shape)}; give the "
                    "batch size: keras.Input(batch_size=...), or datasets whose last batch is "
                    "dropped."
                )
            y, statistics = batch.train(
                ops.FRONT, self.implementation, call, x, gamma, beta, mask, total,
                gather=gathered() if self.synchronized else None,
                virtual=self.virtual_batch_size,
                renorm=self._correction() if self.renorm else None,
            )  # fmt: skip
            self._follow(statistics)
        else:
            mean = keras.ops.convert_to_tensor(self.moving_mean)
            variance = keras.ops.convert_to_tensor(self.moving_variance)
            # Where gamma and beta learn, nothing that is hidden may reach their gradients.
            mask = mask if training and self.trainable else None
            operands = (x, mean, variance, gamma, beta, total, mask)
            y = batch.infer(ops.FRONT, self.implementation, call, *operands)
        return self.finished(y, residual)

    def compute_output_spec(  # type: ignore[override]
        self,
        inputs: Any,
        training: bool | None = None,
        mask: Any = None,
        residual: Any = None,
        inputs_mask: Any = None,
    ) -> Any:
        """A tensor of the input's shape; with a residual a pair of them."""
        return super().compute_output_spec(inputs, mask, residual, inputs_mask)

    def _correction(self) -> batch.Renorm:
        """That of batch renormalization, with a deviation that is not near zero."""
        mean, deviation = (
            keras.ops.convert_to_tensor(getattr(self, name))
            for name in ("renorm_mean", "renorm_stddev")
        )
        least = self.epsilon**0.5
        deviation = keras.ops.where(deviation < least, least, deviation)
        clips = {
            name: keras.ops.cast(one, mean.dtype) if _is_variable(one) else one
            for name, one in (self.renorm_clipping or {}).items()
        }
        return batch.Renorm(mean, deviation, **clips)

    def _follow(self, statistics: Any) -> None:
        """Let the moving statistics follow those of a batch."""
        arrays, new = ops.FRONT.arrays, 1.0 - self.momentum
        named: dict[str, Any] = {
            name: keras.ops.convert_to_tensor(getattr(self, name))
            for name in ("moving_mean", "moving_variance", *(_RENORM if self.renorm else ()))
        }
        mean, variance = batch.moved(
            arrays, named["moving_mean"], named["moving_variance"], statistics, new, self.unbiased
        )
        after = {"moving_mean": mean, "moving_variance": variance}
        if self.renorm:
            deviations = statistics._replace(
                variance=keras.ops.sqrt(statistics.variance + self.epsilon)
            )
            options = (deviations, 1.0 - self.renorm_momentum, False)
            after["renorm_mean"], after["renorm_stddev"] = batch.moved(
                arrays, named["renorm_mean"], named["renorm_stddev"], *options
            )
            _, deviation = batch.moved(
                arrays, named["moving_mean"], named["moving_stddev"], deviations, new, False
            )
            after["moving_stddev"] = deviation
            squared = keras.ops.relu(keras.ops.square(deviation) - self.epsilon)
            # Of an empty batch it stays too, whatever the rounding.
            filled = keras.ops.reshape(statistics.count, variance.shape) > 0
            after["moving_variance"] = keras.ops.where(filled, squared, variance)
        for name, value in after.items():
            weight = getattr(self, name)
            value = once(named[name], value)
            if lasting(value, weight):
                weight.assign(value)
            elif not in_symbolic_scope():
                raise NotImplementedError(
                    f"{type(self).__name__} {self.name!r} trains inside a function that JAX traces "
                    "by itself (scan, while_loop, checkpoint, vmap, or jit without "
                    "stateless_call), where what its moving statistics become is lost; set "
                    "frozen=True, or call it outside, or through stateless_call."
                )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; what not every layer of Keras has only where it was set."""
        config = {
            **super().get_config(),
            "momentum": self.momentum,
            "moving_mean_initializer": initializers.serialize(self.moving_mean_initializer),
            "moving_variance_initializer": initializers.serialize(self.moving_variance_initializer),
            "synchronized": self.synchronized,
        }
        # Those of renorm are not in every Keras.
        rarer = {
            "renorm": False,
            "renorm_clipping": None,
            "renorm_momentum": 0.99,
            "virtual_batch_size": None,
            "frozen": False,
            "unbiased": False,
        }
        given = {name: getattr(self, name) for name in rarer}
        given["renorm_clipping"] = _numbers(self.renorm_clipping) or None
        return {**config, **{name: one for name, one in given.items() if one != rarer[name]}}


def _axes(axis: int | Sequence[int]) -> int | list[int]:
    """The axes as the config stores them; tf.keras 2 wrote a list of the one axis."""
    axes = checked_axes(axis)
    return axes[0] if isinstance(axes, list) and len(axes) == 1 else axes


def _share(name: str, value: Any) -> float:
    """A momentum as a float, or ValueError."""
    share = float(value)
    if not 0 <= share <= 1:
        raise ValueError(f"{name}={brief(value)} must be from 0 to 1.")
    return share


def _numbers(clipping: Mapping[str, Any] | None) -> dict[str, float]:
    """The clips that there are, those of variables too, as they are now."""
    return {name: float(value) for name, value in (clipping or {}).items() if value is not None}


def _clipping(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The clips, of which variables stay such; or ValueError where they contradict each other."""
    clips = _numbers(given)
    unknown = set(clips) - {"rmin", "rmax", "dmax"}
    if unknown:
        raise ValueError(
            f"renorm_clipping={brief(clips)} has {', '.join(sorted(unknown))}; expected some of "
            "rmin, rmax and dmax."
        )
    if clips.get("rmin", 0.0) > clips.get("rmax", float("inf")) or clips.get("dmax", 0.0) < 0:
        raise ValueError(
            f"renorm_clipping={brief(clips)} leaves nothing; expected rmin <= rmax and dmax >= 0."
        )
    variables = {
        name: one for name, one in (given or {}).items() if isinstance(one, keras.Variable)
    }
    return clips | variables


def _is_variable(clip: Any) -> bool:
    return isinstance(clip, keras.Variable)


def _again(initializer: Any) -> Any:
    """An initializer of the same numbers, for another weight."""
    return initializers.get(initializers.serialize(initializer))
