"""What the benchmarks on class-incremental streams share: one training, many heads, one table."""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from everlearn import LDA, AccuracyMatrix, ClassIncremental, Learner, Prototypes, Ridge
from everlearn_runtime.heads import Head

HEADS: dict[str, Callable[[int], Head]] = {
    "prototypes": lambda seed: Prototypes(),
    "LDA": lambda seed: LDA(),
    "ridge": lambda seed: Ridge(),
    "ridge, 2,000 random features": lambda seed: Ridge(projection=2000, seed=seed),
}


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


class SideBySide(Prototypes):
    """Prototypes that let other heads learn from the same features."""

    def __init__(self, options: dict[str, Any], others: Mapping[str, Head]) -> None:
        super().__init__(**options)
        self.others = others

    def update(self, features: ArrayLike, labels: Sequence[str]) -> None:
        """Learn, and let the others learn."""
        super().update(features, labels)
        for head in self.others.values():
            head.update(features, labels)

    def carry(self, before: ArrayLike, after: ArrayLike) -> None:
        """Move along, and let the others move along."""
        super().carry(before, after)
        for head in self.others.values():
            head.carry(before, after)


def measure(
    learner: Learner, stream: ClassIncremental, *, heads: Sequence[str] = tuple(HEADS), name: str = ""
) -> dict[str, dict[str, Any]]:
    """Learn a stream once, and give the figures of every head on the same features.

    The learner's own head makes way for prototypes, in the method's sections where it has some.

    Returns:
        For each head: average (A_bar), last (A_T), forgetting, seconds of learning, bytes kept
        between tasks, and the accuracy matrix.
    """
    own = learner.head.options if isinstance(learner.head, Prototypes) else {}
    others = {head: HEADS[head](learner.seed) for head in heads if head != "prototypes"}
    learner.head = SideBySide(own, others)
    all_heads: dict[str, Head] = {"prototypes": learner.head, **others}
    matrices = {head: AccuracyMatrix() for head in heads}
    seconds = 0.0
    for task in stream:
        start = time.perf_counter()
        learner.fit(task.train)
        seconds += time.perf_counter() - start
        features = learner.features(task.test_so_far)
        labels = np.array(task.test_so_far.labels)
        tasks = [np.isin(labels, stream[index].classes) for index in range(task.index + 1)]
        for head, matrix in matrices.items():
            right = np.array(all_heads[head].predict(features)) == labels
            matrix.record([float(right[at].mean()) for at in tasks], [int(at.sum()) for at in tasks])
        seen = ", ".join(f"{head} {100 * matrix.last:.1f}" for head, matrix in matrices.items())
        print(f"{name}: task {task.index + 1}, {seconds:.0f} s: {seen}", flush=True)
    kept = sum(value.nbytes for value in learner.method.learned().values())
    return {
        head: {
            "average": matrix.average,
            "last": matrix.last,
            "forgetting": matrix.forgetting,
            "seconds": seconds,
            "bytes": kept + all_heads[head].nbytes,
            "matrix": matrix.to_dict(),
        }
        for head, matrix in matrices.items()
    }


def remembered(file: Path, make: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Results that are there already, or those of ``make(*arguments)``, which are then there."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        results = make(*arguments)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(results))
        partial.replace(file)
    return cast(dict[str, Any], json.loads(file.read_text()))


def table(rows: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> str:
    """Mean and standard deviation over the seeds of each (method, head); accuracies in percent."""
    width = max(len(method) for method, _ in rows) + 2
    titles = ("A_bar", "A_T", "forgetting", "seconds", "MB kept", "seeds")
    lines = [f"{'method':{width}}{'head':32}" + "".join(f"{title:>15}" for title in titles)]
    for (method, head), seeds in rows.items():
        cells = []
        for figure in ("average", "last", "forgetting"):
            values = 100 * np.array([row[figure] for row in seeds])
            cells.append(f"{values.mean():.2f} ± {values.std():.2f}")
        cells.append(f"{np.mean([row['seconds'] for row in seeds]):.0f}")
        cells.append(f"{np.mean([row['bytes'] for row in seeds]) / 1e6:.2f}")
        cells.append(str(len(seeds)))
        lines.append(f"{method:{width}}{head:32}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)
