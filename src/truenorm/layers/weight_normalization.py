"""Weight normalization."""

import math
import warnings
from typing import Any

import keras
from keras import ops

from truenorm.layers.base import Shape
from truenorm.layers.wrapper import KernelWrapper, Substitution, Tensor, polar, stored
from truenorm.tracing import value_before

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
        shape = tuple(self.v.shape)
        self.axes = tuple(range(len(shape) - (2 if isinstance(self.layer, DEPTHWISE) else 1)))
        # Learned in parts from zero, so that a small g / s is not rounded beside a one. What is
        # read from a file of TensorFlow Addons is g in one piece.
        learned, initial = ("ones", "zeros") if self.reads_addons else ("zeros", "ones")
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

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """The layer's outputs, computed with the normalized kernel."""
        self.reads_addons = False
        offsets = [self.initial_g, *([] if self.bias is None else [self.initial_bias])]
        learned = [self.g, *([] if self.bias is None else [self.bias])]

        def unchanged() -> list[Tensor]:
            return [stored(one) for one in offsets]

        def first() -> list[Tensor]:
            if self.data_init:
                values = self._from_batch(inputs, training, mask)
            else:
                values = [self._length()]
            return [ops.stop_gradient(a - stored(b)) for a, b in zip(values, learned, strict=True)]

        initialized = known(self.initialized.value)
        if initialized:
            initial = unchanged()
        else:
            traced = initialized is None
            initial = ops.cond(self.initialized.value, unchanged, first) if traced else first()
            for variable, value in zip(offsets, initial, strict=True):
                variable.assign(value)
            self.initialized.assign(ops.ones((), "bool"))
        g, *bias = (stored(one) + offset for one, offset in zip(learned, initial, strict=True))
        substitution = Substitution(
            [(self.v, self._direction() * g), *((self.bias, one) for one in bias)]
        )
        outputs = self.call_layer(substitution, inputs, training, mask)
        substitution.apply(self)
        return outputs

    def _direction(self) -> Tensor:
        """V / |v|."""
        return polar(stored(self.v), self.axes)[0]

    def _length(self) -> Tensor:
        """|v|, of g's shape."""
        return ops.squeeze(polar(stored(self.v), self.axes)[1], self.axes)

    def _from_batch(self, inputs: Any, training: bool | None, mask: Any) -> list[Tensor]:
        """g, and the bias if there is one, that the first batch asks for."""
        activation = None if self.is_rnn else getattr(self.layer, "activation", None)
        if activation is not None:
            self.layer.activation = None
        try:  # what this call assigns, and its losses, are dropped
            outputs = self.call_layer(Substitution([]), inputs, training, mask)
        finally:
            if activation is not None:
                self.layer.activation = activation
        outputs = ops.cast(keras.tree.flatten(outputs)[0], stored(self.g).dtype)
        axes = list(range(len(outputs.shape)))
        axes.remove(1 if getattr(self.layer, "data_format", None) == "channels_first" else axes[-1])
        mean, variance = ops.moments(outputs, axes)
        scale = 1 / ops.sqrt(variance + 1e-10)
        shape = self.g.shape
        turn = [index % scale.shape[0] for index in range(math.prod(shape))]
        g = self.effective_g * ops.reshape(ops.take(scale, turn), shape)
        return [g] if self.bias is None else [g, -mean * scale]

    def remove(self) -> keras.Layer:
        """The layer alone, as an ordinary layer that computes what the wrapper does.

        Its kernel and bias take the values in use. The wrapper goes on to compute the same, too.
        Before any call g is one with `data_init`; without, the layer is as it was.

        Raises:
            ValueError: the wrapper was not built, so that there is no kernel.
        """
        if not self.built:
            raise ValueError(
                f"WeightNormalization {self.name!r} has no kernel yet: call it, or build it, "
                "before remove()."
            )
        if self.data_init or ops.convert_to_numpy(self.initialized):
            self.v.assign(self._direction() * self.effective_g)
            if self.bias is not None:
                self.bias.assign(self.effective_bias)
            self.reset_own_weights()
            self.g.assign(self._length())
            self.initialized.assign(ops.ones((), "bool"))
        return self.layer

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


def known(flag: Tensor) -> bool | None:
    """The flag's value; None in a compiled function of TensorFlow or JAX, which learns it later."""
    try:
        return bool(flag)
    except TypeError:
        return value_before(flag) or None  # once true it stays true
    except RuntimeError:  # PyTorch where it exports, or works out shapes: as if called before
        return True
