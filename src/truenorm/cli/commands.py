"""The command line: `truenorm compare | explain | bench | migrate | migrate-code | config`.

Each command is a parser beside the function that runs it. The plotting, progress and data
libraries that a command needs, and Keras, are imported when it runs, never at the top of this
file.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from truenorm.core.errors import InputError
from truenorm.core.kinds import KINDS
from truenorm.tools import migrate_code
from truenorm.tools.bench import cases
from truenorm.tools.compare import settings


def add_explain(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the parser of `truenorm explain`."""
    parser = commands.add_parser("explain", help="which elements share a mean, in words or drawn")
    parser.add_argument(
        "name",
        help=f"{', '.join(KINDS)}, weight, or all: the first four side by side",
    )
    parser.add_argument(
        "--shape",
        default="8,28,28,64",
        help="the input's sizes, samples first, ? for an unknown one (default: %(default)s); of "
        "weight the kernel's, output units last",
    )
    parser.add_argument("--groups", type=int, help="groups of channels, -1: one per channel")
    parser.add_argument(
        "--axis",
        help="the channel axis (default: the last), of batch one or several; for layer, rms and "
        "frn the axes of the statistics, such as 1,2,3; for all the one or the other, as each "
        "takes it "
        "(a list that begins with a minus as --axis=-2,-1)",
    )
    parser.add_argument(
        "--virtual-batch-size", type=int, metavar="N", help="of batch: statistics over N samples"
    )
    parser.add_argument(
        "--devices", type=int, metavar="N", help="of batch: split the samples over N devices"
    )
    parser.add_argument(
        "--synchronized",
        action="store_true",
        default=None,
        help="of batch: all devices share statistics",
    )
    parser.add_argument("--out", metavar="FILE", help="draw it, to a .png, .svg or .pdf file")
    parser.add_argument("--force", action="store_true", help="overwrite an existing FILE")
    parser.set_defaults(run=run_explain)


def run_explain(options: argparse.Namespace) -> int:
    """Print which elements share statistics, and draw them where asked."""
    from truenorm.tools.explain.drawing import check_output
    from truenorm.tools.explain.explanation import explain, parse_axis, parse_shape

    axis = None if options.axis is None else parse_axis(options.axis)
    shape = parse_shape(options.shape)
    explanation = explain(
        options.name, shape, groups=options.groups, axis=axis, devices=options.devices,
        virtual_batch_size=options.virtual_batch_size, synchronized=options.synchronized,
    )  # fmt: skip
    if options.out is not None:
        check_output(options.out, options.force)
    print(explanation)
    if options.out is not None:
        explanation.save(options.out, options.force)
        print(f"\nThe picture is in {options.out}")
    return 0


def add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the parser of `truenorm compare`."""
    parser = commands.add_parser(
        "compare",
        help="train a model once per normalization and report",
        description="Train the same model once per normalization, batch size and seed, and leave "
        "a report. The same command again picks up finished runs and never repeats them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--norms",
        help=f"a comma list of {', '.join(settings.known_norms())}, with options after "
        "colons: group:groups=5:epsilon=1e-5; several axes as layer:axis=1+2+3",
    )
    parser.add_argument(
        "--model", help="tutorial: a small convolutional network; rnn: the image row by row"
    )
    parser.add_argument(
        "--data",
        help="digits, mnist, fashion_mnist, or FILE.npz with x_train, y_train, x_test, y_test; "
        "uint8 images are scaled to 0 to 1, floats are taken as they are",
    )
    parser.add_argument("--train-size", metavar="N", help="train on N of the images; None: on all")
    parser.add_argument(
        "--train-on", help="train, or test: train on the test images, evaluate on the others"
    )
    parser.add_argument("--batch-sizes", metavar="N,N", help="images in a training step")
    parser.add_argument("--epochs", metavar="N", help="passes over the training images")
    parser.add_argument("--seeds", metavar="N", help="how many (5: 0 to 4), or a list such as 0,7")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for the report and the runs",
        default="truenorm-compare",
    )
    parser.add_argument("--backend", help="tensorflow, jax or torch; None: as Keras is configured")
    parser.set_defaults(run=run_compare, **settings.DEFAULTS)


def run_compare(options: argparse.Namespace) -> int:
    """Run the comparison and print its table; Ctrl-C keeps what is finished."""
    from truenorm.tools.compare.comparison import compare

    chosen = {name: getattr(options, name) for name in settings.DEFAULTS}
    try:
        print(f"\n{compare(**chosen, out=options.out, backend=options.backend)}")
    except KeyboardInterrupt:
        print(
            f"\nStopped. Finished runs are kept in {options.out}; give the same command to go on.",
            file=sys.stderr,
        )
        return 130
    return 0


def add_bench(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the parser of `truenorm bench`."""
    parser = commands.add_parser(
        "bench",
        help="how fast the layers are on this machine, beside Keras and the framework",
        description="Time the layers, forward and with backward, in turn with Keras' layer, the "
        "framework's own normalization, and an elementwise a * 1.01.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--norms", help=f"a comma list of {', '.join(cases.known_norms())}")
    parser.add_argument("--layouts", help="where the channels are")
    parser.add_argument("--sizes", help="of the tensors")
    parser.add_argument("--dtypes", help="of the tensors")
    parser.add_argument("--rounds", metavar="N", help="how often each is timed")
    parser.add_argument("--out", metavar="DIR", help="folder for bench-BACKEND.json and .png")
    parser.add_argument("--force", action="store_true", help="overwrite those files")
    parser.add_argument("--backend", help="tensorflow, jax or torch; None: as Keras is configured")
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: the fixed table of the GPU kernels, with PyTorch and JAX, of which --out has "
        "speed.json and speed.md; --norms and the like say nothing there",
    )
    parser.set_defaults(run=run_bench, **cases.DEFAULTS)


def run_bench(options: argparse.Namespace) -> int:
    """Time the cases and print the table."""
    if options.device == "cuda":
        return run_bench_on_gpu(options)
    from truenorm.tools.bench.benchmark import bench

    chosen = {name: getattr(options, name) for name in cases.DEFAULTS}
    try:
        bench(**chosen, out=options.out, force=options.force, show=print)
    except KeyboardInterrupt:
        print("\nStopped; nothing was written.", file=sys.stderr)
        return 130
    if options.out is not None:
        print(f"\nThe numbers and the plot are in {options.out}")
    return 0


def run_bench_on_gpu(options: argparse.Namespace) -> int:
    """Time the fixed table of the GPU kernels."""
    from truenorm.tools.bench.gpu import report

    out = None if options.out is None else pathlib.Path(options.out)
    report(out, ("torch", "jax"), force=options.force)
    return 0


def add_migrate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the parser of `truenorm migrate`."""
    parser = commands.add_parser(
        "migrate",
        help="turn a model that Keras 2 and TensorFlow Addons saved into a .keras file of Keras 3",
        description="Read a model of Keras 2, write it as a .keras file of Keras 3, and compare "
        "the two. Reading needs neither TensorFlow nor TensorFlow Addons; a SavedModel runs where "
        "TensorFlow is installed.",
    )
    parser.add_argument("old", help="an .h5 or .keras file, or a SavedModel folder")
    parser.add_argument("new", metavar="new.keras", help="the file to write")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    parser.add_argument(
        "--unsafe",
        action="store_true",
        help="run Python code that the file has in it (Lambda layers): only for files you trust",
    )
    parser.add_argument(
        "--backend", help="tensorflow, jax or torch (default: as Keras is configured)"
    )
    parser.set_defaults(run=run_migrate)


def run_migrate(options: argparse.Namespace) -> int:
    """Migrate, and print what became of each layer."""
    from truenorm.tools.migrate import migrate

    print(migrate(options.old, options.new, force=options.force, safe_mode=not options.unsafe))
    return 0


def add_config(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `truenorm config`."""
    parser = commands.add_parser("config", help="versions, and which implementations can be used")
    parser.add_argument("--backend", help="the Keras backend to show (default: as configured)")
    parser.set_defaults(run=run_config)


def run_config(options: argparse.Namespace) -> int:
    """Print what `truenorm.show_config()` prints."""
    from truenorm.tools.config import show_config

    show_config()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; wrong input is one sentence on stderr and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="truenorm",
        description="Normalizations for PyTorch, JAX and Keras 3: what goes with them.",
    )
    # `main` of the package answers it, of every command, before anything is imported.
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (
        add_compare,
        add_explain,
        add_bench,
        add_migrate,
        migrate_code.add_parser,
        add_config,
    ):
        add(commands)
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
        return code
    except InputError as error:
        print(f"truenorm {options.command}: {error}", file=sys.stderr)
        return 2
