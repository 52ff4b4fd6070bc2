"""Batch normalization as modules: torch.nn's, computed by truenorm, with a few arguments more."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from truenorm.core import arguments
from truenorm.core.view import canonical_axes
from truenorm.torch import functional
from truenorm.torch.base import Base, kept_axes, more
from truenorm.torch.functional import Result

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"]


class _BatchNorm(Base):
    """Batch normalization (Ioffe and Szegedy, 2015, arXiv:1502.03167), as torch.nn's modules.

    In training the statistics are the batch's, and the running ones move; after `eval()` the
    running ones are used. A module that is `frozen` uses them in training too, and leaves them,
    while weight and bias learn.

    Args:
        num_features: C, of an input (N, C, ...), or a tuple of sizes where `axis` names several
            axes; None takes those of the first input.
        eps: added to the variance, in units of the input squared.
        momentum: the share of a batch in the running statistics; None is their plain average.
        affine: learn weight and bias, of shape (C,).
        track_running_stats: keep running statistics; else the batch's are always used.
        device, dtype: of the parameters and buffers.
        bias: learn bias, where affine.
        axis: the channel axis; -1 for (N, ..., C).
        virtual_batch_size: take statistics over so many samples in turn (ghost batch
            normalization, Hoffer et al., 2017, arXiv:1705.08741).
        unbiased: the running variance is that with n - 1 in the denominator, as in torch.nn.
        frozen: use the running statistics, and do not move them; may be set at any time.
        activation: None, "relu", "silu", "gelu" (exact) or "gelu_tanh", applied to the result.
        implementation: None for the fastest that supports the call, "plain", "native" or "triton".

    `forward(input, mask=None, residual=None)` is `truenorm.torch.functional.batch_norm`.

    Raises:
        ValueError: an argument does not fit.
        TypeError: an axis, or virtual_batch_size, is not an integer.
    """

    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any
    momentum: float | None
    track_running_stats: bool
    training: bool

    _running = ("running_mean", "running_var")
    # Also of modules that were torch.nn's before.
    axis: Any = 1
    implementation: str | None = None
    virtual_batch_size: int | None = None
    unbiased: bool = True
    frozen: bool = False
    _synchronizes = False
    process_group: Any = None

    def __init__(
        self,
        num_features: Any = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        axis: int | Sequence[int] = 1,
        virtual_batch_size: int | None = None,
        unbiased: bool = True,
        frozen: bool = False,
        activation: str | None = None,
        implementation: str | None = None,
        **kwargs: Any,
    ) -> None:
        known = 1 if num_features is None else num_features
        if not bias:  # which older versions of PyTorch have not
            kwargs["bias"] = False
        super().__init__(  # type: ignore[call-arg]
            known, eps, momentum, affine, track_running_stats,
            device=device, dtype=dtype, **kwargs,
        )  # fmt: skip
        self._set_options(eps, kept_axes(axis), activation, implementation)
        self.virtual_batch_size = arguments.check_virtual(virtual_batch_size)
        self.unbiased = unbiased
        self.frozen = frozen
        if num_features is None:
            self.num_features: Any = None
            self._make_lazy(device, dtype)

    def forward(
        self, input: Tensor, mask: Tensor | None = None, residual: Tensor | None = None
    ) -> Result:
        """The normalized input, of its shape and dtype; with a residual also the sum."""
        self._check_input_dim(input)  # type: ignore[attr-defined]
        if self.num_features is None:
            self._see(input)
        tracked = self.running_mean is not None
        training = (self.training or not tracked) and not self.frozen
        moves = training and self.training and self.track_running_stats
        kept = moves or not training
        share: Any = 0.0 if self.momentum is None else self.momentum
        if moves and self.num_batches_tracked is not None:
            # All processes count alike.
            counts: Any = 1 if mask is None or self._synchronizes else mask.any()
            self.num_batches_tracked.add_(counts)
            if self.momentum is None:
                share = 1.0 / self.num_batches_tracked.clamp(min=1)
        return functional.batch_norm(
            input, self.running_mean if kept else None, self.running_var if kept else None,
            self.weight, self.bias, training, share, self.eps,
            axis=self.axis, virtual_batch_size=self.virtual_batch_size, unbiased=self.unbiased,
            synchronize=self._synchronizes, process_group=self.process_group,
            mask=mask if training or self.training else None,
            activation=self.activation, residual=residual, implementation=self.implementation,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The arguments, as torch.nn has them, and those that have not their default."""
        return more(
            super().extra_repr(),
            virtual_batch_size=(self.virtual_batch_size, None),
            unbiased=(self.unbiased, True),
            frozen=(self.frozen, False),
        )

    def _see(self, input: Tensor) -> None:
        """Take num_features from the input, the first one."""
        sizes = tuple(input.shape[one] for one in canonical_axes(self.axis, input.ndim))
        self.num_features = sizes[0] if len(sizes) == 1 else sizes
        self._materialize(sizes)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """Of (N, C) or (N, C, L)."""

    __doc__ = f"{__doc__}\n\n{_BatchNorm.__doc__}"


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """Of (N, C, H, W)."""

    __doc__ = f"{__doc__}\n\n{_BatchNorm.__doc__}"


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """Of (N, C, D, H, W)."""

    __doc__ = f"{__doc__}\n\n{_BatchNorm.__doc__}"


class SyncBatchNorm(_BatchNorm, nn.modules.batchnorm._BatchNorm):
    """Batch normalization with the statistics of all processes, as `torch.nn.SyncBatchNorm`.

    It needs no GPU: any backend of torch.distributed will do (which is why it is no subclass of
    that one: DistributedDataParallel refuses those on CPUs). Each way one buffer is exchanged, of
    four numbers for each channel; the statistics of the processes are combined exactly, also where
    their batches differ in size. The arguments are those of `BatchNorm2d`, except
    virtual_batch_size, and

    Args:
        process_group: the processes that share statistics; None is all.
    """

    _synchronizes = True

    def __init__(
        self,
        num_features: Any = None,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            **kwargs,
        )  # fmt: skip
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected at least 2D input (got {input.ndim}D input)")

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """The module with all of its batch normalizations synchronized, by `replace`."""
        from truenorm.torch.replace import replace

        model = replace(module, to="sync_batch").model
        for one in model.modules():
            if isinstance(one, cls):
                one.process_group = process_group
        return model
