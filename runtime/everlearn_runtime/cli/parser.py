"""The arguments of ``everlearn-device``."""

from __future__ import annotations

import argparse
from typing import Any

from everlearn_runtime.adapt import RATE, STEPS
from everlearn_runtime.backends import BACKENDS, Provider
from everlearn_runtime.cli import handing, learning, running, telling, versions
from everlearn_runtime.edge import FALSE_ALARM
from everlearn_runtime.serving.command import add_options
from everlearn_runtime.spoken import DEVICE
from everlearn_runtime.version import __version__

_ALL_OR_NOTHING = f"; the change is made or not, never in part: `{DEVICE} history` says which"

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


def make_parser(program: str) -> argparse.ArgumentParser:
    """What can be typed after a program's name; ``run`` of what was is the command's function."""

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
    predict = command("predict", learning.predict, "classify images")
    predict.add_argument("images", **images)
    predict.add_argument("--top", type=int, default=3, metavar="K", help="show K classes; default 3")
    predict.add_argument(
        "--false-alarm",
        type=float,
        default=FALSE_ALARM,
        metavar="SHARE",
        help=f"of images of known classes that may be called unknown; default {FALSE_ALARM}",
    )
    learn = command(
        "learn", learning.learn, "learn images of one class, or of class folders, old classes or new"
    )
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
    adapt = command("adapt", learning.adapt, "train the adapters on, with images of known classes")
    adapt.add_argument("folder", metavar="DIR", help="images in one folder for each class, named after it")
    adapt.add_argument("--steps", type=int, default=STEPS, help=f"of the training; default {STEPS}")
    adapt.add_argument("--rate", type=float, default=RATE, help=f"of the training; default {RATE}")
    forget = command("forget", learning.forget, "drop a class")
    forget.add_argument("label", metavar="LABEL")
    status = command("status", telling.status, "what is known and how much room it takes")
    info = commands.add_parser(
        "info",
        help="what a bundle, a state or a delta is",
        description="what a bundle, a state or a delta is",
        epilog=examples("info"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    info.set_defaults(run=telling.info)
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
    history = command("history", versions.history, "the versions that can be gone back to")
    undo = command("undo", versions.undo, "take back the last change")
    rollback = command("rollback", versions.rollback, "go back to an earlier version")
    rollback.add_argument("version", metavar="VERSION", type=int, help="its number, see history")
    backup = command("backup", versions.backup, "copy the state")
    backup.add_argument("to", metavar="TO", help="the copy's place")
    delta = command("delta", handing.delta, "hand in what was learned, as sums, for `everlearn merge`")
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
    bench = command("benchmark", telling.measure, "measure predict and learn on every backend that is there")
    bench.add_argument(
        "--batch", type=int, action="append", metavar="N", help="images a call; 1 and 16 by default"
    )
    bench.add_argument("--seconds", type=float, default=3.0, help="for each measurement; 3 by default")
    build = command("build", running.build, "build the TensorRT engine of the graph, for this user", plain)
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
    migrate = command(
        "migrate", versions.migrate, "carry over what was learned with the bundle before this one"
    )
    page = command("serve", running.serve_page, "a page to teach it from, and an API for other programs")
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
