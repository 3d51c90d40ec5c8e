"""The command line: everlearn train | bench | report | export | predict."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from everlearn import methods, processes, recipes
from everlearn.backbones import BUNDLED, load_backbone
from everlearn.checkpoint import FILE
from everlearn.data import Augmentation, ClassIncremental, Images, any_images, load
from everlearn.data.folders import loose_images
from everlearn.evaluation.bench import FILE as BENCH
from everlearn.evaluation.bench import bench
from everlearn.evaluation.run import FILE as RUN
from everlearn.evaluation.run import Run
from everlearn.evaluation.runner import HEADS, as_it_stands, measure
from everlearn.learner import Learner
from everlearn.methods import NTKCL
from everlearn.precision import PRECISIONS, resolve
from everlearn.report import look_into, write_report
from everlearn_export.files import BATCH, KINDS, write_files
from everlearn_export.precision import PRECISIONS as GRAPH_PRECISIONS
from everlearn_export.precision import TARGETS
from everlearn_runtime import cli as device
from everlearn_runtime.bundle import Bundle
from everlearn_runtime.errors import MissingExtra
from everlearn_runtime.heads import Confidence
from everlearn_runtime.heads.confidence import ENOUGH
from everlearn_runtime.train_step import BLOCKS

_DATA = "a folder of class folders, a .npz file, or 'digits'"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        0, 2 after a user's mistake (one line on stderr), or 130 after an interrupt.
    """
    with processes.main_prints():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["predict"]:
        return device.main(arguments)  # the device's own command, so that both say the same
    parsed = _parser().parse_args(arguments)
    try:
        processes.join(getattr(parsed, "device", None))  # first, so that each hears of another's mistake
        with processes.together(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\d+ of \d+ classes have no test image")  # `_load` says it
            parsed.run(parsed)
    except (ValueError, OSError, MissingExtra, FloatingPointError, processes.ElsewhereError) as error:
        print(f"everlearn: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = "; the same command goes on where this one stopped" if parsed.goes_on else ""
        print(f"everlearn: interrupted{goes_on}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="everlearn", description="Train a continual learner, and export it for devices."
    )
    parser.set_defaults(goes_on=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="learn a data set, a few classes at a time",
        description="Learn a data set, a few classes at a time, and print the accuracy matrix. "
        "After an interrupt the same command goes on where it stopped.",
    )
    train.set_defaults(run=_train, goes_on=True)
    train.add_argument("data", metavar="DATA", help=_DATA)
    train.add_argument("--out", metavar="RUN", required=True, help="folder for the learner")
    train.add_argument("--recipe", metavar="NAME", help="published settings, such as cifar100")
    train.add_argument("--method", choices=methods.__all__, help="default: NTKCL")
    train.add_argument("--head", choices=list(HEADS), help="default: the method's own")
    train.add_argument("--seed", type=int, metavar="N", help="default: 0")
    _data_options(train)
    _learning_options(train, ", or the recipe's")

    bench = commands.add_parser(
        "bench",
        help="compare methods on one data set, over several seeds",
        description="Learn a data set, a few classes at a time, with every method and every seed, and print "
        "a table. What methods share that train nothing is computed once. After an interrupt the same "
        "command goes on where it stopped; more methods or seeds can be asked for later.",
    )
    bench.set_defaults(run=_bench, goes_on=True)
    bench.add_argument("data", metavar="DATA", help=_DATA)
    bench.add_argument("--out", metavar="RUN", required=True, help="folder for the results")
    bench.add_argument(
        "--methods", nargs="+", choices=methods.__all__, metavar="METHOD", help="default: all of them"
    )
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
    export.set_defaults(run=_export)
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
    report.set_defaults(run=_report)
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
    return parser


def _data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--skip-bad", action="store_true", help="leave out images that cannot be read, rather than stop"
    )


def _load(arguments: argparse.Namespace, source: str, seed: int = 0) -> tuple[Images, Images]:
    """Training and test images; what there is to say of them goes to stderr."""
    on_error = "skip" if arguments.skip_bad else "raise"
    return load(source, seed, on_error=on_error, say=lambda text: print(text, file=sys.stderr))


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
        help=f"of an image; default: {Augmentation().scale[0]}{recipe}",
    )
    command.add_argument("--precision", choices=PRECISIONS, help="of training; default: fp32")
    command.add_argument("--device", help="a torch device; default: CUDA where there is one")
    command.add_argument("--workers", type=int, default=0, metavar="N", help="processes that load images")


def _shared(arguments: argparse.Namespace, usual: Augmentation) -> dict[str, Any]:
    """What `_learning_options` asks for, as arguments of `Learner`; the backbone is left out."""
    asked = {name: getattr(arguments, name) for name in ("epochs", "batch_size", "lr", "precision")}
    return {
        "augmentation": _augmentation(arguments, usual),
        "device": arguments.device,
        "workers": arguments.workers,
        **{name: value for name, value in asked.items() if value is not None},
    }


def _augmentation(arguments: argparse.Namespace, usual: Augmentation) -> Augmentation:
    smallest = usual.scale[0] if arguments.smallest_crop is None else arguments.smallest_crop
    return replace(usual, scale=(smallest, usual.scale[1]), flip=usual.flip and not arguments.no_flip)


def _train(arguments: argparse.Namespace) -> None:
    if arguments.seed is not None and arguments.seed < 0:
        raise ValueError(f"--seed is {arguments.seed}; give a whole number of at least 0")
    recipe = recipes.by_name(arguments.recipe) if arguments.recipe else None
    if recipe and arguments.method not in (None, "NTKCL"):
        raise ValueError(f"recipes are for NTKCL, got --method {arguments.method}; leave one of them out")
    begun = _begun(arguments, recipe)
    learner = begun or _fresh(arguments, recipe)
    train, test = _load(arguments, arguments.data, learner.seed)
    stream = _stream(arguments, recipe, train, test, learner)
    if begun is not None:
        done = len(learner.tasks)
        print(f"{arguments.out} has {done} of {len(stream)} tasks; going on with its settings")
    print(measure(learner, stream, folder=arguments.out).accuracy.table())


def _fresh(arguments: argparse.Namespace, recipe: recipes.Recipe | None) -> Learner:
    """The learner that is asked for."""
    seed = arguments.seed or 0
    options: dict[str, Any] = {
        "head": HEADS[arguments.head](seed) if arguments.head else None,
        "seed": seed,
        **_shared(arguments, recipe.augmentation if recipe else Augmentation()),
    }
    weights = arguments.weights or "pretrained"
    if recipe:
        recipe = replace(recipe, backbone=arguments.backbone or recipe.backbone)
        return recipe.learner(weights=weights, **options)
    backbone = load_backbone(arguments.backbone or BUNDLED, weights=weights)
    return Learner(backbone, getattr(methods, arguments.method or "NTKCL")(), **options)


def _begun(arguments: argparse.Namespace, recipe: recipes.Recipe | None) -> Learner | None:
    """The learner of the folder, if one is there that has begun to learn.

    ``ValueError`` when anything else is asked for than it was begun with.
    """
    if not (Path(arguments.out) / FILE).is_file():
        return None
    learner = Learner.load(arguments.out, device=arguments.device, workers=arguments.workers)
    if not learner.started:
        return None
    record = learner.record()
    now: dict[str, Any] = {}
    if recipe:
        now |= {"method": NTKCL(**recipe.method).config(), **asdict(recipe.training)}
        now |= {"backbone": recipe.backbone, "augmentation": asdict(recipe.augmentation)}
    if arguments.method:
        now["method"] = getattr(methods, arguments.method)().config() | {"name": arguments.method}
    begun: dict[str, Any] = {
        **record["training"],
        **{name: record[name] for name in ("seed", "precision", "augmentation")},
        "method": record["method"]["config"]
        | ({"name": record["method"]["name"]} if arguments.method else {}),
        **{name: (record["backbone"] or {}).get(key) for name, key in _OF_BACKBONE.items()},
        "head": {"kind": learner.head.kind, "options": learner.head.options},
    }
    for name in ("epochs", "batch_size", "lr", "seed", "weights", "backbone"):
        if getattr(arguments, name) is not None:
            now[name] = getattr(arguments, name)
    if arguments.precision:
        now["precision"] = resolve(arguments.precision, learner.device)
    if arguments.head:
        head = HEADS[arguments.head](learner.seed)
        now["head"] = {"kind": head.kind, "options": head.options}
    if arguments.no_flip or arguments.smallest_crop is not None:
        now["augmentation"] = asdict(
            _augmentation(arguments, recipe.augmentation if recipe else Augmentation())
        )
    for name, asked in now.items():
        if begun[name] != asked:
            raise ValueError(
                f"{arguments.out} was begun with {name} {begun[name]}, not {asked}; "
                "go on with the same, or give another --out"
            )
    return learner


_OF_BACKBONE = {"backbone": "name", "weights": "weights"}


def _stream(
    arguments: argparse.Namespace,
    recipe: recipes.Recipe | None,
    train: Images,
    test: Images,
    learner: Learner,
) -> ClassIncremental:
    """The stream that is asked for, or else the one that the learner has begun with."""
    per_task = arguments.classes_per_task
    if recipe and per_task is None:
        return recipe.stream(train, test)
    seed = recipe.seed if recipe else learner.seed
    if per_task is None and learner.started and (Path(arguments.out) / RUN).is_file():
        # The tasks say how many classes each was to have, but for those that were joined to another.
        begun = Run.read(arguments.out).tasks
        for number in (_fifth(train), *begun):
            if max(number, begun[0]) > len(train.classes):
                continue
            stream = ClassIncremental(train, test, number, first=begun[0], seed=seed)
            if [len(classes) for classes in stream.tasks] == begun:
                return stream
    return ClassIncremental(train, test, _fifth(train) if per_task is None else per_task, seed=seed)


def _fifth(images: Images) -> int:
    return -(-len(images.classes) // 5)


def _bench(arguments: argparse.Namespace) -> None:
    if min(arguments.seeds) < 0:
        raise ValueError(f"--seeds has {min(arguments.seeds)}; give whole numbers of at least 0")
    # The same images are held out for all seeds, so that methods can share what never changes.
    train, test = _load(arguments, arguments.data)
    found = bench(
        train,
        test,
        arguments.out,
        classes_per_task=_fifth(train) if arguments.classes_per_task is None else arguments.classes_per_task,
        methods=arguments.methods,
        seeds=arguments.seeds,
        heads=arguments.heads,
        exported=arguments.exported,
        backbone=load_backbone(arguments.backbone or BUNDLED, weights=arguments.weights or "pretrained"),
        say=tqdm.write,
        **_shared(arguments, Augmentation()),
    )
    print(found.table())


def _export(arguments: argparse.Namespace) -> None:
    if arguments.kind is not None:
        write_files(Bundle.open(arguments.learner), arguments.out, arguments.kind, batch=arguments.batch)
        print(f"{arguments.out}: the graph of {arguments.learner} for {arguments.kind}")
        return
    learner = Learner.load(arguments.learner)
    images = _images(arguments) if arguments.images else None
    held_out = images if images is not None and set(images.classes) & set(learner.classes) else None
    manifest = learner.export(
        arguments.out,
        images=images,
        precision=arguments.precision,
        target=arguments.target,
        replaces=arguments.replaces,
        removable=arguments.removable,
        calibration=held_out,
        canaries=arguments.canaries,
        train_step=arguments.train_step,
        overwrite=arguments.overwrite,
    )
    parity = manifest.parity
    print(
        f"{arguments.out}: {len(manifest.classes)} classes; on {parity['images']} images features differ "
        f"from torch by at most {parity['max_abs_difference']:.1e}, {parity['top1_agreement']:.0%} of "
        "classes agree"
    )
    if parity["precision"] != "fp32" and parity["accuracy"]:
        before, after = parity["accuracy"]
        print(f"{parity['precision']}: {after:.1%} of these images in their class, {before:.1%} by torch")
    print(_calibration(Bundle.open(arguments.out).head().confidence))
    if (step := manifest.train_step) is not None:
        near = step["parity"]
        print(
            f"training step ({step['blocks']}): over {near['steps']} steps losses differ from torch's by at "
            f"most {near['loss']:.1e}, parameters by {near['parameters']:.1e}"
        )
    if (old := manifest.replaces) is not None:
        agree = "" if old["agreement"] is None else f", {old['agreement']:.0%} of classes agree"
        print(
            f"replaces {arguments.replaces}: on {old['images']} images the map explains "
            f"{old['explained']:.1%} of the variance{agree}"
        )


def _calibration(figures: Confidence) -> str:
    """How sure the device may be, in words."""
    if figures.calibrated:
        return f"calibrated by {figures.judged} images that nothing was learned from"
    return (
        f"not calibrated, by {figures.judged} of at least {ENOUGH} images of classes that were learned; give "
        "held-out ones with --images, or let the device judge what it learns"
    )


def _images(arguments: argparse.Namespace) -> Images:
    """The test images of a data set, or those of a folder without classes."""
    if Path(arguments.images).is_dir() and loose_images(Path(arguments.images)):
        return any_images(arguments.images)[0]
    return _load(arguments, arguments.images)[1]


def _report(arguments: argparse.Namespace) -> None:
    if arguments.data is None:
        print(write_report(arguments.learner))
        return
    if (Path(arguments.learner) / BENCH).is_file():
        raise ValueError(
            f"{arguments.learner} is a benchmark, which keeps no learner; leave {arguments.data} out"
        )
    learner = Learner.load(arguments.learner)
    train, test = _load(arguments, arguments.data, learner.seed)  # split as it was for training
    found = look_into(
        learner, train, test, samples=arguments.samples, readouts=arguments.readouts, seed=arguments.seed
    )
    print(found.text())
    if not (Path(arguments.learner) / RUN).is_file():
        as_it_stands(learner, test).write(arguments.learner)
    print(f"\n{write_report(arguments.learner, findings=found)}")
