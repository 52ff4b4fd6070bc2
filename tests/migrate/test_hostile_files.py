"""Broken and malicious files: one clear error, nothing run, nothing written."""

import copy
import json
import random
import zipfile

import keras
import pytest

import truenorm
from truenorm.core.errors import InputError
from truenorm.tools import migrate
from truenorm.tools.migrate import checkpoint, files
from truenorm.tools.migrate.configs import Conversion
from truenorm.tools.migrate.hdf5 import Tree

h5py = pytest.importorskip("h5py")


def refused(path, match):
    with pytest.raises(InputError, match=match):
        truenorm.load_model(path)


@pytest.mark.parametrize("form", ["a.h5", "a.keras", "a.txt"])
def test_missing_empty_and_other_files(form, tmp_path):
    path = tmp_path / form
    refused(path, "does not exist")
    path.write_bytes(b"")
    refused(path, "is empty" if form != "a.txt" else "none of the files that Keras 2 saved")
    path.write_bytes(b"hello, world" * 100)
    refused(path, "is not an HDF5 file|is not a zip archive|none of the files that Keras 2 saved")
    refused(tmp_path, "a folder without saved_model.pb or checkpoint")


@pytest.mark.parametrize("form", ["model.h5", "model.keras"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_truncated_files(form, part, addons, tmp_path):
    data = (addons("channels_first") / form).read_bytes()
    path = tmp_path / form
    path.write_bytes(data[: int(len(data) * part)])
    refused(path, "is broken|broken zip archive")


def test_a_truncated_checkpoint(addons, tmp_path):
    for one in (addons("branches") / "checkpoint").iterdir():
        data = one.read_bytes()
        (tmp_path / one.name).write_bytes(
            data if one.name == "checkpoint" else data[: len(data) // 2]
        )
    with pytest.raises(InputError, match="is not a checkpoint, or broken"):
        files.read(tmp_path)
    (tmp_path / "weights.index").unlink()
    with pytest.raises(InputError, match="does not exist"):
        files.read(tmp_path)


def repacked(source, path, replace):
    """A .keras file with some members replaced or added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name not in replace:
                new.writestr(name, old.read(name))
        for name, data in replace.items():
            if data is not None:
                new.writestr(name, data)


def test_zip_archives_that_bite(addons, tmp_path):
    source, path = addons("channels_first") / "model.keras", tmp_path / "a.keras"
    for name in ("../out.txt", "/etc/out.txt", "a/../../out.txt", "..\\out.txt", "C:/out.txt"):
        repacked(source, path, {name: b"x"})
        refused(path, "leads out of its folder")
    repacked(source, path, {"assets/zeros": bytes(200 << 20)})
    refused(path, "may be a decompression bomb")
    repacked(source, path, {"model.weights.h5": None})
    refused(path, "has no model.weights.h5")
    repacked(source, path, {"config.json": "[" * 100_000})
    refused(path, "is not JSON")
    repacked(source, path, {"config.json": "[]"})
    refused(path, "is not a JSON object")
    assert not list(tmp_path.parent.glob("**/out.txt"))


def small_h5(path, **datasets):
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["a"]
        for name, options in datasets.items():
            file.create_dataset(name, **options)


def test_hdf5_files_that_bite(tmp_path):
    path, secret = tmp_path / "a.h5", tmp_path / "secret.h5"
    small_h5(secret, numbers={"data": [1.0, 2.0]})

    small_h5(path, bomb={"shape": (1 << 34,), "chunks": (1 << 20,), "compression": "gzip"})
    refused(path, "declares far more numbers, up to 'bomb'")
    small_h5(path)
    with h5py.File(path, "r+") as file:
        file["link"] = h5py.ExternalLink(str(secret), "/numbers")
    refused(path, "has a ExternalLink at 'link'")
    small_h5(path, a={"data": [1.0]})
    with h5py.File(path, "r+") as file:
        file["link"] = h5py.SoftLink("/a")
    refused(path, "has a SoftLink at 'link'")
    small_h5(path)
    with h5py.File(path, "r+") as file:
        loop = file.create_group("loop")
        loop["again"] = loop
    refused(path, "has the same object at")
    small_h5(path, raw={"shape": (4,), "dtype": "f4", "external": [(str(secret), 0, 16)]})
    refused(path, "keeps the data of 'raw' in another file")
    layout = h5py.VirtualLayout((2,), "f8")
    layout[:] = h5py.VirtualSource(str(secret), "numbers", (2,))
    small_h5(path)
    with h5py.File(path, "r+") as file:
        file.create_virtual_dataset("virtual", layout)
    refused(path, "keeps the data of 'virtual' in another file")


def test_code_in_a_config_does_not_run(addons, tmp_path):
    """In a Lambda, as an activation, or as any class that Keras or Python could import."""
    marshaled = {
        "class_name": "__lambda__",
        "config": {"code": "4wE=", "defaults": None, "closure": None},
    }
    imported = {
        "module": "os",
        "class_name": "function",
        "config": "system",
        "registered_name": "system",
    }
    fetch = {"module": "keras.utils", "class_name": "function", "config": "get_file"}
    for value in (marshaled, imported, fetch, "get_file"):
        dense = {"name": "d", "units": 3, "activation": value}
        config = {"name": "s", "layers": [{"class_name": "Dense", "config": dense}]}
        with pytest.raises(
            InputError, match=r"Python code in d/activation|counterpart to d/activation"
        ):
            Conversion(None, True).model({"class_name": "Sequential", "config": config})
    for name in ("os.system", "get_file", "Layer>x", "__lambda__", "function", "backend"):
        layers = [{"class_name": name, "config": {"name": "d"}, "module": "os"}]
        model = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
        with pytest.raises(InputError, match="have no counterpart to d"):
            Conversion(None, True).model(model)


def test_sizes_that_the_weights_do_not_bear_out(addons, tmp_path):
    """A config may not ask for more memory than the file has numbers for."""
    source, path = addons("channels_first") / "model.keras", tmp_path / "a.keras"
    with zipfile.ZipFile(source) as archive:
        config = archive.read("config.json").decode()
    repacked(source, path, {"config.json": config.replace('"units": 3', '"units": 3000000000')})
    refused(path, r"dense.units=3000000000, .* no array in the file is that long")


# The readers are the same on every backend: one, which is quick, gets most of the files.
MANY = keras.backend.backend() == "torch"
SEEDS = 60 if MANY else 12


def mutated(data, chance):
    """A file with some bytes changed, a part cut out, doubled or moved."""
    data = bytearray(data)
    for _ in range(chance.choice([1, 3, 30])):
        at = chance.randrange(len(data))
        kind = chance.random()
        if kind < 0.6:
            data[at] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
        elif kind < 0.8:
            del data[at : at + chance.choice([1, 8, 200])]
        else:
            data[at:at] = data[at : at + chance.choice([1, 8, 200])]
    return bytes(data)


def read_or_refuse(path):
    try:
        return files.read(path)
    except InputError:
        return None


def test_mutated_hdf5_files_are_read_or_refused(addons, tmp_path):
    data = (addons("channels_first") / "model.h5").read_bytes()
    path = tmp_path / "model.h5"
    read = 0
    for seed in range(SEEDS // 3):
        path.write_bytes(mutated(data, random.Random(seed)))
        read += read_or_refuse(path) is not None
    assert [one.name for one in tmp_path.iterdir()] == ["model.h5"]
    assert 0 < read < SEEDS // 3 or not MANY


def test_mutated_zip_archives_are_refused_or_as_they_were(addons, tmp_path):
    source, path = addons("channels_first") / "model.keras", tmp_path / "model.keras"
    data, config = source.read_bytes(), files.read(source).config
    for seed in range(SEEDS // 2):
        path.write_bytes(mutated(data, random.Random(seed)))
        saved = read_or_refuse(path)
        assert saved is None or saved.config == config  # a checksum guards each member
    assert [one.name for one in tmp_path.iterdir()] == ["model.keras"]


def test_mutated_checkpoints_are_read_or_refused(addons, tmp_path):
    source = addons("branches") / "checkpoint"
    index = (source / "weights.index").read_bytes()
    data = (source / "weights.data-00000-of-00001").read_bytes()
    read = 0
    for seed in range(SEEDS * 10):
        chance = random.Random(seed)
        (tmp_path / "w.index").write_bytes(mutated(index, chance) if seed % 2 else index)
        (tmp_path / "w.data-00000-of-00001").write_bytes(
            data if seed % 2 else mutated(data, chance)
        )
        read += read_or_refuse(tmp_path / "w") is not None
    assert len(list(tmp_path.iterdir())) == 2
    assert 0 < read < SEEDS * 10 or not MANY


def test_mutated_metadata_is_read_or_refused(addons, tmp_path):
    data = (addons("nested") / "saved_model" / "keras_metadata.pb").read_bytes()
    for seed in range(SEEDS * 3):
        (tmp_path / "m.pb").write_bytes(mutated(data, random.Random(seed)))
        try:
            files.parse(checkpoint.model_metadata(tmp_path / "m.pb"), "it")
        except InputError:
            continue


def nodes(value, found=None):
    """Every dictionary and list inside a config."""
    found = [] if found is None else found
    if isinstance(value, (dict, list)):
        found.append(value)
        for one in value.values() if isinstance(value, dict) else value:
            nodes(one, found)
    return found


STRANGE = [
    None,
    True,
    -1,
    0,
    10**12,
    1e300,
    "",
    "x",
    "../x",
    [],
    [None],
    {},
    {"class_name": "Dense"},
    [[[[]]]],
]


def twisted(config, chance):
    """A config with a value of another kind at one to three places."""
    config = json.loads(json.dumps(config))
    for _ in range(chance.choice([1, 2, 3])):
        place = chance.choice(nodes(config))
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if keys:
            place[chance.choice(keys)] = copy.deepcopy(chance.choice(STRANGE))
    return config


@pytest.mark.parametrize("name", ["branches", "nested", "keras_layers", "wrappers"])
def test_twisted_configs_become_a_model_or_an_error(name, addons, monkeypatch):
    saved = files.read(addons(name) / "model.keras")
    whole = saved.config
    monkeypatch.setattr(files, "read", lambda path: saved)
    for seed in range(SEEDS // 4):
        saved.config = twisted(whole, random.Random(seed))
        training = saved.config.get("compile_config")
        saved.training = training if isinstance(training, dict) else None
        try:
            model, _, _ = truenorm.tools.migrate.load("it", None, True, True)
        except InputError:
            continue
        assert isinstance(model, keras.Model)


def test_the_reader_in_the_other_process_says_what_it_cannot_survive(monkeypatch, tmp_path):
    from truenorm.tools.migrate import hdf5

    program = tmp_path / "crash.py"
    program.write_text("import os; os.kill(os.getpid(), 11)")
    monkeypatch.setattr(hdf5, "PROGRAM", program)
    with pytest.raises(InputError, match="the HDF5 library did not survive reading it"):
        hdf5.read_tree(hdf5.SIGNATURE + b"x", "a.h5")


DENSE = {"name": "d", "units": 4, "dtype": "float32"}


@pytest.mark.parametrize(
    ("kind", "config", "shape"),
    [
        ("EinsumDense", {"equation": "ab,bc->ac", "output_shape": [10**10]}, [None, 4]),
        (
            "Conv2D",
            {"filters": 4, "kernel_size": [10**6, 10**6], "padding": "same"},
            [None, 8, 8, 4],
        ),
        ("Dense", {**DENSE, "lora_rank": 10**10}, [None, 4]),
        ("Dense", DENSE, [None, 10**10]),
        ("BatchNormalization", {}, [None, 10**11]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sizes_are_refused_before_memory_is_taken(kind, config, shape):
    layer = {"module": "keras.layers", "class_name": kind, "config": {"name": "l", **config}}
    entry = {"batch_shape": shape, "dtype": "float32", "name": "i"}
    entry = {"module": "keras.layers", "class_name": "InputLayer", "config": entry}
    config = {"name": "s", "layers": [entry, layer], "build_input_shape": shape}
    config = {"module": "keras", "class_name": "Sequential", "config": config}
    saved = files.Saved("m.h5", "h5", None, None, Tree({}, {}))
    with pytest.raises(InputError, match=r"asks for .* numbers, and the file holds 0: it"):
        migrate.check_memory(config, saved, True)
    # Nothing is left that the next scope would make room for.
    with keras.StatelessScope():
        pass


def test_a_broken_file_of_keras_3_is_one_sentence(tmp_path):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("metadata.json", '{"keras_version": "3.15.1", "date_saved": ""}')
        config = '{"module": null, "class_name": "No%s", "config": {}, "registered_name": "x"}'
        file.writestr("config.json", config % ("o" * 10_000))
        file.writestr("model.weights.h5", b"nothing")
    with pytest.raises(InputError) as raised:
        truenorm.load_model(path)
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < 600
    assert "\n" not in str(raised.value)
