"""`truenorm bench`: what it times is the same normalization, and its arithmetic is right."""

import json
import platform
import weakref

import keras
import numpy as np
import pytest

from truenorm.cli.commands import main
from truenorm.core.errors import InputError
from truenorm.tools.allocator import SETTINGS, kept_pages, page_faults
from truenorm.tools.bench import benchmark
from truenorm.tools.bench.benchmark import bench
from truenorm.tools.bench.candidates import FUNCTION, PLAIN, TRUENORM, YARDSTICK, candidates, inputs
from truenorm.tools.bench.cases import DTYPES, LAYOUTS, SIZES, Case, choose_cases, known_norms
from truenorm.tools.bench.measure import measure
from truenorm.tools.bench.results import Results, Row

TRAINS = keras.backend.backend() in ("jax", "tensorflow", "torch")
needs_training = pytest.mark.skipif(not TRAINS, reason="this backend has no gradients")


def array(tensor):
    return keras.ops.convert_to_numpy(keras.ops.stop_gradient(tensor))


def arrays(result):
    """What a run returned: y, or y and the gradient of x, which has its shape too."""
    tensors = keras.tree.flatten(result)
    return [array(one) for one in tensors if one.shape == tensors[0].shape]


@needs_training
@pytest.mark.slow
@pytest.mark.parametrize("kind", known_norms())
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("trained", [False, True])
def test_every_candidate_computes_the_same(kind, layout, trained):
    case = Case(kind, layout, "small", "float32")
    ((x, dy),) = inputs(case, 1)
    runs = candidates(case, trained)
    assert {TRUENORM, PLAIN, YARDSTICK} < runs.keys()
    expected = arrays(runs[TRUENORM](x, dy))
    assert len(expected) == (2 if trained else 1)
    np.testing.assert_allclose(arrays(runs[YARDSTICK](x, dy))[0], array(x) * 1.01, rtol=1e-6)
    for name, run in runs.items():
        keras_fails = name.startswith("Keras") and kind in ("layer", "rms") and layout == "first"
        # torch.compile is given the function of torch.nn, and takes seconds and a compiler.
        if keras_fails or name in (YARDSTICK, "torch.compile"):
            continue
        for found, wanted in zip(arrays(run(x, dy)), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-4, err_msg=name)


def test_the_cases():
    cases = choose_cases()
    assert (
        len(cases)
        == len(set(cases))
        == len(known_norms()) * len(LAYOUTS) * len(SIZES) * len(DTYPES)
    )
    for case in cases:
        channels = case.shape[case.axis]
        assert channels % (case.groups or channels) == 0
        assert case.axis in ((1,) if case.layout == "first" else (1, 3))
        if case.size == "large" and case.dtype == "float32":
            assert case.bytes >= 16 << 20
    assert Case("group", "last", "small", "float32").shape == (32, 26, 26, 10)
    assert choose_cases("rms, group", ["last"], "small", "float32,float32") == [
        Case("group", "last", "small", "float32"),
        Case("rms", "last", "small", "float32"),
    ]


def test_each_run_gets_each_input_and_errors_are_kept():
    calls = []

    def broken(x, dy):
        raise RuntimeError("no\nsuch kernel")

    runs = {"one": lambda x, dy: calls.append(x) or x, "broken": broken}
    seconds, failed = measure(runs, [(1, 0), (2, 0), (3, 0)], rounds=4)
    assert failed == {"broken": "RuntimeError: no such kernel"}
    assert seconds.keys() == {"one"}
    assert len(seconds["one"]) == 4
    assert all(0 < one < 1 for one in seconds["one"])
    assert set(calls) == {1, 2, 3}


@pytest.mark.parametrize("cold", [False, True])
def test_results_are_held_where_caches_are_to_be_cold(cold):
    alive, most = weakref.WeakSet(), []

    class Result:
        pass

    def run(x, dy):
        result = Result()
        alive.add(result)
        most.append(len(alive))
        return result

    measure({"one": run}, [(1, 0), (2, 0), (3, 0)], rounds=3, cold=cold)
    # One for each of the three inputs and the call that is not timed, while the next is computed.
    assert max(most) == (5 if cold else 2)
    assert not alive


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this allocator is not glibc's")
def test_pages_are_kept_inside_the_block():
    import resource  # not on Windows

    def new_pages():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = b"x" * (40 << 20)
        del block
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages = (40 << 20) // resource.getpagesize()
    with kept_pages() as kept:
        assert kept
        new_pages()
        assert new_pages() < pages / 10
    assert new_pages() > pages / 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this allocator is not glibc's")
def test_page_faults_of_a_call_and_what_is_said_of_them(monkeypatch):
    def call():
        return len(b"x" * (40 << 20))

    with kept_pages():
        assert page_faults(call) < 100
    assert page_faults(call) > 5000
    case = Case("group", "last", "large", "float32")
    assert benchmark._advice(case, 50, 0) == benchmark._advice(case, None, None) == ""
    said = benchmark._advice(case, 5000, 3)
    assert "makes 5,000 page faults a call instead of 3" in said
    assert said.endswith(SETTINGS)
    # Whoever has set the allocator up is left alone.
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("it was set up again"))
    with kept_pages() as kept:
        assert kept


def row(**seconds):
    names = {"ours": TRUENORM, "function": FUNCTION, "yardstick": YARDSTICK}
    seconds = {names.get(name, name): values for name, values in seconds.items()}
    return Row(Case("group", "last", "small", "float32"), "forward", seconds, {"x": "it fails"})


def test_ratios_are_taken_in_the_same_round():
    one = row(ours=[1e-3, 2e-3, 4e-3], Keras=[2e-3, 6e-3, 16e-3])
    spread = one.milliseconds(TRUENORM)
    assert (spread.low, spread.median, spread.high) == pytest.approx((1.5, 2, 3))
    assert one.times("Keras").median == pytest.approx(3)
    assert one.gigabytes(TRUENORM) == pytest.approx(2 * 32 * 26 * 26 * 10 * 4 / 2e-3 / 1e9)


def test_functions_are_compared_with_the_function():
    one = row(ours=[4e-3] * 3, function=[1e-3] * 3, Keras=[4e-3] * 3, other=[4e-3] * 3)
    assert one.times("Keras").median == pytest.approx(1)
    assert one.times("other").median == pytest.approx(4)


def test_the_table_and_the_picture():
    one = row(ours=[1e-3] * 3, yardstick=[5e-4] * 3, Keras=[2.5e-3] * 3)
    results = Results([one], {}, "jax", 3)
    text = str(results)
    header, line = text.splitlines()[1:3]
    assert header.split() == [
        "norm", "channels", "shape", "ms", "spread", "GB/s", "a", "*", "1.01", "Keras",
    ]  # fmt: skip
    assert line.split() == ["group", "last", "32×26×26×10", "1", "±0%", "1.7", "0.50", "2.50"]
    assert "x cannot compute group, channels last, 32×26×26×10, float32: it fails" in text
    points = results.figure().axes[0].lines
    assert [one.get_xdata().tolist() for one in points[:2]] == [[2], [5]]


@needs_training
@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    backend = keras.backend.backend()
    out = tmp_path / "new" / "folder"
    command = ["bench", "--norms", "group", "--layouts", "last", "--sizes", "small"]
    command += ["--dtypes", "float32", "--rounds", "3", "--out", str(out)]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "forward+backward, float32" in shown.out
    assert "[2/2] group, channels last, 32×26×26×10, float32, forward+backward" in shown.err
    found = json.loads((out / f"bench-{backend}.json").read_text())
    assert [one["pass"] for one in found["rows"]] == ["forward", "forward+backward"]
    assert found["facts"]["backend"] == backend
    times = found["rows"][0]["candidates"]
    assert {TRUENORM, PLAIN, "Keras", YARDSTICK} <= times.keys()
    assert times[TRUENORM]["times_truenorm"]["median"] == 1
    assert (out / f"bench-{backend}.png").read_bytes().startswith(b"\x89PNG")

    assert main(command) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--norms", "group,batsch"], "'batsch'; expected a comma list of batch, layer"),
        (["--sizes", ""], "expected a comma list of large, medium, small"),
        (["--rounds", "2"], "3 or more"),
        (["--rounds", "many"], "3 or more"),
        (["--out", __file__], "is a file"),
    ],
)
@needs_training
def test_bad_input(arguments, said, capsys):
    assert main(["bench", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(TRAINS, reason="this backend trains")
def test_a_backend_without_gradients():
    with pytest.raises(InputError, match="choose jax, tensorflow or torch"):
        bench()
