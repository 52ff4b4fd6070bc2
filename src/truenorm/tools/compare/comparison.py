"""`compare`: train the same model once per normalization, batch size and seed, and report."""

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from typing import Any

import keras

from truenorm import __version__
from truenorm.tools.allocator import kept_pages
from truenorm.tools.compare import data as images
from truenorm.tools.compare import folder as folders
from truenorm.tools.compare import models, plots, report, settings
from truenorm.tools.compare.progress import Progress, choose
from truenorm.tools.compare.results import Results
from truenorm.tools.compare.runs import (
    Interrupt,
    Models,
    Record,
    Run,
    check_backend,
    deterministic,
    train,
)
from truenorm.tools.compare.settings import DEFAULTS
from truenorm.tools.figures import need_matplotlib

__all__ = ["Results", "compare"]


def compare(
    *,
    norms: str | Iterable[str] = DEFAULTS["norms"],
    model: str = DEFAULTS["model"],
    data: str | os.PathLike[str] = DEFAULTS["data"],
    train_size: str | int | None = DEFAULTS["train_size"],
    train_on: str = DEFAULTS["train_on"],
    batch_sizes: str | int | Iterable[int] = DEFAULTS["batch_sizes"],
    epochs: str | int = DEFAULTS["epochs"],
    seeds: str | int | Iterable[int] = DEFAULTS["seeds"],
    out: str | os.PathLike[str] | None = None,
    backend: str | None = None,
    progress: bool = True,
) -> Results:
    """Train a model once per normalization, batch size and seed, and compare.

    Args:
        norms: "none,batch,layer,instance,group,rms", or a list of such entries; options follow
            after colons, "group:groups=5:epsilon=1e-5". Axes are joined by +, "layer:axis=1+2+3".
        model: "tutorial" (a small convolutional network) or "rnn" (the image row by row).
        data: "digits", "mnist", "fashion_mnist", or an npz file with x_train, y_train, x_test,
            y_test: images (N, H, W), uint8 (scaled to [0, 1]) or floats (taken as they are), and
            integer labels (N,) from 0 to 9.
        train_size: train on this many images, chosen the same way in every run; None: on all.
        train_on: "train", or "test" to train on the test images and evaluate on the others.
        batch_sizes: numbers of images in a training step.
        epochs: passes over the training images.
        seeds: how many seeds, from 0 on, or a list of seeds.
        out: the folder for the report, the figures and a file for each finished run. The same
            call again picks up what is finished there. None: nothing is written.
        backend: the Keras backend that is expected to run; None takes the one that runs.
        progress: whether to show progress: live on a terminal, else a line for each run.

    Returns:
        Results: `str()` gives the table and the conclusion, `.records` a list of dicts.

    Raises:
        InputError: wrong arguments or data, an `out` that cannot be used, a missing package.
    """
    check_backend(backend)
    chosen = settings.read(
        data=os.fspath(data), model=model, norms=norms, batch_sizes=batch_sizes, epochs=epochs,
        seeds=seeds, train_size=train_size, train_on=train_on,
    )  # fmt: skip
    loaded = images.load(chosen)
    models.check(chosen, loaded.image_shape)
    if out is not None:
        need_matplotlib()
    plan, not_applicable = _plan(chosen, loaded.image_shape)
    with contextlib.ExitStack() as stack:
        folder = None
        if out is not None:
            folder = stack.enter_context(folders.hold(out, _identity(chosen, loaded)))
        shown = choose(progress, chosen, plan, set(not_applicable))
        stack.enter_context(deterministic())
        stack.enter_context(kept_pages())  # training does not wait for cleared pages
        with shown, Interrupt() as interrupt:
            records = _run(plan, chosen, loaded, folder, shown, interrupt)
        results = Results(
            chosen, records, not_applicable, _facts(loaded), loaded.image_shape,
            None if folder is None else folder.path,
        )  # fmt: skip
        if folder is not None:
            _write(results, folder)
    return results


def _plan(
    chosen: settings.Settings, image_shape: tuple[int, int]
) -> tuple[list[Run], dict[tuple[str, int], str]]:
    """The runs in their order, and the pairs that make no sense with the reasons."""
    not_applicable = {}
    for norm in chosen.norms:
        for size in chosen.batch_sizes:
            reason = models.not_applicable(norm, chosen.model, image_shape, size)
            if reason is not None:
                not_applicable[norm.label, size] = reason
    # Seeds outermost: an early look has every normalization, and a slow hour harms none alone.
    plan = [
        Run(norm, size, seed)
        for seed in chosen.seeds
        for size in chosen.batch_sizes
        for norm in chosen.norms
        if (norm.label, size) not in not_applicable
    ]
    return plan, not_applicable


def _run(
    plan: list[Run],
    chosen: settings.Settings,
    loaded: images.Data,
    folder: folders.Folder | None,
    shown: Progress,
    interrupt: Interrupt,
) -> dict[Run, Record]:
    """Pick up the finished runs, train the others, and store each as soon as it is finished."""
    records: dict[str, Record] = {}
    for run in plan:
        try:
            record = None if folder is None else folder.load_run(run)
        except ValueError as error:
            assert folder is not None
            shown.say(f"{folder.run_path(run)} is not used, {error}; this run is repeated.")
            record = None
        if record is not None:
            records[run.name] = record
            shown.finished(run, record)
    if records and folder is not None:
        shown.say(
            f"{len(records)} of {len(plan)} runs were already finished in {folder.path} "
            "and are not repeated."
        )
    compiled = Models(chosen.model, loaded.image_shape)
    for run in plan:
        if run.name not in records:
            shown.starts(run)
            records[run.name] = record = train(run, chosen, loaded, compiled, shown, interrupt)
            if folder is not None:
                folder.save_run(run, record)
            shown.finished(run, record)
            interrupt.check()
    return {run: records[run.name] for run in plan}


def _identity(chosen: settings.Settings, loaded: images.Data) -> dict[str, Any]:
    """What must be the same for runs to belong to one comparison."""
    # The data are known by their contents: a moved or renamed file is the same data.
    wanted = {key: value for key, value in chosen.as_dict().items() if key != "data"}
    return {"settings": wanted, "data_sha256": loaded.digest, "versions": _versions()}


def _versions() -> dict[str, str]:
    backend = keras.backend.backend()
    return {
        "backend": backend,
        "truenorm": __version__,
        "keras": keras.__version__,
        backend: _version(backend),
    }


def _version(package: str) -> str:
    for name in (package, f"{package}-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "not installed as a package"


def _facts(loaded: images.Data) -> dict[str, str]:
    """The data, versions and machine, for people to read."""
    height, width = loaded.image_shape
    versions = {key: value for key, value in _versions().items() if key != "backend"}
    packages = {**versions, "numpy": _version("numpy"), "Python": platform.python_version()}
    return {
        "images": (
            f"{len(loaded.x_train)} to train on, {len(loaded.x_test)} to test on, of {height} x "
            f"{width} pixels; one test image is {100 / len(loaded.x_test):.2g} % accuracy"
        ),
        "data SHA-256": loaded.digest,
        "backend": keras.backend.backend(),
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }


def _write(results: Results, folder: folders.Folder) -> None:
    figures = plots.plots(results)
    for name, (_, png) in figures.items():
        folder.write(f"plots/{name}", png)
    folder.write_json("results.json", results.as_dict())
    folder.write("report.html", report.page(results, figures))
