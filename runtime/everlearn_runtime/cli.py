"""``everlearn-device``: predict, learn, take back and tell, on the runtime alone."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from everlearn_runtime.adapt import RATE, STEPS
from everlearn_runtime.backends import BACKENDS, Provider
from everlearn_runtime.benchmark import Case, benchmark
from everlearn_runtime.bundle import Bundle, read_manifest
from everlearn_runtime.edge import FALSE_ALARM, EdgeLearner
from everlearn_runtime.errors import MissingExtra
from everlearn_runtime.files import check_place
from everlearn_runtime.fleet import GaussianNoise
from everlearn_runtime.images import InputSpec
from everlearn_runtime.info import describe, lines
from everlearn_runtime.names import check_name, shown
from everlearn_runtime.picking import Bad, Picture, files_in, misnamed, pictures
from everlearn_runtime.prediction import Prediction
from everlearn_runtime.serving.command import add_options, serve
from everlearn_runtime.spoken import DEVICE, as_typed, told
from everlearn_runtime.state import Version
from everlearn_runtime.terminal import escaping
from everlearn_runtime.version import __version__
from everlearn_runtime.words import plural

BATCH = 32
MOST_NAMES = 20  # of files that cannot be used, on the terminal
NOT_CALIBRATED = (
    "not calibrated: fewer than 200 images were judged before they were learned, so the percentages are a "
    "guess, and nothing is called unknown"
)
_ALL_OR_NOTHING = f"; the change is made or not, never in part: `{DEVICE} history` says which"
_RESIZED = {"center": "shorter side to", "squash": "squeezed to", "border": "bordered within"}


_STATE = "--state device.db"
_EXAMPLES = {
    "": f"predict bundle/ cup.jpg\nlearn bundle/ mug mug1.jpg mug2.jpg {_STATE}\nundo bundle/ {_STATE}",
    "predict": f"predict bundle/ cup.jpg\npredict bundle/ photos/ {_STATE} --json",
    "learn": f"learn bundle/ mug mug1.jpg mug2.jpg {_STATE}\nlearn bundle/ photos/ {_STATE}",
    "adapt": f"adapt bundle/ photos/ {_STATE}",
    "delta": f"delta bundle/ device.delta {_STATE}\n"
    f"delta bundle/ device.delta --since 12 --key maker {_STATE}",
    "forget": f"forget bundle/ mug {_STATE}\nforget bundle/ mug {_STATE} --purge",
    "serve": f"serve bundle/ {_STATE}",
    "status": f"status bundle/ {_STATE}",
    "info": "info bundle/\ninfo device.db --json",
    "history": f"history bundle/ {_STATE}",
    "undo": f"undo bundle/ {_STATE}",
    "rollback": f"rollback bundle/ 41 {_STATE}",
    "backup": f"backup bundle/ copy.db {_STATE}",
    "benchmark": "benchmark bundle/ --batch 1 --seconds 5",
    "build": "build bundle/ --batch 1",
    "migrate": f"migrate new-bundle/ {_STATE}",
}


def main(argv: Sequence[str] | None = None, program: str = DEVICE) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; None: those of the process.
        program: What was typed before them; each message begins with it.

    Returns:
        0; 1 if some files could not be used, and the others were; 2 after a user's mistake, which is one line
        on stderr; or 130 after an interrupt.
    """
    with escaping():
        arguments = _parsed(argv, program)
        say = arguments.say = _Complaints(program)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = say.warning
                result, text = arguments.run(arguments)
        except (ValueError, OSError, MissingExtra) as error:
            say(told(error))
            return 2
        except KeyboardInterrupt:
            say(f"interrupted{arguments.interrupted}")
            return 130
        _say(json.dumps(result) if arguments.json else text, say)
        return 1 if result.get("bad") else 0


class _Complaints:
    """What goes to stderr, a line each.

    Args:
        program: What they begin with.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        # `everlearn` hands only some of the commands on, so messages name the others by the device's program.
        self.commands = DEVICE if program == "everlearn" else program

    def __call__(self, text: str) -> None:
        print(f"{self._program}: {as_typed(text, self.commands)}", file=sys.stderr, flush=True)

    def warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """A warning as this command says things."""
        self(str(message))


def _parsed(argv: Sequence[str] | None, program: str) -> argparse.Namespace:
    parser = _parser(program)
    arguments, rest = parser.parse_known_args(argv)
    if rest and (arguments.run is not _learn or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse has no end of images that may be none, with an option between the class and them
        arguments.images += rest
    return arguments


def _say(text: str, say: Callable[[str], None]) -> None:
    """Print the answer. Whatever was to be done is done by now, and not undone by a reader that is gone."""
    try:
        print("\n".join(map(shown, text.split("\n"))), flush=True)
    except OSError as error:
        # What is still to be written goes nowhere, or Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # as of `| head`
            say(f"done, but the answer could not be printed: {error.strerror}")


def _parser(program: str) -> argparse.ArgumentParser:
    def examples(name: str) -> str:
        return "\n  ".join(["example:", *(f"{program} {line}" for line in _EXAMPLES[name].splitlines())])

    parser = argparse.ArgumentParser(
        prog=program,
        description="Run a bundle, and go on learning on the device.",
        epilog=examples(""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"everlearn {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    plain = argparse.ArgumentParser(add_help=False)
    plain.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder")
    plain.add_argument("--json", action="store_true", help="print JSON")
    plain.add_argument(
        "--trust",
        action="append",
        metavar="KEY.pub",
        help="public key, one of which must have signed the bundle; without, no signature is looked at",
    )
    common = argparse.ArgumentParser(add_help=False, parents=[plain])
    common.add_argument("--threads", type=int, metavar="N", help="CPU threads; all cores by default")
    common.add_argument(
        "--provider",
        action="append",
        type=_provider,
        metavar="NAME[,KEY=VALUE...]",
        help="ONNX Runtime execution provider and its options, the preferred one first",
    )
    common.add_argument(
        "--backend", choices=BACKENDS, default="auto", help="what runs the graph; the best that is there"
    )
    images: dict[str, Any] = {
        "metavar": "IMAGES",
        "nargs": "+",
        "help": "image files, or .npy files of uint8 (H, W), (H, W, 3) or (N, H, W, 3), of any size; folders "
        "of these, or of class folders",
    }

    def command(
        name: str, run: Any, says: str, options: argparse.ArgumentParser = common
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            parents=[options],
            help=says,
            description=says,
            epilog=examples(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    parser.set_defaults(interrupted="")
    predict = command("predict", _predict, "classify images")
    predict.add_argument("images", **images)
    predict.add_argument("--top", type=int, default=3, metavar="K", help="show K classes; default 3")
    predict.add_argument(
        "--false-alarm",
        type=float,
        default=FALSE_ALARM,
        metavar="SHARE",
        help=f"of images of known classes that may be called unknown; default {FALSE_ALARM}",
    )
    learn = command("learn", _learn, "learn images of one class, or of class folders, old classes or new")
    learn.add_argument(
        "label", metavar="LABEL", help="the class; or, without images, a folder of class folders"
    )
    learn.add_argument("images", **{**images, "nargs": "*"})
    learn.add_argument(
        "--guard",
        type=float,
        metavar="SHARE",
        help="refuse what would lower the accuracy on the bundle's canaries by more than this",
    )
    adapt = command("adapt", _adapt, "train the adapters on, with images of known classes")
    adapt.add_argument("folder", metavar="DIR", help="images in one folder for each class, named after it")
    adapt.add_argument("--steps", type=int, default=STEPS, help=f"of the training; default {STEPS}")
    adapt.add_argument("--rate", type=float, default=RATE, help=f"of the training; default {RATE}")
    forget = command("forget", _forget, "drop a class")
    forget.add_argument("label", metavar="LABEL")
    status = command("status", _status, "what is known and how much room it takes")
    info = commands.add_parser(
        "info",
        help="what a bundle, a state or a delta is",
        description="what a bundle, a state or a delta is",
        epilog=examples("info"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    info.set_defaults(run=_info)
    info.add_argument("path", metavar="BUNDLE|STATE|DELTA")
    info.add_argument("--json", action="store_true", help="print JSON")
    for sub in (predict, learn, adapt):
        sub.add_argument(
            "--strict", action="store_true", help="refuse all images if one of them cannot be used"
        )
    for sub in (predict, status):
        sub.add_argument("--state", metavar="FILE", help="what this device has learned")
    forget.add_argument(
        "--purge", action="store_true", help="leave neither name nor features in the state, nor its history"
    )
    history = command("history", _history, "the versions that can be gone back to")
    undo = command("undo", _undo, "take back the last change")
    rollback = command("rollback", _rollback, "go back to an earlier version")
    rollback.add_argument("version", metavar="VERSION", type=int, help="its number, see history")
    backup = command("backup", _backup, "copy the state")
    backup.add_argument("to", metavar="TO", help="the copy's place")
    delta = command("delta", _delta, "hand in what was learned, as sums, for `everlearn merge`")
    delta.add_argument("to", metavar="TO", help="the file to write")
    delta.add_argument(
        "--since",
        type=int,
        metavar="VERSION",
        help="what came after it; by default all that the bundle lacks",
    )
    delta.add_argument(
        "--min-count",
        type=int,
        default=1,
        metavar="N",
        help="leave out classes with fewer samples; default 1",
    )
    delta.add_argument(
        "--noise",
        type=float,
        metavar="MULTIPLIER",
        help="class means with noise, so many times --clip",
    )
    delta.add_argument("--clip", type=float, metavar="LENGTH", help="with --noise, of an image's features")
    delta.add_argument(
        "--target-delta", type=float, metavar="DELTA", help="with --noise, to give epsilon for; default 1e-5"
    )
    delta.add_argument("--key", metavar="KEY", help="private key to sign with")
    bench = command("benchmark", _benchmark, "measure predict and learn on every backend that is there")
    bench.add_argument(
        "--batch", type=int, action="append", metavar="N", help="images a call; 1 and 16 by default"
    )
    bench.add_argument("--seconds", type=float, default=3.0, help="for each measurement; 3 by default")
    build = command("build", _build, "build the TensorRT engine of the graph, for this user", plain)
    build.add_argument("--batch", type=int, action="append", metavar="N", help="sizes; 1 and 16 by default")
    build.add_argument(
        "--memory", type=int, metavar="MIB", help="most scratch space of a layer; all there is by default"
    )
    build.add_argument(
        "--level", type=int, default=3, help="how hard the builder tries, 0 to 5; 3 by default"
    )
    build.add_argument(
        "--for", dest="sm", metavar="SM86", help="build without the GPU, which only TensorRT-RTX can"
    )
    migrate = command("migrate", _migrate, "carry over what was learned with the bundle before this one")
    page = command("serve", _serve, "a page to teach it from, and an API for other programs")
    add_options(page)
    for sub in (learn, adapt, forget, undo, rollback, migrate):
        sub.set_defaults(interrupted=_ALL_OR_NOTHING)
    build.set_defaults(interrupted="; no engine is left of it")
    for sub in (learn, adapt, forget, history, undo, rollback, backup, delta, migrate, page):
        sub.add_argument(
            "--state", metavar="FILE", required=True, help="where this device keeps what it learns"
        )
    return parser


def _provider(text: str) -> Provider:
    """A provider as it is typed: its name, and after commas its options."""
    name, *options = text.split(",")
    pairs = dict(option.partition("=")[::2] for option in options)
    if not name or not all(pairs) or any("=" not in option for option in options):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME or NAME,KEY=VALUE,...")
    return (name, pairs) if pairs else name


def _open(
    arguments: argparse.Namespace,
    *,
    new: bool = False,
    read_only: bool = False,
    migrate: bool = False,
    false_alarm: float = FALSE_ALARM,
) -> EdgeLearner:
    if arguments.state is not None and not new and not Path(arguments.state).is_file():
        raise ValueError(f"{arguments.state}: no such state file; `everlearn-device learn` makes one")
    return EdgeLearner.open(
        arguments.bundle,
        state=arguments.state,
        backend=arguments.backend,
        providers=arguments.provider,
        threads=arguments.threads,
        read_only=read_only and arguments.state is not None,
        migrate=migrate,
        false_alarm=false_alarm,
        trust=arguments.trust,
    )


def _check_file(path: str, what: str) -> None:
    """See that a file can be written, before work is spent on what goes into it."""
    if not Path(path).parent.is_dir():
        raise ValueError(f"{what} is {path}, and there is no folder {Path(path).parent}; make it first")
    check_place(path, what)


def _predict(arguments: argparse.Namespace) -> tuple[Any, str]:
    rows: list[dict[str, Any]] = []
    calibrated = False
    with _open(arguments, read_only=True, false_alarm=arguments.false_alarm) as learner:
        given = _Given(arguments.images, learner.bundle.manifest.input, arguments)
        for batch in given.batches():
            found = learner.predict(np.stack([picture.pixels for picture in batch]))
            calibrated = found.calibrated
            rows += _rows(batch, found, arguments.top)
    table = [
        (
            row["image"],
            row["label"] if row["known"] else "unknown",
            ", ".join(f"{share:.1%} {name}" for name, share in row["probabilities"].items()),
        )
        for row in rows
    ]
    text = _aligned(("image", "label", "probabilities"), table)
    in_folders = [row["label"] == row["folder"] for row in rows if "folder" in row]
    if in_folders:
        text += f"\n\n{sum(in_folders)} of {len(in_folders)} are of the class of their folder"
    if not calibrated:
        text += "\n\n" + NOT_CALIBRATED
    return {"calibrated": calibrated, "predictions": rows, **given.said()}, text


def _rows(batch: Sequence[Picture], found: Prediction, top: int) -> Iterator[dict[str, Any]]:
    for picture, label, scores, best, known in zip(
        batch, found.labels, found.scores, found.top(top), found.known, strict=True
    ):
        folder = {} if picture.label is None else {"folder": picture.label}
        row = {"image": picture.name, "label": label, "known": bool(known), "probabilities": dict(best)}
        yield {**row, **folder, "scores": dict(zip(found.classes, map(float, scores), strict=True))}


def _learn(arguments: argparse.Namespace) -> tuple[Any, str]:
    # All that can be wrong with them is found before there is a state file.
    label: str | None = arguments.label
    if arguments.images:
        check_name(label)
        paths = arguments.images
    elif Path(arguments.label).is_dir():
        label, paths = None, [arguments.label]
    else:
        raise ValueError(
            f"no images to learn; give them after the class, {label!r}, or a folder of class folders in its "
            "place"
        )
    spec = read_manifest(arguments.bundle).input
    if not Path(arguments.state).exists():
        _check_file(arguments.state, "--state")
    given = _Given(paths, spec, arguments)
    for file in given.files:
        if label is None and file.label is None:
            raise ValueError(f"{file.path} is in no class folder; give its class before {paths[0]}")
        if label is not None and file.label is not None:
            raise ValueError(
                f"{file.path} is in a class folder; leave {label!r} out to learn it as {file.label!r}"
            )
    found: list[Picture] = []
    for batch in given.batches():
        found += batch
        spec.check_number(len(found))  # of a call, which is one version
    labels = [picture.label or arguments.label for picture in found]
    with _open(arguments, new=True) as learner:
        learned = learner.learn(
            np.stack([picture.pixels for picture in found]), labels, guard=arguments.guard
        )
        counts = learner.counts
    doubts = [
        {"image": found[one.index].name, "looks": one.looks, "reason": one.reason} for one in learned.suspects
    ]
    said: dict[str, Any] = {"learned": len(found), "classes": counts, "suspects": doubts, **given.said()}
    if label is None:
        said["samples"] = {label: labels.count(label) for label in dict.fromkeys(labels)}
        what = ", ".join(f"{count} of {label!r}" for label, count in said["samples"].items())
        text = f"learned {what}; {len(counts)} classes"
    else:
        said |= {"label": arguments.label, "samples": counts[arguments.label]}
        text = f"learned {len(found)} of {arguments.label!r}, {said['samples']} samples in all; "
        text += f"{len(counts)} classes"
    for one in doubts:
        why = f"looks like {one['looks']!r}" if one["reason"] == "label" else "is unlike everything known"
        text += f"\n{one['image']} {why}; if it is wrong, "
        text += f"`{arguments.say.commands} undo` takes all of it back"
    return said, text


def _adapt(arguments: argparse.Namespace) -> tuple[Any, str]:
    if not Path(arguments.folder).is_dir():
        raise ValueError(f"{arguments.folder}: no such folder; give one with a folder for each class")
    given = _Given([arguments.folder], read_manifest(arguments.bundle).input, arguments)
    if loose := [file.path for file in given.files if file.label is None]:
        raise ValueError(
            f"{loose[0]} is in no class folder; put the images of each class into one of its name"
        )
    found = [picture for batch in given.batches() for picture in batch]
    labels = [picture.label or "" for picture in found]
    with _open(arguments) as learner:
        done = learner.adapt(
            np.stack([picture.pixels for picture in found]),
            labels,
            steps=arguments.steps,
            rate=arguments.rate,
        )
    said = {
        "version": done.number,
        "images": done.images,
        "steps": done.steps,
        "loss": [done.first, done.last],
        "weight": done.weight,
        "moved": done.moved,
        "explained": done.explained,
        **given.said(),
    }
    text = (
        f"adapted on {done.images} images of {len(done.counts)} classes, {done.steps} steps: loss "
        f"{done.first:.3g} to {done.last:.3g}; features moved by {done.moved:.1%} of their spread, and the "
        f"head followed by a map that explains {done.explained:.1%}. This is version {done.number}"
    )
    return said, text


def _forget(arguments: argparse.Namespace) -> tuple[Any, str]:
    with _open(arguments) as learner:
        form = learner.forget(arguments.label, purge=arguments.purge).form
        counts = learner.counts
    how = f" ({form})" if form else ""
    return {
        "label": arguments.label,
        "form": form,
        "classes": counts,
    }, f"forgot {arguments.label!r}{how}; {len(counts)} classes left"


def _history(arguments: argparse.Namespace) -> tuple[Any, str]:
    with _open(arguments, read_only=True) as learner:
        versions = learner.history()
    said = [
        {
            "version": version.number,
            "time": version.time.isoformat(timespec="seconds"),
            "kind": version.kind,
            "counts": dict(version.counts),
            "to": version.to,
            "form": version.form,
        }
        for version in versions
    ]
    table = [
        (str(one["version"]), str(one["time"]), _change(version))
        for one, version in zip(said, versions, strict=True)
    ]
    return {"versions": said}, _aligned(("version", "time", "change"), table)


def _change(version: Version) -> str:
    """What a version changed, for people."""
    if version.kind == "rollback":
        return f"back to {version.to}"
    counts = ", ".join(f"{count} of {label!r}" for label, count in version.counts.items())
    return f"{version.kind} {counts}".rstrip()


def _undo(arguments: argparse.Namespace) -> tuple[Any, str]:
    with _open(arguments) as learner:
        return _went_back(learner, learner.undo())


def _rollback(arguments: argparse.Namespace) -> tuple[Any, str]:
    with _open(arguments) as learner:
        return _went_back(learner, learner.rollback(arguments.version))


def _went_back(learner: EdgeLearner, version: Version) -> tuple[Any, str]:
    counts = learner.counts
    return (
        {"version": version.number, "to": version.to, "classes": counts},
        f"back to version {version.to}; {len(counts)} classes. This is version {version.number}",
    )


def _backup(arguments: argparse.Namespace) -> tuple[Any, str]:
    with _open(arguments) as learner:
        learner.backup(arguments.to)
        version = learner.version
    return {"to": arguments.to, "version": version}, f"copied version {version} to {arguments.to}"


def _migrate(arguments: argparse.Namespace) -> tuple[Any, str]:
    with _open(arguments, migrate=True) as learner:
        moved, counts = learner.migrated, learner.counts
    if moved is None:
        return {"migrated": None, "classes": counts}, "nothing to do: the state goes with this bundle already"
    said = {**asdict(moved), "kept": str(moved.kept), "forgotten": list(moved.forgotten)}
    samples, classes = sum(moved.learned.values()), len(moved.learned)
    text = f"carried over {plural(samples, 'sample')} of {plural(classes, 'class')}"
    if moved.images:  # no map, where the graph is the same
        agree = "" if moved.agreement is None else f", {moved.agreement:.0%} of classes agree"
        text += (
            f"; the map, from {moved.images} images, explains {moved.explained:.1%} of the variance{agree}"
        )
    text += f". The state as it was is {moved.kept}"
    return {"migrated": said, "classes": counts}, text


def _status(arguments: argparse.Namespace) -> tuple[Any, str]:
    with _open(arguments, read_only=True) as learner:
        manifest, counts, backend = learner.bundle.manifest, learner.counts, learner.backend
        sizes = {"graph": learner.bundle.features.stat().st_size, "head": learner.nbytes}
    if arguments.state is not None:
        sizes["state"] = Path(arguments.state).stat().st_size
    spec = manifest.input
    said = {
        "format": manifest.format,
        "everlearn": manifest.everlearn,
        "input": spec.to_dict(),
        "features": list(manifest.sections),
        "head": manifest.head,
        "parity": manifest.parity,
        "bytes": sizes,
        "backend": backend,
        "classes": counts,
    }
    lines = [
        ("format", f"{manifest.format}, written by everlearn {manifest.everlearn}"),
        (
            "input",
            f"{spec.height} x {spec.width} RGB, {_RESIZED[spec.crop]} {spec.resize}, {spec.interpolation}",
        ),
        ("features", f"{manifest.width} in sections of {', '.join(map(str, manifest.sections))}"),
        ("head", f"{manifest.head['kind']} {json.dumps(manifest.head['options'])}"),
        ("backend", backend),
        *((f"parity {name}", json.dumps(value)) for name, value in manifest.parity.items()),
        *((f"{name} bytes", f"{size:,}") for name, size in sizes.items()),
    ]
    table = [(name, f"{count:,}") for name, count in counts.items()]
    return said, _aligned(None, lines) + "\n\n" + _aligned(("class", "samples"), table)


def _delta(arguments: argparse.Namespace) -> tuple[Any, str]:
    noise = _noise(arguments)
    _check_file(arguments.to, "TO")
    with _open(arguments) as learner:
        delta = learner.delta(arguments.since, min_count=arguments.min_count, noise=noise)
    delta.save(arguments.to, key=arguments.key)
    start, end = (mark.version for mark in delta.span)
    said = {
        "path": str(arguments.to),
        "since": start,
        "version": end,
        "learned": delta.counts,
        "forgotten": list(delta.forgotten),
        "withheld": delta.withheld,
        **({} if noise is None else {"noise": noise.says(), "epsilon": delta.epsilon}),
    }
    learned = ", ".join(f"{count} of {name}" for name, count in delta.counts.items()) or "nothing"
    text = f"{arguments.to}: after version {start} up to {end}, learned {learned}"
    if delta.forgotten:
        text += f"; forgotten {', '.join(delta.forgotten)}"
    if delta.withheld:
        text += f"; withheld {delta.withheld} classes of fewer than {arguments.min_count} samples"
    if noise is not None:
        text += f"; noise of epsilon {delta.epsilon:.3g} at delta {noise.target_delta:g}"
    return said, text


def _noise(arguments: argparse.Namespace) -> GaussianNoise | None:
    given = {"--clip": arguments.clip, "--target-delta": arguments.target_delta}
    if arguments.noise is None:
        if alone := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{alone[0]} goes with --noise; give that, too")
        return None
    if arguments.clip is None:
        raise ValueError("--noise needs --clip, the length to which an image's features are shortened")
    rest = {} if arguments.target_delta is None else {"target_delta": arguments.target_delta}
    return GaussianNoise(arguments.noise, arguments.clip, **rest)


def _info(arguments: argparse.Namespace) -> tuple[Any, str]:
    facts = describe(arguments.path)
    return facts, table(facts)


def table(facts: Mapping[str, Any], *, as_json: bool = False) -> str:
    """What is known of something, see `everlearn_runtime.info.describe`, as it is printed."""
    if as_json:
        return json.dumps(facts)
    text = _aligned(None, lines(facts))
    classes = facts.get("classes") or ()
    if isinstance(classes, Mapping):
        samples = [(name, f"{count:,}") for name, count in classes.items()]
        return text + ("\n\n" + _aligned(("class", "samples"), samples) if samples else "")
    return text + ("\n\n" + "\n".join(map(shown, classes)) if classes else "")


def _benchmark(arguments: argparse.Namespace) -> tuple[Any, str]:
    Bundle.open(arguments.bundle, arguments.trust)
    cases = None
    if arguments.provider or arguments.backend != "auto":
        cases = [Case(arguments.backend, arguments.provider)]
    rows, missing = benchmark(
        arguments.bundle,
        batches=arguments.batch or (1, 16),
        seconds=arguments.seconds,
        threads=arguments.threads,
        cases=cases,
    )
    said = {"rows": [asdict(row) for row in rows], "not_run": missing}
    header = ("backend", "call", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "peak MiB", "GPU MiB")
    table = [
        (
            row.backend,
            row.call,
            str(row.batch),
            *(f"{value:.2f}" for value in (row.p50_ms, row.p90_ms, row.p99_ms)),
            f"{row.images_per_s:.0f}",
            *("-" if value is None else f"{value:.0f}" for value in (row.peak_mib, row.gpu_mib)),
        )
        for row in rows
    ]
    skipped = "".join(f"\nnot run: {name}: {reason}" for name, reason in missing.items())
    return said, _aligned(header, table) + skipped


def _serve(arguments: argparse.Namespace) -> tuple[Any, str]:
    return serve(arguments, lambda given: _open(given, new=True))


def _build(arguments: argparse.Namespace) -> tuple[Any, str]:
    from everlearn_runtime.backends.tensorrt import BATCHES, build_engine

    built = build_engine(
        Bundle.open(arguments.bundle, arguments.trust),
        batches=arguments.batch or BATCHES,
        memory=arguments.memory,
        level=arguments.level,
        sm=arguments.sm,
    )
    key = built.key
    text = (
        f"{'there already' if built.cached else 'built'}: {key.precision} engine of {built.nbytes:,} bytes, "
        f"batches of {' and '.join(map(str, key.batches))}, for {key.gpu} and {key.library}"
    )
    return {**asdict(key), "bytes": built.nbytes, "cached": built.cached}, text


class _Given:
    """The pictures in files and folders, batch by batch, and what there is to say of the others.

    Args:
        paths: As they were typed.
        spec: What the graph takes in.
        arguments: With ``strict``, to refuse all if one of them cannot be used, and ``say``.
    """

    def __init__(self, paths: Sequence[str], spec: InputSpec, arguments: argparse.Namespace) -> None:
        self.files, self.ignored = files_in(paths)
        self.bad: list[Bad] = []
        self._spec = spec
        self._strict: bool = arguments.strict
        self._say: Callable[[str], None] = arguments.say

    def batches(self) -> Iterator[list[Picture]]:
        """The pictures, at most `BATCH` together, and at their end a word about what could not be used."""
        batch: list[Picture] = []
        usable = False
        for picture in pictures(self.files, self._spec, self.bad):
            usable = True
            batch.append(picture)
            if len(batch) == BATCH:
                yield batch
                batch = []
        if self.bad and (self._strict or not usable):
            more = f"; {len(self.bad) - 1} more cannot be used" if len(self.bad) > 1 else ""
            raise ValueError(f"{self.bad[0].image}: {self.bad[0].reason}{more}")
        if batch:
            yield batch
        for one in self.bad[:MOST_NAMES]:
            self._say(f"left out {one.image}: {one.reason}")
        if len(self.bad) > MOST_NAMES:
            self._say(f"left out {len(self.bad) - MOST_NAMES} more")
        if self.ignored:
            files = "1 file that is" if len(self.ignored) == 1 else f"{len(self.ignored)} files that are"
            self._say(f"ignored {files} no image by name, such as {self.ignored[0]}")
        for path, form in misnamed(self.ignored)[:MOST_NAMES]:
            self._say(f"{path} is {form} by its content: rename it")

    def said(self) -> dict[str, Any]:
        """The same for machines."""
        return {"bad": [asdict(one) for one in self.bad], "ignored": self.ignored}


def _aligned(header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    table = [[shown(cell) for cell in row] for row in ([header, *rows] if header else rows)]
    if not table:
        return ""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


if __name__ == "__main__":
    sys.exit(main())
