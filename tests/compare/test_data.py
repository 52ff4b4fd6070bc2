"""Every input that cannot be used ends the command with one sentence and exit code 2."""

import io
import pathlib
import zipfile

import keras
import numpy as np
import pytest
from tiny import arrays

from truenorm.cli.commands import main
from truenorm.core.errors import InputError
from truenorm.tools.compare import data
from truenorm.tools.compare.settings import DEFAULTS, read


def load(**changed):
    return data.load(read(**{**DEFAULTS, **changed}))


def test_digits_are_split_by_class_and_scaled():
    digits = load()
    assert digits.x_train.shape == (1437, 8, 8)
    assert digits.x_test.shape == (360, 8, 8)
    assert digits.x_train.dtype == np.float32
    assert digits.x_train.min() == 0
    assert digits.x_train.max() == 1
    counts = np.bincount(digits.y_test)
    assert counts.min() >= 34
    assert counts.max() <= 37
    assert load().digest == digits.digest


def test_uint8_is_scaled_and_floats_are_taken_as_they_are(tmp_path, npz):
    np.testing.assert_allclose(load(data=npz).x_train * 255, arrays()["x_train"], rtol=1e-6)
    floats = {k: v.astype("float64") if k[0] == "x" else v for k, v in arrays().items()}
    np.savez(tmp_path / "floats.npz", **floats)
    np.testing.assert_array_equal(load(data=tmp_path / "floats.npz").x_test, arrays()["x_test"])


def test_train_on_test_exchanges_the_sets(npz):
    usual, exchanged = load(data=npz), load(data=npz, train_on="test")
    np.testing.assert_array_equal(exchanged.x_train, usual.x_test)
    np.testing.assert_array_equal(exchanged.y_train, usual.y_test)
    np.testing.assert_array_equal(exchanged.x_test, usual.x_train)
    np.testing.assert_array_equal(exchanged.y_test, usual.y_train)


def test_train_size_takes_the_same_images_each_time_and_keeps_their_labels(npz):
    few, all_of_them = load(data=npz, train_size=33), load(data=npz)
    assert few.x_train.shape == (33, 6, 5)
    np.testing.assert_array_equal(few.x_train, load(data=npz, train_size=33).x_train)
    where = [np.flatnonzero((all_of_them.x_train == image).all((1, 2)))[0] for image in few.x_train]
    assert len(set(where)) == 33
    np.testing.assert_array_equal(few.y_train, all_of_them.y_train[where])


def test_the_digest_is_of_the_contents_alone(tmp_path, npz):
    (tmp_path / "moved").mkdir()
    moved = pathlib.Path(npz).rename(tmp_path / "moved" / "other.npz")
    changed = arrays()
    changed["y_test"][0] = (changed["y_test"][0] + 1) % 10
    np.savez(tmp_path / "changed.npz", **changed)
    np.savez(tmp_path / "same.npz", **arrays())
    assert load(data=moved).digest == load(data=tmp_path / "same.npz").digest
    assert load(data=moved).digest != load(data=tmp_path / "changed.npz").digest


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_no_network(name, monkeypatch):
    def fail(*args, **kwargs):
        raise Exception("URL fetch failure on https://...: Name or service not known")

    monkeypatch.setattr(getattr(keras.datasets, name), "load_data", fail)
    with pytest.raises(InputError, match=rf"Connect to the network.*pass it: --data {name}.npz"):
        load(data=name)


def test_mnist_is_taken_as_keras_gives_it(monkeypatch):
    a = arrays()
    given = (a["x_train"], a["y_train"]), (a["x_test"], a["y_test"])
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: given)
    np.testing.assert_array_equal(load(data="mnist").y_train, a["y_train"])


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.write_text, (self.path, "pickle was run")


def test_pickled_objects_are_never_opened(tmp_path):
    witness = tmp_path / "witness"
    trap = np.array([Trap(witness)], dtype=object)
    np.savez(tmp_path / "trap.npz", **{**arrays(), "y_test": trap})
    with pytest.raises(InputError, match=r"y_test in .* Python objects.*could run code"):
        load(data=tmp_path / "trap.npz")
    assert not witness.exists()


def replaced(**changed):
    return lambda path: np.savez(path, **{**arrays(), **changed})


def without(*keys):
    return lambda path: np.savez(path, **{k: v for k, v in arrays().items() if k not in keys})


def truncated(path):
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:900])


def corrupted(path):
    np.savez(path, **arrays())
    content = bytearray(path.read_bytes())
    content[300:320] = bytes(20)
    path.write_bytes(bytes(content))


def one_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


X, Y = arrays()["x_train"], arrays()["y_train"]
NAN = X.astype("float32")
NAN[3, 2, 1] = np.nan
BAD_FILES = {
    "missing": (lambda path: None, "does not exist; check the path"),
    "folder": (lambda path: path.mkdir(), "is a folder; pass a file"),
    "text": (lambda path: path.write_text("hello"), "is not a readable npz file"),
    "empty": (lambda path: path.write_text(""), "is not a readable npz file"),
    "truncated": (truncated, "is not a readable npz file"),
    "corrupted": (corrupted, "is not a readable npz file"),
    "npy": (one_array, "is not a readable npz file"),
    "keys": (without("y_train", "x_test"), "has no y_train, x_test; it has x_train, y_test"),
    "rank": (replaced(x_train=X.reshape(48, 30)), "x_train has shape (48, 30); expected (N, H, W)"),
    "colour": (replaced(x_test=np.zeros((48, 6, 5, 3), "uint8")), "average the colours"),
    "sizes": (replaced(x_test=X[:, :, :4]), "images of 6 x 5 and x_test of 6 x 4"),
    "small": (replaced(x_train=X[:, :2]), "at least 3 x 3 pixels"),
    "no images": (replaced(x_train=X[:0], y_train=Y[:0]), "x_train is empty"),
    "no test": (replaced(x_test=X[:0], y_test=Y[:0]), "x_test is empty"),
    "integers": (replaced(x_train=X.astype("int64")), "x_train has dtype int64; expected uint8"),
    "strings": (replaced(x_train=X.astype(str)), "x_train has dtype <U3; expected uint8"),
    "nan": (replaced(x_train=NAN), "x_train has 1 pixels that are NaN"),
    "huge": (replaced(x_train=X.astype("float64") * 1e300), "too large for float32"),
    "count": (replaced(y_train=Y[:-1]), "y_train has shape (47,); expected (48,)"),
    "one hot": (replaced(y_train=np.eye(10, dtype=int)[Y]), "expected (48,), one label"),
    "float labels": (
        replaced(y_test=Y.astype("float32")),
        "y_test has dtype float32; expected int",
    ),
    "high": (replaced(y_train=Y + 1), "labels from 1 to 10"),
    "negative": (replaced(y_train=Y - 1), "labels must be from 0 to 9"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(name, tmp_path, capsys):
    make, message = BAD_FILES[name]
    path = tmp_path / "bad.npz"
    make(path)
    refused(capsys, message, "--data", path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


BAD_ARGUMENTS = {
    "data": (["--data", "digit"], "unknown data 'digit'; did you mean 'digits'"),
    "norms": (["--norms", "none,gropu"], "unknown normalization 'gropu'; did you mean 'group'"),
    "groups": (["--norms", "group:groups=3"], "groups=3 does not divide the 10 channels"),
    "groups rnn": (["--norms", "group:groups=5", "--model", "rnn"], "does not divide the 64"),
    "axis": (["--norms", "layer:axis=7"], "axis=7 is out of range"),
    "axis rnn": (["--norms", "rms:axis=3", "--model", "rnn"], "axis=3 is out of range"),
    "batch axis": (["--norms", "batch:axis=0"], "batch axis"),
    "batch sizes": (["--batch-sizes", "2,99"], "the batch size 99 is more than the 48 training"),
    "with train size": (["--batch-sizes", "9", "--train-size", "8"], "more than the 8 training"),
    "train size": (["--train-size", "49"], "train_size=49 is more than the 48 images"),
    "epochs": (["--epochs", "many"], "epochs='many' must be an integer"),
    "backend": (["--backend", "theano"], "backend='theano', but Keras already runs on"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name, tmp_path, npz, capsys):
    arguments, message = BAD_ARGUMENTS[name]
    refused(capsys, message, "--data", npz, "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def refused(capsys, message, *arguments):
    assert main(["compare", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("truenorm compare: ")
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert "Traceback" not in printed.err
    assert printed.out == ""


def archive(path, member, **options):
    """An archive whose x_train is these bytes, and whose other arrays are whole."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as file:
        for name, array in arrays().items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            file.writestr(f"{name}.npy", member if name == "x_train" else buffer.getvalue())
    return path


def header(shape, descr="|u1"):
    buffer = io.BytesIO()
    content = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (header((40_000_000, 32, 32)) + bytes(1000), "said to have 40960000000 bytes, .* has 1000"),
        (header((10, 8, 8)) + bytes(639), "said to have 640 bytes, .* and has 639"),
        (header((10, 8, 8)) + bytes(641), "said to have 640 bytes, .* and has 641"),
        (header((160, 1024, 1024)) + bytes(160 << 20), "unfolds to 167772160 bytes, more than 100"),
        (header((10, 8, 8))[:60], "no array of NumPy, or is cut short in its header"),
        (b"abc", "no array of NumPy, or is cut short in its header"),
        (b"", "no array of NumPy, or is cut short in its header"),
        (header((1,), "|O") + b"........", "an array of Python objects, which is not opened"),
    ],
)
def test_arrays_are_judged_by_their_headers(member, message, tmp_path):
    path = archive(tmp_path / "d.npz", member)
    with pytest.raises(InputError, match=f"x_train in .*{message}.*To fix it, save one with"):
        load(data=path)


def test_an_encrypted_array(tmp_path):
    path = archive(tmp_path / "d.npz", header((10, 8, 8)) + bytes(640))
    data = bytearray(path.read_bytes())
    for place in (data.find(b"PK\x03\x04") + 6, data.find(b"PK\x01\x02") + 8):
        data[place] |= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"x_train in .* is encrypted"):
        load(data=path)


@pytest.mark.parametrize("name", ["x" * 300 + ".npz", "nul\0.npz"])
def test_names_that_cannot_be(name):
    with pytest.raises(InputError, match="cannot be a name here") as raised:
        load(data=name)
    assert len(str(raised.value)) < 300
