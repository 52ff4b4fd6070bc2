"""Train one model once: one normalization, one batch size, one seed."""

import dataclasses
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import keras
import numpy as np

from truenorm.core.errors import InputError
from truenorm.tools.compare import models
from truenorm.tools.compare.data import Data
from truenorm.tools.compare.settings import Norm, Settings

TEST_BATCH = 1000  # images evaluated at a time; it changes no result
WARM_UP = 3  # steps of a run's first epoch that are not timed: they compile
CURVE_POINTS = 40  # of a run's training curve, about

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: which normalization, how many images a batch, which seed."""

    norm: Norm
    batch_size: int
    seed: int

    @property
    def name(self) -> str:
        """A name that is a file name too, such as "group_groups=2-batch2-seed0"."""
        return f"{self.norm.label.replace(':', '_')}-batch{self.batch_size}-seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.norm.label}, batch {self.batch_size}, seed {self.seed}"


class Watcher(Protocol):
    """Who wants to see the steps of a run while it trains."""

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float) -> None:
        """Epoch and step count from 0; loss and accuracy are the means of the epoch so far."""


class Interrupt:
    """Turns Ctrl-C into a KeyboardInterrupt at the end of the current step; a second one at once.

    Raised wherever it happens to arrive, it would now and then be swallowed by a callback from
    native code (JAX hooks into Python's garbage collector), and the run would go on.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Interrupt":
        # Only the main thread may set handlers, and someone else's handler is left alone.
        self.ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self.ours:
            signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self.requested:
            raise KeyboardInterrupt

    def _request(self, number: int, frame: object) -> None:
        self.check()
        self.requested = True


def check_backend(requested: str | None) -> None:
    """Refuse a backend that is not the running one, or that cannot train.

    Raises:
        InputError: as said.
    """
    running = keras.backend.backend()
    if requested is not None and requested != running:
        raise InputError(
            f"backend={requested!r}, but Keras already runs on {running!r}, which cannot change "
            f"after the import; start Python with KERAS_BACKEND={requested}."
        )
    if running not in ("tensorflow", "jax", "torch"):
        raise InputError(
            f"the {running} backend cannot train; choose --backend tensorflow, jax or torch."
        )


@contextmanager
def deterministic() -> Iterator[None]:
    """Ask the backend for operations that give the same bits each time, and for float32.

    The session's own dtype policy is back afterwards.
    """
    policy = keras.config.dtype_policy()
    try:
        with _deterministic_operations():
            yield
    finally:
        keras.config.set_dtype_policy(policy)


@contextmanager
def _deterministic_operations() -> Iterator[None]:
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.experimental.enable_op_determinism()  # TensorFlow has no way back
        yield
    elif keras.backend.backend() == "torch":
        import torch

        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
    else:
        yield  # JAX on a CPU always does


class Models:
    """The models of a comparison, each compiled once: seeds differ in the weights alone.

    Compiling takes longer than many a run. Test: a run gives the same bits in a fresh process.
    """

    def __init__(self, model: str, image_shape: tuple[int, int]) -> None:
        keras.backend.clear_session()
        keras.config.set_dtype_policy("float32")
        self.model, self.image_shape = model, image_shape
        self.compiled: dict[tuple[Norm, int], keras.Model] = {}

    def fresh(self, run: Run) -> keras.Model:
        """The model as it is right after its construction under the run's seed."""
        new = models.build(self.model, run.norm, self.image_shape, run.seed)
        new.optimizer.build(new.trainable_variables)
        model = self.compiled.setdefault((run.norm, run.batch_size), new)
        if model is not new:
            old_variables = [*model.variables, *model.optimizer.variables]
            new_variables = [*new.variables, *new.optimizer.variables]
            for variable, initial in zip(old_variables, new_variables, strict=True):
                variable.assign(initial)
        return model


def train(
    run: Run,
    settings: Settings,
    data: Data,
    compiled: Models,
    watcher: Watcher,
    interrupt: Interrupt,
) -> Record:
    """Train the model with Keras' `fit` and evaluate it after each epoch.

    Every epoch the images are shuffled anew, by the seed and the epoch alone, so all
    normalizations see the same batches in the same order. The last batch of an epoch holds the
    images that are left, as in any Keras `fit`.

    Returns:
        What the run file holds, as JSON values; see docs/compare.md.
    """
    began = time.perf_counter()
    model = compiled.fresh(run)
    points = max(1, CURVE_POINTS // settings.epochs)
    meter = _Meter(watcher, interrupt, len(data.x_train), run.batch_size, points)
    epochs = []
    for epoch in range(settings.epochs):
        order = np.random.default_rng([run.seed, epoch]).permutation(len(data.x_train))
        # One call an epoch, because fit's own shuffle differs from backend to backend.
        history = model.fit(
            data.x_train[order],
            data.y_train[order],
            batch_size=run.batch_size,
            initial_epoch=epoch,
            epochs=epoch + 1,
            shuffle=False,
            verbose=0,
            callbacks=[meter],
        ).history
        test_loss, test_accuracy = model.evaluate(
            data.x_test, data.y_test, batch_size=min(TEST_BATCH, len(data.x_test)), verbose=0
        )
        epochs.append(
            {
                "epoch": epoch + 1,
                "train_loss": float(history["loss"][-1]),
                "train_accuracy": float(history["accuracy"][-1]),
                "test_loss": float(test_loss),
                "test_accuracy": float(test_accuracy),
            }
        )
    return {
        "norm": run.norm.label,
        "batch_size": run.batch_size,
        "seed": run.seed,
        **{key: value for key, value in epochs[-1].items() if key != "epoch"},
        "step_ms": 1e3 * statistics.median(meter.times) if meter.times else None,
        "steps": meter.steps * settings.epochs,
        "steps_timed": len(meter.times),
        "parameters": model.count_params(),
        "seconds": time.perf_counter() - began,
        "epochs": epochs,
        "curve": meter.curve,
    }


class _Meter(keras.callbacks.Callback):
    """Times each step and keeps the training curve.

    A step lasts from Keras' start of it until its loss is known, so nothing of it is still under
    way on a backend that computes asynchronously.
    """

    def __init__(
        self, watcher: Watcher, interrupt: Interrupt, images: int, batch_size: int, points: int
    ) -> None:
        super().__init__()
        self.watcher, self.interrupt = watcher, interrupt
        self.images, self.batch_size, self.points = images, batch_size, points
        self.steps = -(-images // batch_size)
        self.times: list[float] = []
        self.curve: list[dict[str, float]] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch
        self.since = (0, 0.0, 0.0)  # images of this epoch in the curve, with their sums

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        loss = float(logs["loss"])
        took = time.perf_counter() - self.began
        # The first step of a later epoch starts a new call of fit; a smaller last batch compiles.
        whole = (batch + 1) * self.batch_size <= self.images
        if whole and batch >= (WARM_UP if self.epoch == 0 else 1):
            self.times.append(took)
        accuracy = float(logs["accuracy"])
        done = batch + 1
        # So many points an epoch, evenly spaced as far as whole steps allow, the last at its end.
        if done * self.points // self.steps > batch * self.points // self.steps:
            self._add_point(done, loss, accuracy)
        self.watcher.step(self.epoch, batch, self.steps, loss, accuracy)
        self.interrupt.check()

    def _add_point(self, done: int, loss: float, accuracy: float) -> None:
        """Keras' logs are means since the epoch began; the curve has the means in between."""
        seen = min(done * self.batch_size, self.images)
        before, losses, accuracies = self.since
        self.since = (seen, loss * seen, accuracy * seen)
        self.curve.append(
            {
                "step": self.epoch * self.steps + done,
                "loss": (loss * seen - losses) / (seen - before),
                "accuracy": (accuracy * seen - accuracies) / (seen - before),
            }
        )
