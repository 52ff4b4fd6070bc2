"""What the two wrappers share: they compute a layer's kernel anew at every call."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from keras.src.backend import AutocastScope  # Keras has no public name for it

from truenorm.core.errors import brief
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

    def apply(self, layer: keras.Layer, values: list[Tensor], losses: list[Tensor]) -> None:
        """Assign the values; hand on the losses, to `layer` where no scope collects them."""
        for (variable, _), value in zip(self.updates.values(), values, strict=True):
            variable.assign(value)
        for loss in losses:
            if self.original_scope is None:
                layer.add_loss(loss)
            elif self.original_scope.collect_losses:
                self.original_scope.add_loss(loss)  # which layer's it is, Keras knows


def own_value(variable: keras.Variable) -> Tensor:
    """A variable's value in its own dtype, also where a policy computes in half precision."""
    with AutocastScope(None):
        value = variable.value
        # A copy: of TensorFlow's variables ops.convert_to_tensor would give the variable itself.
        return ops.cast(value, keras.backend.standardize_dtype(value.dtype))


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


def as_it_is(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """Stand for a layer's `rematerialized_call`: its wrapper sees to that."""
    return call


class KernelWrapper(OwnFramework, keras.layers.Wrapper):
    """A wrapper that calls its layer with a computed kernel.

    The layer keeps its variables, names and config; the wrapper adds its own. The dtype policy is
    the layer's unless `dtype` is given. A wrapped RNN goes where an RNN goes, as in
    `keras.layers.Bidirectional`.
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
        self.input_spec = layer.input_spec if self.is_rnn else None
        parameters = set(inspect.signature(layer.call).parameters)
        self.accepted = parameters & {"training", "mask"}

    @property
    def is_rnn(self) -> bool:
        """Whether the kernel is the recurrent kernel of an RNN's cell."""
        return isinstance(self.layer, keras.layers.RNN)

    # What keras.layers.Bidirectional asks an RNN; other layers have none of it.

    @property
    def go_backwards(self) -> bool:
        """Whether the RNN reads the sequence from its end."""
        return self.layer.go_backwards  # type: ignore[no-any-return]

    @property
    def stateful(self) -> bool:
        """Whether the RNN goes on from its last states."""
        return self.layer.stateful  # type: ignore[no-any-return]

    @property
    def return_sequences(self) -> bool:
        """Whether the RNN returns the outputs of all steps."""
        return self.layer.return_sequences  # type: ignore[no-any-return]

    @property
    def return_state(self) -> bool:
        """Whether the RNN returns its states, too."""
        return self.layer.return_state  # type: ignore[no-any-return]

    @property
    def zero_output_for_mask(self) -> bool:
        """Whether the RNN's outputs are zero at masked steps."""
        return self.layer.zero_output_for_mask  # type: ignore[no-any-return]

    @zero_output_for_mask.setter
    def zero_output_for_mask(self, value: bool) -> None:
        self.layer.zero_output_for_mask = value

    @property
    def states(self) -> Any:
        """The RNN's states, if it is stateful."""
        return self.layer.states

    def reset_state(self) -> None:
        """Set the RNN's states to zero."""
        self.layer.reset_state()

    def build(self, input_shape: Shape) -> None:
        """Build the layer."""
        try:
            inspect.signature(self.layer.build).bind(input_shape)
        except TypeError:  # attention, which is called with several tensors
            raise self._no_kernel() from None
        super().build(input_shape)
        self.kernel_variable()
        self._restrict()

    def _restrict(self) -> None:
        """Refuse on the layer what would change the kernel behind the wrapper's back."""
        self.replaced: dict[str, Any] = {}
        for name in ("quantize", "enable_lora"):
            if hasattr(self.layer, name):
                self.replaced[name] = getattr(self.layer, name)
                setattr(self.layer, name, functools.partial(self._refuse, name))
        # A layer that is rematerialized by itself is repeated outside of the substitution.
        for one in {self.layer, self.kernel_owner()}:
            one.rematerialized_call = as_it_is

    def _refuse(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Raise what Keras' `Model.quantize` makes a warning of, leaving the layer as it is."""
        raise NotImplementedError(
            f"{type(self.layer).__name__} {self.layer.name!r} cannot {method} inside "
            f"{type(self).__name__} {self.name!r}, which computes its kernel: it is left as it is. "
            "Take the layer that the wrapper's remove() returns, build the model with it, and "
            f"{method} that."
        )

    def release(self) -> keras.Layer:
        """The layer, to be used alone."""
        for name, method in self.replaced.items():
            setattr(self.layer, name, method)
        self.replaced = {}
        for one in {self.layer, self.kernel_owner()}:
            one.__dict__.pop("rematerialized_call", None)
        return self.layer

    def check_built(self) -> None:
        """Raise an error if there is no kernel to remove the wrapper from."""
        if not self.built:
            raise ValueError(
                f"{type(self).__name__} {self.name!r} has no kernel yet: call it, or build it, "
                "before remove()."
            )

    def kernel_owner(self) -> keras.Layer:
        """The layer that has the kernel: an RNN's cell, or the wrapped layer."""
        return self.layer.cell if self.is_rnn else self.layer

    def kernel_variable(self) -> keras.Variable:
        """The variable that is normalized: kernel, an RNN's recurrent kernel, or embeddings."""
        owner = self.kernel_owner()
        for name in ("recurrent_kernel",) if self.is_rnn else ("kernel", "embeddings"):
            kernel = getattr(owner, name, None)
            if isinstance(kernel, keras.Variable) and owner.quantization_mode is None:
                return kernel
        raise self._no_kernel()

    def _no_kernel(self) -> ValueError:
        owner = self.kernel_owner()
        return ValueError(
            f"{type(self).__name__} {self.name!r} normalizes a variable named kernel, embeddings, "
            f"or recurrent_kernel in the cell of an RNN, but {type(owner).__name__} "
            f"{owner.name!r} has none, or computes it (LoRA and quantization do). Wrap a layer "
            "with a kernel, such as Dense or Conv2D; of a model, wrap the layers inside it."
        )

    def values(
        self, tensors: list[Any], arguments: dict[str, Any], training: bool | None
    ) -> list[tuple[keras.Variable, Tensor]]:
        """The kernel, and what else has another value inside the call layer(*tensors, **arguments).

        What the call keeps is assigned here.
        """
        raise NotImplementedError

    def call(
        self,
        inputs: Any,
        training: bool | None = None,
        mask: Any = None,
        initial_state: Any = None,
    ) -> Any:
        """The layer's outputs, computed with the normalized kernel."""
        self.reads_addons = False
        given = {"training": training, "mask": mask}
        arguments = {name: value for name, value in given.items() if name in self.accepted}
        tensors = [inputs] if initial_state is None else [inputs, initial_state]
        values = self.values(tensors, arguments, training)
        variables = [variable for variable, _ in values]
        substitution = Substitution([])

        def function(*flat: Tensor) -> tuple[Any, list[Tensor], list[Tensor]]:
            nonlocal substitution
            substitution = Substitution(list(zip(variables, flat[: len(variables)], strict=True)))
            given = keras.tree.pack_sequence_as(tensors, list(flat[len(variables) :]))
            with substitution:
                outputs = self.layer(*given, **arguments)
            updates = [value for _, value in substitution.updates.values()]
            return outputs, updates, substitution.losses

        flat = [*(value for _, value in values), *keras.tree.flatten(tensors)]
        outputs, updates, losses = self._rematerialized(function, inputs)(*flat)
        substitution.apply(self, updates, losses)
        if self.compute_dtype == self.layer.compute_dtype:
            return outputs
        # The layer has a policy of its own.
        return keras.tree.map_structure(lambda y: ops.cast(y, self.compute_dtype), outputs)

    def rematerialized_call(
        self, layer_call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Callable[..., Any]:
        """The call as it is: it rematerializes what can be repeated, which an assignment cannot."""
        return layer_call

    def _rematerialized(self, function: Callable[..., Any], inputs: Any) -> Any:
        """The function, rematerialized if the scope of the wrapper, or of the layer, says so."""
        for one in (self, self.layer):
            again = keras.Layer.rematerialized_call(one, function, inputs)
            if again is not function:
                return again
        return function

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
        config = {**config}
        nested["config"] = {**nested["config"]}
        if "go_backwards" in config:  # keras.layers.Bidirectional asks for it
            nested["config"]["go_backwards"] = config.pop("go_backwards")
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
