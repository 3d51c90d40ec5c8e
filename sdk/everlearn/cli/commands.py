"""What the commands do; `everlearn.cli.parser` says what they take."""

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from everlearn import methods, processes, recipes
from everlearn.backbones import load_backbone
from everlearn.checkpoint import FILE
from everlearn.choices import BUNDLED, HEADS
from everlearn.data import Augmentation, ClassIncremental, Images, any_images, load
from everlearn.data.folders import loose_images
from everlearn.evaluation.bench import FILE as BENCH
from everlearn.evaluation.bench import bench
from everlearn.evaluation.run import FILE as RUN
from everlearn.evaluation.run import Run
from everlearn.evaluation.runner import as_it_stands, measure
from everlearn.learner import Learner
from everlearn.log import tensorboard
from everlearn.methods import NTKCL
from everlearn.precision import resolve
from everlearn.progress import Pace
from everlearn.report import look_into, write_report
from everlearn_export.files import write_files
from everlearn_runtime.bundle import Bundle
from everlearn_runtime.heads import Confidence
from everlearn_runtime.heads.confidence import ENOUGH


def run(arguments: argparse.Namespace) -> None:
    """Run the command that was parsed, with all processes that were launched with this one.

    Raises:
        ValueError: for a user's mistake, which is one line.
    """
    command = {"train": _train, "bench": _bench, "export": _export, "report": _report}[arguments.run]
    processes.join(getattr(arguments, "device", None))  # first, so that each hears of another's mistake
    with processes.together(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\d+ of \d+ classes have no test image")  # `_load` says it
        command(arguments)


def _load(arguments: argparse.Namespace, source: str, seed: int = 0) -> tuple[Images, Images]:
    """Training and test images; what there is to say of them goes to stderr."""
    on_error = "skip" if arguments.skip_bad else "raise"
    return load(source, seed, on_error=on_error, say=lambda text: print(text, file=sys.stderr))


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
    if not 0 < smallest <= 1:
        raise ValueError(f"--smallest-crop is {smallest}; give a share of an image, above 0 and at most 1")
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
    if len(train.classes) == 1:
        print(
            f"{arguments.data} has one class only, {train.classes[0]!r}: every picture will be called that, "
            "until another class is learned, here or on a device, and the accuracy says nothing",
            file=sys.stderr,
        )
    stream = _stream(arguments, recipe, train, test, learner)
    if begun is not None:
        done = len(learner.tasks)
        print(f"{arguments.out} has {done} of {len(stream)} tasks; going on with its settings")
    if arguments.tensorboard and processes.is_main():
        learner.listeners.append(tensorboard(arguments.out))
    say = _said_after_tasks(len(learner.tasks), 1 if learner.method.at_once else len(stream))
    print(measure(learner, stream, folder=arguments.out, after_task=say).accuracy.table())


def _said_after_tasks(done: int, tasks: int) -> Callable[[str], None]:
    """What says on stderr how far a run is, of which some tasks were done before."""
    pace, told = Pace(tasks, done=done), 0

    def say(line: str) -> None:
        nonlocal told
        told += 1
        if told > done:
            pace.step()
            print(f"{line.replace(':', f' of {tasks}:', 1)}; {pace.told()}", file=sys.stderr, flush=True)

    return say


def _fresh(arguments: argparse.Namespace, recipe: recipes.Recipe | None) -> Learner:
    """The learner that is asked for."""
    seed = arguments.seed or 0
    options: dict[str, Any] = {
        "head": HEADS[arguments.head](seed) if arguments.head else None,
        "seed": seed,
        "progress": True,
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
    learner = Learner.load(arguments.out, device=arguments.device, workers=arguments.workers, progress=True)
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
    if len(train.classes) == 1:
        raise ValueError(
            f"{arguments.data} has one class only, {train.classes[0]!r}, which every method recognises; give "
            "two or more to compare them"
        )
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
    if arguments.canaries and images is not None and held_out is None:
        raise ValueError(
            f"--canaries {arguments.canaries} are images of learned classes, and {arguments.images} has "
            "none; give a folder of class folders"
        )
    _working("writing the graph, and comparing what it computes with torch: half a minute or so")
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


def _working(what: str) -> None:
    """Say what takes a while, where nothing else tells that it goes on."""
    if processes.is_main():
        print(f"{what} ...", file=sys.stderr, flush=True)


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
        _working("drawing the pictures")
        print(write_report(arguments.learner))
        return
    if (Path(arguments.learner) / BENCH).is_file():
        raise ValueError(
            f"{arguments.learner} is a benchmark, which keeps no learner; leave {arguments.data} out"
        )
    learner = Learner.load(arguments.learner)
    train, test = _load(arguments, arguments.data, learner.seed)  # split as it was for training
    _working("looking into the learner, which takes longer than learning where there are many images")
    found = look_into(
        learner, train, test, samples=arguments.samples, readouts=arguments.readouts, seed=arguments.seed
    )
    print(found.text())
    if not (Path(arguments.learner) / RUN).is_file():
        as_it_stands(learner, test).write(arguments.learner)
    print(f"\n{write_report(arguments.learner, findings=found)}")
