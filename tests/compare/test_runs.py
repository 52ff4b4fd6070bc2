import signal

import keras
import numpy as np
import pytest
from tiny import arrays

from truenorm.core.errors import InputError
from truenorm.tools.compare import runs
from truenorm.tools.compare.data import Data
from truenorm.tools.compare.progress import Progress
from truenorm.tools.compare.settings import DEFAULTS, MODELS, read

DATA = Data(
    *(a.astype("float32") / 255 if a.ndim == 3 else a.astype("int32") for a in arrays().values()),
    digest="",
)


def settings(**changed):
    return read(**{**DEFAULTS, "norms": "layer", "batch_sizes": 10, "epochs": 2, **changed})


def train(compiled, chosen, seed, watcher=None):
    run = runs.Run(chosen.norms[0], chosen.batch_sizes[0], seed)
    with runs.deterministic():
        record = runs.train(run, chosen, DATA, compiled, watcher or Progress(), runs.Interrupt())
    return record, [keras.ops.convert_to_numpy(w) for w in compiled.compiled[run.norm, 10].weights]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_seed_gives_the_same_bits_again_also_in_a_model_that_trained_before(model):
    chosen = settings(model=model)
    used = runs.Models(model, DATA.image_shape)
    first, first_weights = train(used, chosen, seed=1)
    other, other_weights = train(used, chosen, seed=2)
    again, again_weights = train(used, chosen, seed=1)
    fresh, fresh_weights = train(runs.Models(model, DATA.image_shape), chosen, seed=1)
    for repeated, weights in ((again, again_weights), (fresh, fresh_weights)):
        assert repeated["epochs"] == first["epochs"]
        assert repeated["curve"] == first["curve"]
        for one, two in zip(first_weights, weights, strict=True):
            np.testing.assert_array_equal(one, two)
    assert other["epochs"] != first["epochs"]
    assert any((one != two).any() for one, two in zip(first_weights, other_weights, strict=True))


class Spy(Progress):
    def __init__(self):
        self.steps = []

    def step(self, epoch, step, steps, loss, accuracy):
        self.steps.append((epoch, step, steps, loss, accuracy))


def test_a_record_is_what_fit_did(monkeypatch):
    fed = []
    original = keras.Model.fit

    def fit(self, x, y, **arguments):
        fed.append((x, y))
        return original(self, x, y, **arguments)

    monkeypatch.setattr(keras.Sequential, "fit", fit)
    spy = Spy()
    chosen = settings(epochs=3)
    record, _ = train(runs.Models("tutorial", DATA.image_shape), chosen, 5, spy)
    # 48 images make 4 batches of 10 and one of 8: every epoch has them all, in another order.
    assert [len(x) for x, _ in fed] == [48, 48, 48]
    assert len({x.tobytes() for x, _ in fed}) == 3
    images = {
        image.tobytes(): label for image, label in zip(DATA.x_train, DATA.y_train, strict=True)
    }
    for x, y in fed:
        assert [images[image.tobytes()] for image in x] == list(y)
        assert len({image.tobytes() for image in x}) == 48
    assert [(e, s, n) for e, s, n, *_ in spy.steps] == [
        (e, s, 5) for e in range(3) for s in range(5)
    ]
    assert record["steps"] == 15
    # Three steps of the first epoch, the first of each later one and the last are not timed.
    assert record["steps_timed"] == 1 + 3 + 3
    assert record["step_ms"] > 0
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2, 3]
    assert record["test_accuracy"] == record["epochs"][-1]["test_accuracy"]
    assert record["train_loss"] == pytest.approx(spy.steps[-1][3])
    assert [point["step"] for point in record["curve"]] == list(range(1, 16))
    # The curve's points are means of single steps here; together they are Keras' running mean.
    epoch = [point["loss"] for point in record["curve"][10:]]
    assert np.average(epoch, weights=[10, 10, 10, 10, 8]) == pytest.approx(
        record["train_loss"], rel=1e-5
    )
    assert record["parameters"] == 100 + 10 + 10 + 4 * 3 * 10 * 128 + 128 + 1290


def test_a_run_too_short_to_time_has_no_time():
    chosen = settings(epochs=1, batch_sizes=20)
    run = runs.Run(chosen.norms[0], 20, 0)
    compiled = runs.Models("tutorial", DATA.image_shape)
    record = runs.train(run, chosen, DATA, compiled, Progress(), runs.Interrupt())
    assert record["step_ms"] is None


def test_ctrl_c_stops_at_the_end_of_a_step():
    class Presses(Spy):
        def step(self, *arguments):
            super().step(*arguments)
            if len(self.steps) == 2:
                signal.raise_signal(signal.SIGINT)

    chosen, spy = settings(), Presses()
    compiled = runs.Models("tutorial", DATA.image_shape)
    with pytest.raises(KeyboardInterrupt), runs.Interrupt() as interrupt:
        runs.train(runs.Run(chosen.norms[0], 10, 0), chosen, DATA, compiled, spy, interrupt)
    assert len(spy.steps) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with runs.Interrupt():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):  # a second one does not wait
            signal.raise_signal(signal.SIGINT)


def test_the_dtype_policy_of_the_session_is_back_afterwards():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        with runs.deterministic():
            model = runs.Models("tutorial", (6, 5))
            run = runs.Run(settings().norms[0], 10, 0)
            assert model.fresh(run).layers[1].compute_dtype == "float32"
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("backend", ["numpy", "openvino"])
def test_backends_that_cannot_train(backend, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    with pytest.raises(InputError, match=f"the {backend} backend cannot train; choose --backend"):
        runs.check_backend(None)
