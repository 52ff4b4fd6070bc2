"""Spectral normalization."""

import operator
from typing import Any

import keras
from keras import ops
from keras.src.backend import in_symbolic_scope  # Keras has no public name for it

from truenorm.layers.base import Shape
from truenorm.layers.surroundings import lasting, recomputing
from truenorm.layers.wrapper import KernelWrapper, Tensor, polar, stored


@keras.saving.register_keras_serializable("truenorm")
class SpectralNormalization(KernelWrapper):
    """Divide a layer's kernel by its largest singular value (Miyato et al., arXiv:1802.05957).

        kernel = w / sigma

    The wrapped layer computes with this kernel; w is its own kernel variable, of which every axis
    but the last is merged into the rows of a matrix (rows, out). sigma is estimated by the power
    iteration, which starts where it was left at the last step:

        v = w u / |w u|,  u = v w / |v w|,  sigma = v w u

    In training the iteration is made and u and sigma are kept. The gradient flows through sigma,
    with u and v constant, as the paper has it. In inference nothing is iterated: the kernel is
    divided by the sigma of the last training step, as batch normalization uses the averages of
    training. A layer that was never trained divides by one. A kernel of zeros stays one.

    Where u cannot be kept, training is refused: inside a function that JAX traces by itself (scan,
    while_loop, checkpoint, vmap) and where PyTorch repeats `keras.remat`. On TensorFlow,
    `keras.remat` around the layer iterates again in the backward pass; make the layer inside
    `keras.RematScope` instead.

    Weights, in the order of `weights`; all but sigma are TensorFlow Addons':

    - `sn_u` (1, out), u; not trained;
    - `sigma` (), not trained, one before training;
    - the layer's: its kernel, which is w, and its bias.

    TensorFlow Addons writes w / sigma into the kernel at every training step, and uses the kernel
    as it is in inference. Its files map to this layer as they are, with sigma one: the outputs are
    the same. Training goes on from there with the gradient above.

    Args:
        layer: the layer to wrap, with a kernel; of an RNN the recurrent kernel is normalized, of
            an embedding the embeddings.
        power_iterations: how often the iteration is made in a training step, 1 or more.
        **kwargs: `name`, `dtype`, `trainable`.

    Raises:
        ValueError: layer is not a layer, or power_iterations below 1; at build, if the layer has
            no kernel.
        TypeError: power_iterations is not an integer.
        RuntimeError: in training, where u cannot be kept.
    """

    def __init__(self, layer: keras.Layer, power_iterations: int = 1, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        try:
            self.power_iterations = operator.index(power_iterations)
        except TypeError:
            raise TypeError(f"power_iterations={power_iterations!r} must be an integer.") from None
        if self.power_iterations < 1:
            raise ValueError(f"power_iterations={power_iterations!r} must be 1 or more.")

    def build(self, input_shape: Shape) -> None:
        """Build the layer, then create sn_u and sigma."""
        super().build(input_shape)
        self.sn_u = self.add_weight(
            name="sn_u",
            shape=(1, self.w.shape[-1]),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            trainable=False,
            autocast=False,
        )
        self.sigma = self.add_weight(
            name="sigma", shape=(), initializer="ones", trainable=False, autocast=False
        )

    @property
    def w(self) -> keras.Variable:
        """The layer's kernel variable."""
        return self.kernel_variable()

    def values(
        self, tensors: list[Any], arguments: dict[str, Any], training: bool | None
    ) -> list[tuple[keras.Variable, Tensor]]:
        """The divided kernel."""
        w = stored(self.w)
        sigma = stored(self.sigma)
        if training:
            u, sigma = self._iterate(w)
            if recomputing() or not (lasting(u, self.sn_u) or in_symbolic_scope()):
                raise RuntimeError(
                    f"SpectralNormalization {self.name!r} keeps the vector of its power iteration "
                    "at every training step, which it cannot inside keras.remat, a scan, a "
                    "while_loop or vmap. Call it outside of that function, pass training=False "
                    "there, or make the layer alone inside keras.RematScope."
                )
            if lasting(u, self.sn_u):
                self.sn_u.assign(u)
                self.sigma.assign(ops.stop_gradient(sigma))
        return [(self.w, w / sigma)]

    def _iterate(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """U after the power iterations from sn_u, and sigma, through which the gradient flows."""
        w = ops.reshape(w, (-1, w.shape[-1]))
        constant = ops.stop_gradient(w)
        start = u = stored(self.sn_u)
        for _ in range(self.power_iterations):
            v, _ = polar(ops.matmul(u, ops.transpose(constant)))
            u, _ = polar(ops.matmul(v, constant))
        sigma = ops.sum(ops.matmul(v, w) * u)
        # Where u meets only zeros it would stay zero for good, and sigma with it.
        vanished = sigma == 0
        return ops.where(vanished, start, u), ops.where(vanished, ops.ones_like(sigma), sigma)

    def remove(self) -> keras.Layer:
        """The layer alone, as an ordinary layer that computes what the wrapper does in inference.

        Its kernel takes the value in use. The wrapper goes on to compute the same, too.

        Raises:
            ValueError: the wrapper was not built, so that there is no kernel.
        """
        self.check_built()
        self.w.assign(stored(self.w) / stored(self.sigma))
        self.reset_own_weights()
        return self.release()

    def reset_own_weights(self) -> None:
        """Set sigma to one."""
        self.sigma.assign(1.0)

    def addons_weights(self) -> list[keras.Variable]:
        """See the base class."""
        return [self.w, self.sn_u, *(one for one in self.layer.weights if one is not self.w)]

    def load_own_variables(self, store: Any) -> None:
        """Load a file's variables: sn_u and sigma, or TensorFlow Addons' kernel and sn_u."""
        self.reads_addons = False
        if "1" not in store or not store["1"].shape:
            super().load_own_variables(store)
            return
        self.w.assign(store["0"])
        self.sn_u.assign(store["1"])
        self.reset_own_weights()

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "power_iterations": self.power_iterations}
