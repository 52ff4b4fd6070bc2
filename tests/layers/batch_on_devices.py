"""A training with synchronized batch normalization on several devices is that on one.

`test_batch_normalization.py` runs it, on each backend, in a process of its own.
"""

import keras
import numpy as np

from truenorm.layers import BatchNormalization

rng = np.random.default_rng(0)
x = rng.normal(30, 2, (24, 6, 5)).astype("float32")
target = rng.normal(0, 1, (24, 2)).astype("float32")


def trained(steps=3):
    """The weights after some steps."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((6, 5)), BatchNormalization(synchronized=True, momentum=0.5),
        keras.layers.Dense(8, "tanh"), BatchNormalization(synchronized=True, momentum=0.5),
        keras.layers.Flatten(), keras.layers.Dense(2),
    ])  # fmt: skip
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit(x, target, batch_size=24, epochs=steps, shuffle=False, verbose=0)
    return model.get_weights()


def same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        scale = max(1, abs(other).max())
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * scale)


def on_jax():
    alone = trained()
    assert len(keras.distribution.list_devices()) == 4
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    same(trained(), alone)


def on_tensorflow():
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * 4
    tf.config.set_logical_device_configuration(cpu, devices)
    alone = trained()
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(4)])
    with strategy.scope():
        same(trained(), alone)
    unequal_replicas_of_tensorflow(strategy)


def unequal_replicas_of_tensorflow(strategy):
    """One has few samples, one has none, and of one the mask hides all, which is NaN."""
    import tensorflow as tf

    parts = [slice(0, 13), slice(13, 14), slice(14, 14), slice(14, 24)]
    mask = rng.random(x.shape[:2]) < 0.6
    mask[parts[1]] = False
    cotangent = rng.normal(size=x.shape).astype("float32")
    hidden = np.where(mask[..., None], x, np.nan).astype("float32")

    def step(layer, x, mask, cotangent):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask)
            loss = tf.reduce_sum(tf.where(mask[..., None], y * cotangent, 0))
        return loss, *tape.gradient(loss, [x, *layer.trainable_variables])

    def layer():
        made = BatchNormalization(synchronized=True, momentum=0.5)
        made.build(x.shape)
        made.gamma.assign(np.linspace(0.5, 2, 5))
        return made

    one = layer()
    real = [np.where(mask[..., None], x, 0), mask, cotangent]
    loss, dx, *wanted = step(one, *map(tf.constant, real))
    with strategy.scope():
        other = layer()
    given = [
        strategy.experimental_distribute_values_from_function(
            lambda context, t=t: tf.constant(t[parts[context.replica_id_in_sync_group]])
        )
        for t in (hidden, mask, cotangent)
    ]
    found = strategy.run(tf.function(lambda *given: step(other, *given)), given)
    total, of_x, *weights = (strategy.experimental_local_results(t) for t in found)
    same([sum(total)], [loss.numpy()])
    same([np.concatenate(of_x)[mask]], [dx.numpy()[mask]])
    same([sum(t) for t in weights], [t.numpy() for t in wanted])
    for weight, alone in zip(other.weights, one.weights, strict=True):
        for copy in strategy.experimental_local_results(weight.value):
            same([copy.numpy()], [alone.numpy()])


def on_torch():
    import os
    import socket

    from torch import multiprocessing

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
    multiprocessing.start_processes(rank_of_torch, nprocs=3, start_method="fork")


def rank_of_torch(rank):
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    layer = BatchNormalization(synchronized=True, momentum=0.5)
    wanted = BatchNormalization(momentum=0.5)
    layer.build(x.shape)
    wanted.build(x.shape)
    whole = torch.tensor(x, requires_grad=True)
    cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    expected = wanted(whole, training=True)
    (dx,) = torch.autograd.grad(expected, whole, cotangent)
    distributed.init_process_group("gloo", rank=rank, world_size=3)
    part = [slice(0, 13), slice(13, 14), slice(14, 24)][rank]
    mine = whole.detach()[part].clone().requires_grad_()
    y = layer(mine, training=True)
    (found,) = torch.autograd.grad(y, mine, cotangent[part])
    torch.testing.assert_close(y, expected[part], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, dx[part], rtol=1e-5, atol=1e-5)
    same(layer.get_weights(), wanted.get_weights())
    distributed.destroy_process_group()


if __name__ == "__main__":
    {"jax": on_jax, "tensorflow": on_tensorflow, "torch": on_torch}[keras.backend.backend()]()
    print("same")
