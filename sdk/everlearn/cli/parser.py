"""What the commands take, without torch: help comes at once."""

import argparse
import textwrap

from everlearn.choices import BUNDLED, HEADS, PRECISIONS
from everlearn.cli import fleet
from everlearn.methods import __all__ as METHODS
from everlearn_export.choices import BATCH, KINDS, TARGETS
from everlearn_export.choices import PRECISIONS as GRAPH_PRECISIONS
from everlearn_runtime.train_step import BLOCKS
from everlearn_runtime.version import __version__

_EXAMPLES = {
    name: "example:\n  everlearn " + text.replace("\n", "\n  everlearn ")
    for name, text in {
        "": "train photos/ --out run/\nexport run/ --out bundle/\npredict bundle/ cup.jpg",
        "train": "train photos/ --out run/ --no-flip\ntrain cifar100.npz --recipe cifar100 --out run/",
        "bench": "bench photos/ --out bench/ --methods NTKCL RanPAC --seeds 0 1 2 --heads lda",
        "export": "export run/ --out bundle/ --images photos/\n"
        "export run/ --out bundle/ --precision int8 --images photos/ --overwrite",
        "report": "report run/ photos/\nreport bench/",
        "predict": "predict bundle/ cup.jpg\npredict bundle/ photos/ --state device.db",
        "keys": "keys new maker",
        "sign": "sign bundle/ --key maker",
        "merge": "merge bundle/ kitchen.delta hall.delta --out bundle-2/\n"
        "merge bundle/ kitchen.delta --out bundle-2/ --trust kitchen.pub",
        "info": "info run/\ninfo bundle/ --json\ninfo device.db\ninfo device.delta",
    }.items()
}

_DATA = "a folder of class folders, a .npz file, or 'digits'"


def make_parser() -> argparse.ArgumentParser:
    """All commands; ``run`` names the one that was typed, and ``goes_on`` says whether it can be repeated."""
    parser = argparse.ArgumentParser(
        prog="everlearn",
        description="Train a continual learner, and export it for devices.",
        epilog=_EXAMPLES[""],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"everlearn {__version__}")
    parser.set_defaults(goes_on=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="learn a data set, a few classes at a time",
        description="Learn a data set, a few classes at a time, and print the accuracy matrix. "
        "After an interrupt the same command goes on where it stopped.",
    )
    train.set_defaults(run="train", goes_on=True)
    train.add_argument("data", metavar="DATA", help=_DATA)
    train.add_argument("--out", metavar="RUN", required=True, help="folder for the learner")
    train.add_argument("--recipe", metavar="NAME", help="published settings, such as cifar100")
    train.add_argument("--method", choices=METHODS, help="default: NTKCL")
    train.add_argument("--head", choices=list(HEADS), help="default: the method's own")
    train.add_argument("--seed", type=int, metavar="N", help="default: 0")
    train.add_argument("--tensorboard", action="store_true", help="write RUN/tensorboard, beside RUN/log.csv")
    _data_options(train)
    _learning_options(train, ", or the recipe's")

    bench = commands.add_parser(
        "bench",
        help="compare methods on one data set, over several seeds",
        description="Learn a data set, a few classes at a time, with every method and every seed, and print "
        "a table. What methods share that train nothing is computed once. After an interrupt the same "
        "command goes on where it stopped; more methods or seeds can be asked for later.",
    )
    bench.set_defaults(run="bench", goes_on=True)
    bench.add_argument("data", metavar="DATA", help=_DATA)
    bench.add_argument("--out", metavar="RUN", required=True, help="folder for the results")
    bench.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help="default: all of them")
    bench.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    bench.add_argument(
        "--heads",
        nargs="+",
        choices=list(HEADS),
        default=[],
        metavar="HEAD",
        help=f"to learn beside each method's own: {', '.join(HEADS)}",
    )
    bench.add_argument(
        "--exported",
        nargs="+",
        choices=GRAPH_PRECISIONS,
        default=[],
        metavar="PRECISION",
        help="export after every task, and measure what a device would make of it: "
        f"{', '.join(GRAPH_PRECISIONS)}",
    )
    _data_options(bench)
    _learning_options(bench)

    export = commands.add_parser("export", help="write the bundle that a device opens")
    export.set_defaults(run="export")
    export.add_argument("learner", metavar="RUN", help="what train wrote; with --for, a bundle")
    export.add_argument("--out", metavar="BUNDLE", required=True, help="folder for the bundle")
    export.add_argument(
        "--images",
        metavar="DATA",
        help="verify on its test images, or on a folder's, and calibrate by those of learned classes",
    )
    export.add_argument(
        "--canaries",
        type=int,
        default=0,
        metavar="N",
        help="images a class, of --images, by which a device can refuse to learn what would make it forget",
    )
    export.add_argument(
        "--precision",
        choices=GRAPH_PRECISIONS,
        default="fp32",
        help="of the graph: fp16 for GPUs, int8 for CPUs",
    )
    export.add_argument(
        "--target", choices=TARGETS, default="cpu", help="where an int8 graph will run (default: cpu)"
    )
    export.add_argument(
        "--train-step",
        choices=BLOCKS,
        help="let the device train: a classifier, adapters of the last blocks, all",
    )
    export.add_argument(
        "--removable", action="store_true", help="let the device forget exactly what it learns itself"
    )
    export.add_argument(
        "--replaces",
        metavar="OLD",
        help="the bundle that devices have now; with the images of --images, what they have learned can be "
        "carried over to the new one",
    )
    export.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    _data_options(export)
    export.add_argument(
        "--for",
        dest="kind",
        choices=KINDS,
        help="write a bundle's graph for Triton or DeepStream instead, with its configuration",
    )
    export.add_argument(
        "--batch", type=int, default=BATCH, metavar="N", help=f"with --for, most images at once ({BATCH})"
    )

    report = commands.add_parser(
        "report",
        help="draw what a run found, and say what limits it",
        description="Write a page with the pictures of a run, RUN/report/index.html. With the data that it "
        "was trained on, also say which of three factors limits it, by the neural tangent kernel on some of "
        "its training images: too few samples, entangled tasks, or too little (or too much) regularisation.",
    )
    report.set_defaults(run="report")
    report.add_argument("learner", metavar="RUN", help="what train or bench wrote")
    report.add_argument(
        "data", metavar="DATA", nargs="?", help="the data set that it was trained on, for what train wrote"
    )
    report.add_argument("--samples", type=int, default=32, metavar="N", help="images a task; default 32")
    report.add_argument(
        "--readouts", type=int, default=8, metavar="K", help="random readouts of the features; default 8"
    )
    report.add_argument("--seed", type=int, default=0, help="of the sample and the readouts")
    _data_options(report)

    commands.add_parser("predict", help="classify images with a bundle: predict BUNDLE IMAGES...")
    info = commands.add_parser(
        "info",
        help="what a bundle, a run or a device's state is",
        description="Say what a bundle, a run, a benchmark or a device's state is.",
    )
    info.set_defaults(run="info")
    info.add_argument("path", metavar="BUNDLE|RUN|STATE|DELTA")
    info.add_argument("--json", action="store_true", help="print JSON")
    fleet.add_commands(commands)
    for name, command in commands.choices.items():
        command.epilog = _EXAMPLES[name]
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        if command.description:
            command.description = textwrap.fill(command.description, 78)
    return parser


def _data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--skip-bad", action="store_true", help="leave out images that cannot be read, rather than stop"
    )


def _learning_options(command: argparse.ArgumentParser, recipe: str = "") -> None:
    """The options of commands that learn; ``recipe`` ends the help of what a recipe has, too."""
    command.add_argument("--backbone", help=f"any timm model; default: {BUNDLED}{recipe}")
    command.add_argument("--weights", help="'pretrained', the default, 'random', or a file")
    command.add_argument(
        "--classes-per-task", type=int, metavar="N", help=f"default: enough for five tasks{recipe}"
    )
    command.add_argument("--epochs", type=int, metavar="N", help=f"default: the method's{recipe}")
    command.add_argument("--batch-size", type=int, metavar="N", help=f"default: the method's{recipe}")
    command.add_argument("--lr", type=float, metavar="RATE", help=f"default: the method's{recipe}")
    command.add_argument("--no-flip", action="store_true", help="do not mirror: for writing and signs")
    command.add_argument(
        "--smallest-crop",
        type=float,
        metavar="SHARE",
        help=f"of an image; default: 0.3{recipe}",
    )
    command.add_argument("--precision", choices=PRECISIONS, help="of training; default: fp32")
    command.add_argument("--device", help="a torch device; default: CUDA where there is one")
    command.add_argument("--workers", type=int, default=0, metavar="N", help="processes that load images")
