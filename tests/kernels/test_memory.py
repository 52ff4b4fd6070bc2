"""What a training step keeps: y, dy, dx and nothing else of x's size."""

import os
import subprocess
import sys

import keras
import pytest

from truenorm import native

REASON = native.unavailable(keras.backend.backend())
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux' /proc"),
]
MIB = 256
# dy is the gradient of sum(y * dy), as a loss function makes it, so the step holds y, dy and dx.
PROGRAM = f"""
import re, keras, truenorm

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

def step(x, gamma, beta):
    {{step}}

def sized(rows):
    return keras.ops.ones((rows, 64, 64, 64)) * 0.5

gamma, beta = keras.ops.ones((64,)), keras.ops.zeros((64,))
step(sized(1), gamma, beta)
x = sized({MIB})
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew from what is in use
before = peak()
result = step(x, gamma, beta)
print(peak() - before)
"""
NORMALIZE = "truenorm.ops.group_normalization(x, gamma, beta, groups=8, implementation='native')"
STEPS = {
    "jax": f"""import jax
    @jax.jit
    def run(*arguments):
        y, backward = jax.vjp(lambda x, gamma, beta: {NORMALIZE}, *arguments)
        return y, backward(y * 2)
    return jax.block_until_ready(run(x, gamma, beta))""",
    "tensorflow": f"""import tensorflow as tf
    with tf.GradientTape() as tape:
        tape.watch((x, gamma, beta))
        y = {NORMALIZE}
    return y, tape.gradient(y, (x, gamma, beta), output_gradients=y * 2)""",
    "torch": f"""import torch
    x = x.detach().requires_grad_()
    gamma = gamma.detach().requires_grad_()
    y = {NORMALIZE}
    return y, torch.autograd.grad(y, (x, gamma), y.detach() * 2)""",
}


def test_nothing_of_the_size_of_x_is_kept():
    program = PROGRAM.format(step=STEPS[keras.backend.backend()])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rise = float(done.stdout.split()[-1])
    assert 1.9 * MIB < rise <= 3 * MIB * 1.05
