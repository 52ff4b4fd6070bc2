"""Which implementation runs, who says so, and what is told about it."""

import importlib.metadata
import os
import pickle
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
from keras import ops

import truenorm
from truenorm import native, triton
from truenorm.core.call import Call
from truenorm.core.kinds import KINDS
from truenorm.core.plain import Plain
from truenorm.native import library

REASON = native.unavailable(keras.backend.backend())
X = np.arange(24, dtype="float32").reshape(2, 3, 4) ** 2


class FakeNative:
    """Kernels that say which calls they cannot compute, and write down those they compute."""

    def __init__(self):
        self.reason = None
        self.asked = []
        self.computed = []

    name = "native"

    def normalize(self, call, x, gamma, beta, mask, epsilon):
        self.asked.append((x, gamma, beta, call, mask))
        if self.reason is None:
            self.computed.append(self.asked[-1])
            return x * 0 + 7
        return self.reason


@pytest.fixture
def kernels(monkeypatch):
    fake = FakeNative()
    use(monkeypatch, fake)
    return fake


def use(monkeypatch, engine):
    """Put an engine in the place of the native one."""
    front = truenorm.ops.FRONT
    monkeypatch.setattr(truenorm.ops, "FRONT", front._replace(engines=(engine, front.engines[-1])))


@pytest.fixture
def plain_calls(monkeypatch):
    """The calls that the plain math computes."""
    calls, original = [], Plain.normalize

    def normalize(*arguments):
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(Plain, "normalize", normalize)
    return calls


def normalized(**options):
    return ops.convert_to_numpy(truenorm.ops.layer_normalization(X, **options))


def test_none_takes_native_kernels_that_support_the_call(kernels, plain_calls):
    assert np.all(normalized() == 7)
    assert (len(kernels.computed), len(plain_calls)) == (1, 0)


def test_none_falls_back_to_plain_where_the_kernels_have_a_reason(kernels, plain_calls):
    kernels.reason = "it is Sunday"
    assert np.all(normalized() < 7)
    assert len(kernels.asked) == 1
    assert (len(kernels.computed), len(plain_calls)) == (0, 1)


def test_native_is_native_or_an_error_with_the_reason(kernels, plain_calls):
    assert np.all(normalized(implementation="native") == 7)
    kernels.reason = "it is Sunday"
    with pytest.raises(NotImplementedError, match=r"cannot compute this call: it is Sunday\."):
        normalized(implementation="native")
    assert (len(kernels.computed), len(plain_calls)) == (1, 0)


def test_plain_is_plain_and_asks_nobody(kernels, plain_calls):
    normalized(implementation="plain")
    assert (kernels.asked, kernels.computed, len(plain_calls)) == ([], [], 1)


def test_a_build_without_kernels_uses_plain(plain_calls, monkeypatch):
    use(monkeypatch, native.Missing("there was no compiler"))
    normalized()
    assert len(plain_calls) == 1
    with pytest.raises(NotImplementedError, match="this call: there was no compiler"):
        normalized(implementation="native")


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_native_computes_the_default_and_leaves_masks_to_plain(plain_calls):
    expected = normalized(implementation="plain")
    del plain_calls[:]
    np.testing.assert_allclose(normalized(), expected, rtol=1e-5, atol=1e-5)
    assert plain_calls == []
    mask = np.ones((2,), bool)
    normalized(mask=mask)
    assert len(plain_calls) == 1
    with pytest.raises(NotImplementedError, match="mask"):
        normalized(mask=mask, implementation="native")


def test_a_library_that_does_not_load_is_told(monkeypatch, tmp_path):
    broken = tmp_path / "libtruenorm.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(library, "path", lambda name: broken)
    monkeypatch.setattr(library, "load", library.load.__wrapped__)
    backend = keras.backend.backend()
    if backend in native.FRAMEWORKS:
        with pytest.warns(RuntimeWarning, match=r"plain path: .* does not load: .*libtruenorm"):
            assert native._find(backend)[0] is None
    else:
        assert "no native kernels for" in native._find(backend)[1]


def test_everything_arrives_unchanged(kernels):
    gamma, beta = np.float32([1, 2, 3, 4]), np.float32([5, 6, 7, 8])
    mask = np.array([[True, False, True], [False, True, True]])
    truenorm.ops.group_normalization(X, gamma, beta, groups=2, epsilon=0.25, mask=mask)
    truenorm.ops.rms_normalization(X, axis=[2, 1], epsilon=0.5)
    assert kernels.asked == kernels.computed
    first, second = kernels.computed
    for one, other in zip([*first[:3], first[4]], [X, gamma, beta, mask], strict=True):
        assert keras.ops.is_tensor(one)
        assert keras.backend.standardize_dtype(one.dtype) == other.dtype
        np.testing.assert_array_equal(ops.convert_to_numpy(one), other)
    assert first[3] == Call(KINDS["group"].view(X.shape, axis=2, groups=2), True, 0.25)
    assert second[1:] == (None, None, Call(KINDS["rms"].view(X.shape, [1, 2]), False, 0.5), None)


def test_a_layer_passes_its_implementation_its_mask_and_its_weights(kernels, plain_calls):
    mask = np.array([True, False])
    layer = truenorm.GroupNormalization(groups=2)
    assert np.all(ops.convert_to_numpy(layer(X, mask=mask)) == 7)
    _, gamma, beta, call, arrived = kernels.computed[0]
    np.testing.assert_array_equal(ops.convert_to_numpy(arrived), mask)
    np.testing.assert_array_equal(ops.convert_to_numpy(gamma), np.ones(4))
    np.testing.assert_array_equal(ops.convert_to_numpy(beta), np.zeros(4))
    assert (call.view.groups, call.epsilon, call.centered) == (2, 1e-3, True)
    truenorm.GroupNormalization(groups=2, implementation="plain")(X)
    assert (len(kernels.computed), len(plain_calls)) == (1, 1)
    kernels.reason = "it is Sunday"
    with pytest.raises(NotImplementedError, match="it is Sunday"):
        truenorm.RMSNormalization(implementation="native")(X)


def test_building_a_model_and_output_shapes_compute_nothing(kernels, plain_calls):
    inputs = keras.Input((3, 4))
    truenorm.ops.layer_normalization(inputs)
    truenorm.LayerNormalization().compute_output_shape((2, 3, 4))
    assert (kernels.asked, kernels.computed, plain_calls) == ([], [], [])


def test_use_implementation_nests_and_ends(kernels, plain_calls):
    def ran():
        counts = len(kernels.computed), len(plain_calls)
        normalized()
        return "native" if len(kernels.computed) > counts[0] else "plain"

    assert ran() == "native"
    with truenorm.use_implementation("plain"):
        assert ran() == "plain"
        with truenorm.use_implementation("native"):
            assert ran() == "native"
            with truenorm.use_implementation(None):
                assert ran() == "native"
        assert ran() == "plain"
        with truenorm.use_implementation(None):
            assert ran() == "native"
        assert ran() == "plain"
    assert ran() == "native"


def test_an_explicit_argument_wins_over_use_implementation(kernels, plain_calls):
    with truenorm.use_implementation("plain"):
        normalized(implementation="native")
    assert (len(kernels.computed), len(plain_calls)) == (1, 0)
    with truenorm.use_implementation("native"):
        normalized(implementation="plain")
        truenorm.LayerNormalization(implementation="plain")(X)
    assert (len(kernels.computed), len(plain_calls)) == (1, 2)


def test_use_implementation_native_raises_with_the_reason(kernels):
    kernels.reason = "it is Sunday"
    with (
        truenorm.use_implementation("native"),
        pytest.raises(NotImplementedError, match="it is Sunday"),
    ):
        normalized()


def test_use_implementation_ends_with_an_exception(kernels, plain_calls):
    with pytest.raises(KeyError), truenorm.use_implementation("plain"):
        raise KeyError
    normalized()
    assert (len(kernels.computed), len(plain_calls)) == (1, 0)


def test_use_implementation_is_of_one_thread(kernels, plain_calls):
    entered, finished = threading.Event(), threading.Event()

    def other():
        with truenorm.use_implementation("plain"):
            entered.set()
            finished.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(30)
    normalized()
    finished.set()
    thread.join()
    assert (len(kernels.computed), len(plain_calls)) == (1, 0)


def test_use_implementation_refuses_unknown_names():
    with (
        pytest.raises(
            ValueError, match=r"implementation='fast' is unknown; .*'native', 'triton', 'plain'"
        ),
        truenorm.use_implementation("fast"),
    ):
        pass


def test_show_config(capsys, monkeypatch):
    assert truenorm.show_config() is None
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed["truenorm"] == importlib.metadata.version("truenorm") == truenorm.__version__
    assert printed["keras"] == keras.__version__
    assert printed["numpy"] == np.__version__
    assert printed["backend"] == keras.backend.backend()
    assert printed["plain"].startswith("usable")
    if REASON is None:
        assert printed["native"] == f"usable ({library.isa()}, {library.threads()} threads)"
    else:
        assert printed["native"] == REASON
    backend = keras.backend.backend()
    assert printed["triton"] == f"{backend}: {triton.unavailable(backend)}"  # no GPU is here
    for name in ("tensorflow", "jax", "torch"):
        assert printed[name][0].isdigit() or printed[name] == "not installed"
    monkeypatch.setattr(native, "unavailable", lambda framework: "there was no compiler")
    truenorm.show_config()
    assert "native      there was no compiler" in capsys.readouterr().out.splitlines()


def test_a_call_has_the_hash_of_its_own_process():
    call = Call(KINDS["group"].view(X.shape, axis=2, groups=2), True, 0.25)
    assert hash(call) == hash(Call(KINDS["group"].view(X.shape, axis=2, groups=2), True, 0.25))
    program = (
        "import pickle, sys\n"
        "call = pickle.load(sys.stdin.buffer)\n"
        "assert hash(call) == hash(type(call)(call.view, call.centered, call.epsilon))\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(call), env=environment, check=True
    )
