"""What a report is made of: the runs that a folder has on record."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from everlearn.evaluation.bench import FILE, Bench
from everlearn.evaluation.run import OWN, Run, Score


def read(folder: Path) -> tuple[Bench, bool]:
    """Read what a benchmark or a training wrote.

    Returns:
        The runs, and whether they are a benchmark's; a training is one run.

    Raises:
        ValueError: when there is no run, nothing has been measured yet, or a file is damaged.
    """
    is_bench = (folder / FILE).is_file()
    found = Bench.read(folder) if is_bench else _of_training(folder)
    if not found.runs:
        raise ValueError(f"{folder} has no finished run yet; the same bench command goes on with it")
    return found, is_bench


def own(run: Run) -> Score:
    """The score of a run's own head."""
    return run.scores[OWN]


def by_method(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of each method, the best at the end of the stream first."""
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    return sorted(methods.values(), key=lambda seeds: -sum(own(run).last for run in seeds) / len(seeds))


def _of_training(folder: Path) -> Bench:
    """What ``everlearn train`` wrote, as far as it is, as a benchmark of one run."""
    run = Run.read(folder)
    if not run.measured:
        raise ValueError(f"{folder} has not finished its first task; the same train command goes on with it")
    sizes = run.tasks[: own(run).tasks]
    so_far = replace(run, tasks=sizes, classes=run.classes[: sum(sizes)])
    about = {name: run.record[name] for name in ("backbone", "augmentation", "precision")}
    return Bench(about | run.settings, (so_far,), run.everlearn)
