"""Weight normalization."""

import math
import warnings
from typing import Any

import keras
from keras import ops
from keras.src.backend import in_symbolic_scope  # Keras has no public name for it

from truenorm.layers.base import Shape
from truenorm.layers.surroundings import lasting, pooled
from truenorm.layers.tracing import value_before
from truenorm.layers.wrapper import KernelWrapper, Substitution, Tensor, own_value, polar, stored

DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


@keras.saving.register_keras_serializable("truenorm")
class WeightNormalization(KernelWrapper):
    """Learn a kernel's length and direction apart (Salimans and Kingma, 2016, arXiv:1602.07868).

        kernel = g * v / |v|

    The wrapped layer computes with this kernel; v is its own kernel variable. |v| is taken over
    all axes of v but the last, so that there is one g per unit or filter; for a depthwise
    convolution over the spatial axes alone, one g per filter. The last axis of a transposed
    convolution's kernel is its input channels: there g is one per input channel. Of an RNN the
    recurrent kernel is normalized, of an embedding the embeddings.

    At the first call, in training or not, g and the layer's bias are initialized:

    - with `data_init`, from the first batch: where the layer without activation and with the
      kernel v has the mean m and the variance s^2 per output channel, g becomes g / s and the
      bias -m / s. An RNN has no such bias. Where there are more g than output channels (an RNN's
      gates, a transposed convolution) they take the channels' 1 / s in turn.
    - else g becomes |v|: the layer computes what it would without the wrapper.

    A batch without rows initializes nothing. Replicas of a TensorFlow strategy and processes of
    PyTorch's default group take the moments over all their rows: every process must make the first
    call. Inside a function that JAX traces by itself (scan, while_loop, checkpoint, vmap, and so a
    recurrent cell) nothing can be kept: call the layer before, on a batch outside, or pass
    `data_init=False`, for which g is then |v| at build. Else it warns and trains from g = 1.

    Weights, in the order of `weights`; all but the initial ones are TensorFlow Addons':

    - `g` (trainable), the shape of v without the axes of |v|;
    - `initialized`, boolean, false until the first call;
    - `initial_g`, of g's shape, and `initial_bias`, of the bias' shape, with `data_init` and a
      bias: what the first batch gave. A compiled step may keep what it assigns to a weight that
      is not trained, and not to one that is, so g and bias hold what was learned since. In use
      are g + initial_g and bias + initial_bias (the properties `effective_g`, `effective_bias`);
    - the layer's: its kernel, which is v, and its bias.

    TensorFlow Addons keeps g and bias in one piece, and the weights `data_dep_init/kernel` and
    `data_dep_init/bias`, which are not used after the first batch. Its files map to this layer
    with its g, bias, kernel and initialized as they are, and initial_g and initial_bias zero.
    Regularizers, constraints and weight decay of the bias see the learned part.

    Args:
        layer: the layer to wrap: dense, convolution (also transposed or depthwise), embedding,
            recurrent, or any other with a variable `kernel`.
        data_init: initialize g and the bias from the first batch.
        **kwargs: `name`, `dtype`, `trainable`.

    Raises:
        ValueError: layer is not a layer; at build, if it has no kernel.
    """

    def __init__(self, layer: keras.Layer, data_init: bool = True, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        self.data_init = bool(data_init)
        if self.data_init and self.is_rnn:
            warnings.warn(
                "WeightNormalization initializes an RNN from data, which the paper advises "
                "against; pass data_init=False.",
                stacklevel=2,
            )

    def build(self, input_shape: Shape) -> None:
        """Build the layer, then create g, initialized, initial_g and initial_bias."""
        super().build(input_shape)
        self.was_initialized = False
        shape = tuple(self.v.shape)
        self.axes = tuple(range(len(shape) - (2 if isinstance(self.layer, DEPTHWISE) else 1)))
        # Learned in parts from zero, so that a small g / s is not rounded beside a one. What is
        # read from a file of TensorFlow Addons is g in one piece.
        learned, initial = "zeros", "ones" if self.data_init else self._initial_length
        if self.reads_addons:
            learned, initial = "ones", "zeros"
        self.g = self.add_weight(
            name="g", shape=shape[len(self.axes) :], initializer=learned, autocast=False
        )
        self.initialized = self.add_weight(
            name="initialized", shape=(), initializer="zeros", dtype="bool", trainable=False
        )
        self.initial_g = self.add_weight(
            name="initial_g",
            shape=shape[len(self.axes) :],
            initializer=initial,
            trainable=False,
            autocast=False,
        )
        if self.bias is not None:
            self.initial_bias = self.add_weight(
                name="initial_bias",
                shape=tuple(self.bias.shape),
                initializer="zeros",
                trainable=False,
                autocast=False,
            )

    def _initial_length(self, shape: Shape, dtype: Any = None) -> Tensor:
        """|v| where it is not trained yet: an initializer."""
        return ops.cast(self._length(), dtype)

    @property
    def v(self) -> keras.Variable:
        """The layer's kernel variable, whose direction counts."""
        return self.kernel_variable()

    @property
    def bias(self) -> keras.Variable | None:
        """The layer's bias variable if the first batch initializes it."""
        initialized = self.data_init and not self.is_rnn
        return getattr(self.layer, "bias", None) if initialized else None

    @property
    def effective_g(self) -> Tensor:
        """The length of the kernel in use: TensorFlow Addons' g."""
        return stored(self.g) + stored(self.initial_g)

    @property
    def effective_bias(self) -> Tensor | None:
        """The bias in use, or None."""
        if self.bias is not None:
            return stored(self.bias) + stored(self.initial_bias)
        bias = getattr(self.layer, "bias", None)
        return None if bias is None else stored(bias)

    def values(
        self, tensors: list[Any], arguments: dict[str, Any], training: bool | None
    ) -> list[tuple[keras.Variable, Tensor]]:
        """The kernel and the bias in use."""
        initialized = known(self.initialized)
        if not initialized:
            self._initialize(initialized is None, tensors, arguments)
        elif not self.was_initialized:
            self.was_initialized = True
        kernel = (self.v, self._direction() * self.effective_g)
        return [kernel] if self.bias is None else [kernel, (self.bias, self.effective_bias)]

    def _initialize(self, traced: bool, tensors: list[Any], arguments: dict[str, Any]) -> None:
        """Assign initial_g and initial_bias, where it turns out that they are not known yet."""
        learned, offsets = [self.g], [self.initial_g]
        if self.bias is not None:
            learned, offsets = [self.g, self.bias], [self.initial_g, self.initial_bias]
        initialized = own_value(self.initialized)
        # What was learned where nothing could be assigned is kept.
        ready = ops.logical_not(ops.logical_or(initialized, self._learned()))
        if self.data_init:
            shapes = [tuple(one.shape) for one in offsets]

            def nothing() -> list[Tensor]:
                return [ops.zeros(shape, stored(self.g).dtype) for shape in [(), *shapes, *shapes]]

            def first() -> list[Tensor]:
                return self._moments(shapes, tensors, arguments)

            count, *moments = ops.cond(initialized, nothing, first) if traced else first()
            means, variances = moments[: len(shapes)], moments[len(shapes) :]
            count, means, variances = pooled(count, means, variances)
            ready = ops.logical_and(ready, count > 0)
            scales = [1 / ops.sqrt(one + 1e-10) for one in variances]
            wanted = [ops.stop_gradient(self.effective_g) * scales[0]]
            wanted += [-mean * scale for mean, scale in zip(means[1:], scales[1:], strict=True)]
            initialized = ops.logical_or(initialized, ops.logical_or(count > 0, self._learned()))
        else:
            wanted, initialized = [self._length()], ops.ones((), "bool")
        initial = [
            ops.where(ready, value - constant(start), constant(offset))
            for value, start, offset in zip(wanted, learned, offsets, strict=True)
        ]
        if all(map(lasting, initial, offsets)):
            for variable, value in zip(offsets, initial, strict=True):
                variable.assign(value)
            self.initialized.assign(initialized)
            self.was_initialized = self.was_initialized or bool(known(self.initialized))
        elif self.data_init and not (self.was_initialized or in_symbolic_scope()):
            warnings.warn(
                f"WeightNormalization {self.name!r} is not initialized from data: inside a "
                "function that JAX traces by itself (scan, while_loop, checkpoint, vmap, jit) "
                "nothing can be kept. It trains from g = 1. Call it on a batch before, outside of "
                "that function, or pass data_init=False.",
                stacklevel=2,
            )

    def _learned(self) -> Tensor:
        """Whether g was trained on top of a value of initial_g."""
        return ops.logical_and(ops.any(stored(self.g) != 0), ops.any(stored(self.initial_g) != 0))

    def _direction(self) -> Tensor:
        """V / |v|."""
        return polar(stored(self.v), self.axes)[0]

    def _length(self) -> Tensor:
        """|v|, of g's shape, a constant."""
        return ops.squeeze(polar(constant(self.v), self.axes)[1], self.axes)

    def _moments(
        self, shapes: list[tuple[int, ...]], tensors: list[Any], arguments: dict[str, Any]
    ) -> list[Tensor]:
        """The first batch's rows, and the means and variances of the channels in these shapes.

        All that goes in is constant: PyTorch's checkpoint counts what is saved for the backward
        pass, and must find the same when it repeats the call, which then is not the first.
        """
        activation = None if self.is_rnn else getattr(self.layer, "activation", None)
        if activation is not None:
            self.layer.activation = None
        substitution = Substitution(
            [(one, constant(one)) for one in self.layer.trainable_variables]
        )
        tensors = keras.tree.map_structure(ops.stop_gradient, tensors)
        try:  # what this call assigns, and its losses, are dropped
            with substitution:
                outputs = self.layer(*tensors, **arguments)
        finally:
            if activation is not None:
                self.layer.activation = activation
        outputs = ops.cast(keras.tree.flatten(outputs)[0], stored(self.g).dtype)
        axes = list(range(len(outputs.shape)))
        axes.remove(1 if getattr(self.layer, "data_format", None) == "channels_first" else axes[-1])
        size = ops.shape(outputs)
        count = ops.cast(
            ops.convert_to_tensor(math.prod(size[axis] for axis in axes)), outputs.dtype
        )
        rows = ops.maximum(count, 1)
        mean = ops.sum(outputs, axes, keepdims=True) / rows
        variance = ops.sum(ops.square(outputs - mean), axes) / rows

        def over(shape: tuple[int, ...], channels: Tensor) -> Tensor:
            turn = [index % channels.shape[0] for index in range(math.prod(shape))]
            return ops.reshape(ops.take(channels, turn), shape)

        mean = ops.squeeze(mean, axes)
        return [
            count,
            *(over(one, mean) for one in shapes),
            *(over(one, variance) for one in shapes),
        ]

    def remove(self) -> keras.Layer:
        """The layer alone, as an ordinary layer that computes what the wrapper does.

        Its kernel and bias take the values in use. The wrapper goes on to compute the same, too.
        Before any call g is one with `data_init`; without, the layer is as it was.

        Raises:
            ValueError: the wrapper was not built, so that there is no kernel.
        """
        self.check_built()
        in_use = ops.logical_or(own_value(self.initialized), self._learned())
        if self.data_init or bool(in_use):
            self.v.assign(self._direction() * self.effective_g)
            if self.bias is not None:
                self.bias.assign(self.effective_bias)
            self.reset_own_weights()
            self.g.assign(self._length())
            self.initialized.assign(ops.ones((), "bool"))
        return self.release()

    def reset_own_weights(self) -> None:
        """Set the initial values to zero."""
        self.initial_g.assign(ops.zeros(self.initial_g.shape))
        if self.bias is not None:
            self.initial_bias.assign(ops.zeros(self.initial_bias.shape))

    def addons_weights(self) -> list[keras.Variable]:
        """See the base class."""
        rest = [one for one in self.layer.weights if one is not self.v]
        unused = self.layer.weights if self.data_init else []
        return [
            *[self.g, self.v, self.initialized, *rest],
            *[keras.Variable(ops.zeros(one.shape), trainable=False) for one in unused],
        ]

    def load_own_variables(self, store: Any) -> None:
        """Load a file's variables: this layer's, or TensorFlow Addons', which has the kernel here.

        TensorFlow Addons has g, the kernel and initialized, and the rest in the layer's own part.
        """
        self.reads_addons = False
        if "1" not in store or not store["1"].shape:
            super().load_own_variables(store)
            self.was_initialized = bool(known(self.initialized))
            return
        for name, variable in enumerate([self.g, self.v, self.initialized]):
            variable.assign(store[str(name)])
        self.reset_own_weights()
        owner, kernel = self.kernel_owner(), self.v

        def load_the_rest(store: Any) -> None:
            del owner.load_own_variables
            for name, variable in enumerate(one for one in owner.weights if one is not kernel):
                variable.assign(store[str(name)])

        owner.load_own_variables = load_the_rest

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "data_init": self.data_init}


def constant(variable: keras.Variable) -> Tensor:
    """A variable's value, through which no gradient flows."""
    return ops.stop_gradient(stored(variable))


def known(flag: keras.Variable) -> bool | None:
    """The flag's value; None in a compiled function of TensorFlow or JAX, which learns it later."""
    try:
        return bool(own_value(flag))
    except TypeError:
        return value_before(flag.value) or None  # once true it stays true
    except RuntimeError:  # PyTorch where it exports, or works out shapes: as if called before
        return True
