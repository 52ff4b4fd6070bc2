"""What the two wrappers share: they compute a layer's kernel anew at every call."""

import inspect
from typing import Any

import keras
from keras import ops
from keras.src.backend import AutocastScope  # Keras has no public name for it

from truenorm.errors import brief
from truenorm.layers.base import OwnFramework, Shape

Tensor = Any


class Substitution(keras.StatelessScope):
    """Inside this scope some variables have other values; all else is as outside.

    A plain StatelessScope hides the one around it, which holds the values of a compiled step, and
    drops what is assigned inside. Here reads fall through, and `apply` passes assignments and
    losses on to what is around the scope. No attribute of a layer is touched, so that gradients
    flow through the computed values and two threads do not disturb each other.
    """

    def __init__(self, values: list[tuple[keras.Variable, Tensor]]) -> None:
        super().__init__(collect_losses=True)
        # In the variable's own dtype: an autocast scope applies to these values, too.
        self.values = {id(one): ops.cast(value, own_value(one).dtype) for one, value in values}
        self.updates: dict[int, tuple[keras.Variable, Tensor]] = {}

    def get_current_value(self, variable: keras.Variable) -> Tensor | None:
        """The value inside, else around the scope; None where the variable's own is to be used."""
        if id(variable) in self.values:
            return self.values[id(variable)]
        if self.original_scope is not None:
            return self.original_scope.get_current_value(variable)
        return None

    def add_update(self, update: tuple[keras.Variable, Tensor]) -> None:
        """Keep an assignment for `apply`."""
        variable, value = update
        self.values[id(variable)] = value
        self.updates[id(variable)] = update

    def apply(self, layer: keras.Layer) -> None:
        """Make the assignments; hand on the losses, to `layer` where no scope collects them."""
        for variable, value in self.updates.values():
            variable.assign(value)
        for loss in self.losses:
            if self.original_scope is None:
                layer.add_loss(loss)
            elif self.original_scope.collect_losses:
                self.original_scope.add_loss(loss)  # which layer's it is, Keras knows


def own_value(variable: keras.Variable) -> Tensor:
    """A variable's value in its own dtype, also where a policy computes in half precision."""
    with AutocastScope(None):
        return ops.convert_to_tensor(variable.value)


def stored(variable: keras.Variable) -> Tensor:
    """A variable's value in float64 if it has that dtype, and in float32 otherwise."""
    value = own_value(variable)
    wide = keras.backend.standardize_dtype(value.dtype) == "float64"
    return value if wide else ops.cast(value, "float32")


def polar(x: Tensor, axes: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
    """The direction x / |x| and the length |x| over the axes, which it keeps; of zeros, zeros.

    Divided by its largest element first, x may be as large or small as its dtype allows.
    """
    largest = ops.stop_gradient(ops.max(ops.abs(x), axes, keepdims=True))
    largest = ops.where(largest == 0, ops.ones_like(largest), largest)
    x = x / largest
    squares = ops.sum(ops.square(x), axes, keepdims=True)
    zero = squares == 0
    length = ops.sqrt(ops.where(zero, ops.ones_like(squares), squares))
    return x / length, ops.where(zero, ops.zeros_like(length), length) * largest


class KernelWrapper(OwnFramework, keras.layers.Wrapper):
    """A wrapper that calls its layer with a computed kernel.

    The layer keeps its variables, names and config; the wrapper adds its own. The dtype policy is
    the layer's unless `dtype` is given.
    """

    def __init__(self, layer: keras.Layer, **kwargs: Any) -> None:
        if not isinstance(layer, keras.Layer):
            raise ValueError(
                f"{type(self).__name__} wraps a Keras layer, but layer={brief(layer)} was passed; "
                "pass an instance such as keras.layers.Dense(8)."
            )
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **kwargs)
        if not self.trainable:
            layer.trainable = False  # else a model would train its variables
        self.supports_masking = layer.supports_masking
        self.accepted = set(inspect.signature(layer.call).parameters) & {"training", "mask"}

    @property
    def is_rnn(self) -> bool:
        """Whether the kernel is the recurrent kernel of an RNN's cell."""
        return isinstance(self.layer, keras.layers.RNN)

    def build(self, input_shape: Shape) -> None:
        """Build the layer."""
        super().build(input_shape)
        self.kernel_variable()

    def kernel_owner(self) -> keras.Layer:
        """The layer that has the kernel: an RNN's cell, or the wrapped layer."""
        return self.layer.cell if self.is_rnn else self.layer

    def kernel_variable(self) -> keras.Variable:
        """The variable that is normalized: kernel, an RNN's recurrent kernel, or embeddings."""
        owner = self.kernel_owner()
        for name in ("recurrent_kernel",) if self.is_rnn else ("kernel", "embeddings"):
            kernel = getattr(owner, name, None)
            if isinstance(kernel, keras.Variable):
                return kernel
        raise ValueError(
            f"{type(self).__name__} {self.name!r} normalizes a variable named kernel, embeddings, "
            f"or recurrent_kernel in the cell of an RNN, but {type(owner).__name__} "
            f"{owner.name!r} has none, or computes it (LoRA and quantization do). Wrap a layer "
            "with a kernel, such as Dense or Conv2D; of a model, wrap the layers inside it."
        )

    def call_layer(
        self,
        substitution: Substitution,
        inputs: Tensor,
        training: bool | None,
        mask: Tensor | None,
    ) -> Tensor:
        """The layer's outputs where variables have the substitution's values."""
        given = {"training": training, "mask": mask}
        arguments = {name: value for name, value in given.items() if name in self.accepted}
        with substitution:
            return self.layer(inputs, **arguments)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The layer's mask."""
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, input_shape: Shape) -> Any:
        """The layer's output shape."""
        return self.layer.compute_output_shape(input_shape)

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "KernelWrapper":
        """Make the wrapper of a config, of Keras 3 or of TensorFlow Addons."""
        nested = {"module": "keras.layers", **config["layer"]}  # Keras 2 did not always name it
        nested["config"] = {**nested["config"]}
        if not nested["config"].get("time_major", True):
            del nested["config"]["time_major"]  # Keras 2 wrote it for every RNN; Keras 3 has none
        layer = keras.layers.deserialize(nested, custom_objects=custom_objects)
        wrapper = cls(layer, **{key: value for key, value in config.items() if key != "layer"})
        policy = config.get("dtype")  # Keras 3 writes a DTypePolicy here
        if isinstance(policy, str) or (policy and policy.get("class_name") == "Policy"):
            wrapper.expect_addons_weights()
        return wrapper

    # Files of TensorFlow Addons. Keras assigns the weights of a .h5 file to `weights` in order, and
    # looks at no name. So a wrapper that was made from a config of TensorFlow Addons lists its
    # weights as TensorFlow Addons did until they are loaded, or it is called. `.keras` and
    # `.weights.h5` files are read by `load_own_variables`, whatever the wrapper was made from.

    reads_addons = False

    def expect_addons_weights(self) -> None:
        """List the weights as TensorFlow Addons did, for a .h5 file that is loaded next."""
        self.reads_addons = True
        if self.built:
            self.reset_own_weights()

    def reset_own_weights(self) -> None:
        """Give the weights that TensorFlow Addons does not have the value of no effect."""
        raise NotImplementedError

    def addons_weights(self) -> list[keras.Variable]:
        """The variables in TensorFlow Addons' order; new ones that nothing reads stand for others.

        Keras puts what is trained before what is not where it reads a .h5 file.
        """
        raise NotImplementedError

    @property
    def weights(self) -> list[keras.Variable]:
        """The variables, the wrapper's own first."""
        return self.addons_weights() if self.built and self.reads_addons else super().weights

    def finalize_state(self) -> None:
        """Keras calls this when it has read a .h5 file."""
        self.reads_addons = False
