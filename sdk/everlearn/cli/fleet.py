"""The commands for many devices: keys, sign and merge. They need numpy, not torch."""

import argparse
from pathlib import Path

from everlearn_runtime import signing
from everlearn_runtime.bundle import sign_bundle
from everlearn_runtime.files import check_place
from everlearn_runtime.fleet import merge
from everlearn_runtime.fleet.merging import ANCESTORS
from everlearn_runtime.words import plural


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add them to the parser of ``everlearn``."""
    keys = commands.add_parser("keys", help="make a pair of keys to sign with")
    makes = keys.add_subparsers(required=True, metavar="WHAT")
    new = makes.add_parser(
        "new",
        help="a new pair: PATH and PATH.pub",
        epilog="example:\n  everlearn keys new maker",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    new.set_defaults(run="keys")
    new.add_argument("path", metavar="PATH", help="where the private key goes")

    sign = commands.add_parser("sign", help="sign a bundle")
    sign.set_defaults(run="sign")
    sign.add_argument("bundle", metavar="BUNDLE")
    sign.add_argument("--key", metavar="KEY", required=True, help="the private key, see: everlearn keys new")

    add = commands.add_parser("merge", help="add what devices have learned to their bundle")
    add.set_defaults(run="merge")
    add.add_argument("bundle", metavar="BUNDLE", help="the bundle on which they have learned")
    add.add_argument("deltas", metavar="DELTA", nargs="+", help="files of: everlearn-device delta")
    add.add_argument("--out", metavar="BUNDLE2", required=True, help="the new bundle")
    add.add_argument(
        "--trust",
        action="append",
        metavar="KEY.pub",
        help="public key, one of which must have signed each delta; without, no signature is looked at",
    )
    add.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    add.add_argument(
        "--ancestors",
        type=int,
        default=ANCESTORS,
        metavar="N",
        help="devices that missed up to N bundles, this one among them, can take it; default %(default)s",
    )
    add.add_argument("--ray", action="store_true", help="add up on Ray Data")


def run(arguments: argparse.Namespace) -> str:
    """Run one of them, and say what came of it."""
    if arguments.run == "keys":
        private, public = signing.new_keys(arguments.path)
        return f"{private} signs, keep it to yourself; {public} goes to the devices"
    if arguments.run == "sign":
        return f"{arguments.bundle} is signed by key {sign_bundle(arguments.bundle, arguments.key)}"
    check_place(arguments.out, "--out")
    merged = merge(
        arguments.bundle,
        arguments.deltas,
        arguments.out,
        trust=arguments.trust,
        overwrite=arguments.overwrite,
        ray=arguments.ray,
        ancestors=arguments.ancestors,
    )
    learned = ", ".join(f"{count} of {name}" for name, count in merged.learned.items()) or "nothing new"
    lines = [f"{Path(arguments.out)}: {plural(merged.deltas, 'delta')}, {learned}"]
    if merged.forgotten:
        lines.append(f"forgotten: {', '.join(merged.forgotten)}")
    if merged.counted:
        lines.append(f"counted already: {', '.join(merged.counted)}")
    lines += [f"two classes that look alike: {one!a} and {other!a}" for one, other in merged.alike]
    for device, told in merged.told.items():
        lines.append(
            f"noise: files of device {device} are of the same versions, and together tell as much as epsilon "
            f"{told.epsilon:.3g} at delta {told.delta:.3g}"
        )
    return "\n".join(lines)


NAMES = ("keys", "sign", "merge")
