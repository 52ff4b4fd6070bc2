"""Instance normalization."""

import warnings
from typing import Any

import keras

from truenorm.core.kinds import KINDS
from truenorm.layers.group_normalization import GroupNormalization


@keras.saving.register_keras_serializable("truenorm")
class InstanceNormalization(GroupNormalization):
    """Normalize each channel of each sample by itself (Ulyanov et al., 2016, arXiv:1607.08022).

    Group normalization with one group per channel; it takes the arguments of
    `GroupNormalization` except `groups`. For the sake of old code a `groups` argument is accepted:
    it is ignored, with a warning where it asks for anything but -1.

    Args:
        axis: the channel axis, positive or negative, anywhere but the batch axis 0.
        epsilon: added to the variance, in units of the input squared.
        **kwargs: the other arguments of `GroupNormalization`.
    """

    kind = KINDS["instance"]

    def __init__(self, axis: int = -1, epsilon: float = 1e-3, **kwargs: Any) -> None:
        groups = kwargs.pop("groups", -1)
        if groups != -1:
            warnings.warn(
                f"InstanceNormalization ignores groups={groups!r}: it always has one group per "
                "channel. Use GroupNormalization to choose the groups.",
                stacklevel=2,
            )
        super().__init__(groups=-1, axis=axis, epsilon=epsilon, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, without groups."""
        config = super().get_config()
        del config["groups"]
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "InstanceNormalization":
        """Make the layer of a config; TensorFlow Addons wrote the channel count as groups."""
        return cls(**{key: value for key, value in config.items() if key != "groups"})
