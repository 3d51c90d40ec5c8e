"""Slips in the paths that were typed, told before torch is imported."""

import argparse
from pathlib import Path

from everlearn.choices import CLASS_FOLDERS
from everlearn.files import BENCH, LEARNER
from everlearn_runtime.files import check_place
from everlearn_runtime.manifest import MANIFEST

_ROOM = 32 << 20  # what a learner of the bundled backbone or its bundle takes

_OTHERS = {
    "train": {MANIFEST: "a bundle", BENCH: "a benchmark"},
    "bench": {MANIFEST: "a bundle", LEARNER: "what `everlearn train` wrote"},
}
"""What a command would put its results among, and spoil."""


def check(parsed: argparse.Namespace) -> None:
    """Raise ``ValueError`` for data that are not there, and for results that would lie among the data."""
    data, out = getattr(parsed, "data", None), getattr(parsed, "out", None)
    if data not in (None, "digits") and not Path(data).exists():
        raise ValueError(
            f"'{data}' is not a data set: no such file or folder; expected 'digits', a .npz file, or a "
            f"folder {CLASS_FOLDERS}"
        )
    if parsed.run == "report" and Path(parsed.learner).is_dir():
        check_place(parsed.learner, "RUN")
    if out is None:
        return
    if Path(out).exists() and not Path(out).is_dir():
        raise ValueError(f"--out is {out}, which is a file; give a folder")
    for file, what in _OTHERS.get(parsed.run, {}).items():
        if (Path(out) / file).is_file():
            raise ValueError(f"--out is {out}, which holds {what}; give another folder")
    check_place(out, "--out", _ROOM)
    if data is not None and Path(data).is_dir() and Path(out).resolve().is_relative_to(Path(data).resolve()):
        raise ValueError(
            f"--out is {out}, inside of the data, {data}, where the pictures of a report would be taken for "
            "a class; give a folder elsewhere"
        )
