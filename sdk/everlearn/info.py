"""What a run or a benchmark is, read from its files without torch: ``everlearn info``."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from everlearn.files import BENCH, LEARNER, RUN, read_json


def is_run(path: Path) -> bool:
    """Whether ``everlearn train``, ``everlearn bench`` or `Learner.save` wrote this folder."""
    return any((path / name).is_file() for name in (LEARNER, RUN, BENCH))


def describe(path: str | Path) -> dict[str, Any]:
    """What is known of a run, as plain data.

    Args:
        path: a folder for which `is_run`.

    Raises:
        ValueError: a file is damaged.
    """
    folder = Path(path)
    size = {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()}
    if (folder / BENCH).is_file():
        return {"what": "benchmark", "path": str(path), **_bench(folder), "bytes": size}
    said: dict[str, Any] = {"what": "run", "path": str(path)}
    if (folder / LEARNER).is_file():
        said |= _learner(folder / LEARNER)
    if (folder / RUN).is_file():
        said |= _figures(read_json(folder / RUN, "a run"))
    classes = said.pop("classes", [])
    return {**said, "bytes": size, "classes": classes}


def _learner(file: Path) -> dict[str, Any]:
    """What a saved learner says of itself, in the header of its file."""
    try:
        with safe_open(file, "numpy") as stored:
            about = json.loads((stored.metadata() or {})["everlearn"])
        made, unfinished = about["settings"], about["unfinished"]
        return {
            "format": about["format"],
            "everlearn": about["everlearn"],
            "backbone": (made["backbone"] or {}).get("name"),
            "method": made["method"]["name"],
            "method_options": made["method"]["config"],
            "head": about["head"]["kind"],
            "head_options": about["head"]["options"],
            "training": made["training"],
            "precision": made["precision"],
            "seed": made["seed"],
            "tasks": len(about["history"]),
            "images": sum(lesson["images"] for lesson in about["history"]),
            "seconds": round(sum(lesson["seconds"] for lesson in about["history"]), 1),
            "unfinished": None if unfinished is None else f"a task, after epoch {unfinished['epochs']}",
            "classes": list(about["head"]["classes"]),
        }
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is damaged or no saved learner ({error!r}); go back to a copy of it"
        ) from error


def _figures(run: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run's own head, as far as it is."""
    try:
        own = run["scores"].get("own", {})
        measured = len(own.get("rows", ()))
        return {"measured": f"{measured} of {len(run['tasks'])} tasks", **own.get("summary", {})}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the figures in {RUN} are damaged ({error!r}); go back to a copy of it") from error


def _bench(folder: Path) -> dict[str, Any]:
    data = read_json(folder / BENCH, "a benchmark")
    try:
        runs = [(run["method"], run["seed"], run["scores"]["own"]["summary"]["A_T"]) for run in data["runs"]]
        return {
            "format": data["format"],
            "everlearn": data["everlearn"],
            "runs": len(runs),
            "A_T": {f"{method}, seed {seed}": last for method, seed, last in runs},
            "settings": data["settings"],
        }
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / BENCH} is damaged ({error!r}); the bench that made it makes it again"
        ) from error
