"""What the benchmarks on class-incremental streams share: options, and results that stay."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from everlearn.evaluation.run import Run
from everlearn.files import read_json, write_json


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every such benchmark has."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("data", metavar="DATA.npz")
    options.add_argument("--out", type=Path, required=True, help="folder for the results")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--precision", choices=["fp32", "bf16"], default="bf16", help="of training")
    return options


def remembered(file: Path, make: Callable[..., Run], *arguments: Any) -> Run:
    """A run that is there already, or that of ``make(*arguments)``, which is then there."""
    if not file.is_file():
        write_json(file, make(*arguments).to_dict())
    return Run.from_dict(read_json(file, "a run"))
