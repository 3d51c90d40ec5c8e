"""What a report is made of: the runs that a folder has on record."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from everlearn.checkpoint import summary
from everlearn.data import Images
from everlearn.evaluation.bench import FILE, Bench
from everlearn.evaluation.metrics import AccuracyMatrix
from everlearn.evaluation.runner import OWN, Run, Score, figures
from everlearn.files import read_json
from everlearn.learner import Learner


def read(folder: Path, learner: Learner | None = None, test: Images | None = None) -> tuple[Bench, bool]:
    """Read what a benchmark or a training wrote.

    Args:
        folder: of the run.
        learner: of a training, to measure what its record does not say.
        test: the test images of its classes, for that.

    Returns:
        The runs, and whether they are a benchmark's; a training is one run.

    Raises:
        ValueError: when there is no run, nothing has been measured yet, or a file is damaged.
    """
    is_bench = (folder / FILE).is_file()
    found = Bench.read(folder) if is_bench else _of_training(folder, learner, test)
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


def _of_training(folder: Path, learner: Learner | None, test: Images | None) -> Bench:
    """What ``everlearn train`` wrote, as a benchmark of one run."""
    about = summary(folder)
    tasks = about["tasks"]
    if not tasks:
        raise ValueError(f"{folder} has not finished its first task; the same train command goes on with it")
    record, count = folder / "accuracy.json", len(tasks)
    row: Mapping[str, Any] = {}
    if learner is not None and test is not None:
        classes = [name for task in learner.tasks for name in task]
        row = figures(learner, test.of_classes(classes), learner.tasks)[OWN]
    if record.is_file():
        matrix = AccuracyMatrix.from_dict(read_json(record, "an accuracy matrix"))
    elif row:
        matrix = AccuracyMatrix()
        if count == 1:
            matrix.record(row["accuracies"], row["images"])
    else:
        raise ValueError(f"{folder} has no accuracy.json; name the data, too, to have the learner measured")
    measured = len(matrix)
    if measured:
        values = [[float(v) if v == v else None for v in line] for line in matrix.values[:measured]]
        seen: list[float | None] = [float(value) for value in matrix.seen]
        images, last = list(matrix.images), matrix.last
        average: float | None = matrix.average
        forgetting = matrix.forgetting if measured > 1 else None
    else:
        values = [[None] * count for _ in range(count - 1)] + [row["accuracies"]]
        seen, images, last = [None] * (count - 1) + [row["seen"]], row["images"], row["seen"]
        average = forgetting = None
    gap: list[float | None] = [None] * (len(seen) - 1)
    score = Score(
        kind=about["head"]["kind"],
        matrix=values,
        images=images,
        seen=seen,
        task_id=[*gap, row.get("task_id")],
        within_task=[*gap, row.get("within_task")],
        average=average,
        last=last,
        forgetting=forgetting,
        confusion=row.get("confusion", []),
        bytes=about["bytes"],
    )
    settings = {name: about[name] for name in ("backbone", "fingerprint", "augmentation", "precision")}
    run = Run(
        method=about["method"]["name"],
        seed=about["seed"],
        record={name: about[name] for name in ("method", "training", "tasks")},
        classes=[name for classes in tasks for name in classes],
        tasks=[len(classes) for classes in tasks],
        scores={OWN: score},
        seconds=about["effort"].get("seconds", 0.0),
        reused=None,
        trained=about["effort"].get("trained", 0),
        device="",
    )
    return Bench(settings, (run,), about["everlearn"])
