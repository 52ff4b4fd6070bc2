"""What is known of a variable while a function is traced."""

from typing import Any

import keras


def value_before(flag: Any) -> bool | None:
    """A variable's value before the function that TensorFlow traces; None on other backends."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    if not isinstance(flag, tf.Variable):  # a value of stateless_call
        return None
    with tf.init_scope():
        return bool(tf.convert_to_tensor(flag))  # a replicated variable would count as true
