"""What the plain formula needs of a framework: a module for each front without Keras.

`keras.ops` serves as it is, and the modules here have these functions of it, with its names and
arguments:

    dtype shape cast reshape transpose pad broadcast_to
    sum square sqrt isfinite where logical_and logical_not logical_or
    zeros_like stack concatenate stop_gradient is_tensor
    sigmoid erf

where `is_tensor` tells a size that is known when it runs from an integer; where sizes can be such
tensors, as in TensorFlow's graphs, `maximum` and `ceil` are needed too. `==`, `+` and the like are
those of the tensors. Where compilers leave a sum in half precision its digits whatever is done
about it, `rounded` returns the sum as it is (`core/activation.py`).
"""
