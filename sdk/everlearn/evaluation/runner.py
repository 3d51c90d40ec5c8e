"""A learner on a stream, measured: the one loop over tasks, for training and benchmarks alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everlearn import checkpoint, processes
from everlearn.data import ClassIncremental, Images, Task
from everlearn.evaluation.beside import Beside
from everlearn.evaluation.exported import check_exported, on_a_device, row_of
from everlearn.evaluation.metrics import confusion, task_accuracy, within_task_accuracy
from everlearn.evaluation.run import FILE, OWN, Figures, Run, Score
from everlearn_runtime.heads import Head

if TYPE_CHECKING:
    from everlearn.learner import Learner


def measure(
    learner: Learner,
    stream: ClassIncremental,
    *,
    folder: str | Path | None = None,
    heads: Mapping[str, Head] | None = None,
    exported: Sequence[str] = (),
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    after_task: Callable[[str], None] = lambda line: None,
) -> Run:
    """Learn a stream, and measure all tasks seen so far after each.

    A method that takes all tasks `at_once` learns the stream as one task, and has figures for the
    end only. In ``folder`` lie the learner, the run's figures (`Run.read`) and the heads beside the
    learner's own; a learner that `Learner.load` gives back of it goes on from there.

    Args:
        learner: a fresh one, or one of ``folder``.
        stream: the tasks.
        folder: for checkpoints; None keeps nothing.
        heads: further heads by name, which learn from the same features and are measured alike.
        exported: precisions in which the learner is exported after each task, see `Learner.export`; the
            figures of each are those of the bundle's own graph and head on the test images, in rows named
            ``"exported fp32"`` and so on, whose bytes are those of the bundle.
        name: of the method; that of its class when left out.
        settings: what to write down of the run beside the learner's own record, as plain data, and to
            find again when it goes on; by default a fingerprint of the images.
        after_task: is told in one line how far it is.

    Raises:
        ValueError: when the learner has learned other tasks than the stream's, the folder has no
            figures of them, or the images of the stream are not those that it was begun with.
        ParityError: when an exported graph is not near enough to the model.
    """
    precisions = check_exported(exported)
    at_once = learner.method.at_once
    learning = stream.at_once() if at_once else stream
    path = None if folder is None else Path(folder)
    run = Run(
        method=name or type(learner.method).__name__,
        seed=learner.seed,
        record=learner.record(),
        classes=list(stream.classes),
        tasks=[len(classes) for classes in stream.tasks],
        scores={},
        device=str(learner.device),
        settings=dict(settings or _about(learner, stream)),
    )
    beside = Beside(heads or {})
    if learner.started:
        begun = Run.read(path) if path is not None and (path / FILE).is_file() else None
        _check_tasks(learner, learning, run, begun)
        run, beside = _going_on(path, run, begun, beside, learner)
    elif path is not None:
        _check_readable(path)
        learner.save(path)  # so that nothing of an earlier run in this folder is taken for this one's
        _write(run, path)
    for index in range(len(learning.tasks)):
        if index == run.measured:
            _learn(learner, learning[index], beside, path)
            seen = len(stream) if at_once else index + 1
            test, classes = stream[seen - 1].test_so_far, stream.tasks[:seen]
            run = _with_figures(run, learner, beside, figures(learner, beside.heads, test, classes))
            run = _with_exported(run, learner, precisions, learning[index].train, test, classes)
            learner.tell({"task": index + 1, "accuracy": run.scores[OWN].rows[-1].seen}, path)
            if path is not None:
                _write(run, path)
        after_task(f"task {index + 1}: {100 * run.scores[OWN].rows[index].seen:.1f} %")
    return run


def as_it_stands(learner: Learner, test: Images) -> Run:
    """The figures of a learner that was not measured while it learned: those of its last model.

    Args:
        learner: after at least one task.
        test: images of its classes; others are left out.
    """
    if not learner.classes:
        raise ValueError("the learner knows no class, so there is nothing to measure; call fit first")
    known = set(learner.classes)  # a class that was forgotten is in a task, and is not known
    images = test.of_classes(name for name in test.classes if name in known)
    tasks: list[list[str]] = []
    for names in ([name for name in task if name in known] for task in learner.tasks):
        if tasks and not all(map(set(images.classes).intersection, (names, tasks[-1]))):
            tasks[-1] += names  # as a stream has it: no task without a test image
        elif names:
            tasks.append(names)
    run = Run(
        method=type(learner.method).__name__,
        seed=learner.seed,
        record=learner.record(),
        classes=[name for names in tasks for name in names],
        tasks=[len(names) for names in tasks],
        scores={},
        device=str(learner.device),
        settings={"fingerprint": learner.backbone.fingerprint()},
    )
    return _with_figures(run, learner, Beside({}), figures(learner, {}, images, tasks))


def figures(
    learner: Learner, heads: Mapping[str, Head], images: Images, tasks: Sequence[Sequence[str]]
) -> dict[str, Figures]:
    """The figures of a learner's head (as `OWN`) and of others, as they stand.

    Args:
        learner: whose features they see.
        heads: further ones by name.
        images: test images of all classes of the tasks.
        tasks: the classes of each.
    """
    features = learner.features(images)
    return {
        name: _figures_of(head, features, images, tasks)
        for name, head in {OWN: learner.head, **heads}.items()
    }


def _figures_of(
    head: Head, features: NDArray[np.float32], images: Images, tasks: Sequence[Sequence[str]]
) -> Figures:
    labels = np.array(images.labels)
    order = [name for classes in tasks for name in classes]
    members = [images.targets_in(classes) >= 0 for classes in tasks]
    scores = head.scores(features)
    predicted = np.array(head.classes)[scores.argmax(axis=1)]
    right = predicted == labels
    counts = confusion(predicted.tolist(), images.labels, order)
    return Figures(
        seen=float(right.mean()),
        accuracies=[float(right[here].mean()) for here in members],
        images=[int(here.sum()) for here in members],
        task_id=task_accuracy(predicted.tolist(), images.labels, tasks),
        within_task=within_task_accuracy(scores, head.classes, images.labels, tasks),
        confusion=[[*place, int(counts[tuple(place)])] for place in np.argwhere(counts).tolist()],
    )


def _about(learner: Learner, stream: ClassIncremental) -> dict[str, Any]:
    return {"data": stream.fingerprints(), "fingerprint": learner.backbone.fingerprint()}


def _learn(learner: Learner, task: Task, beside: Beside, path: Path | None) -> None:
    """Learn a task, as far as it has not been learned."""
    if task.index == len(learner.tasks):
        if beside.heads and learner.unfinished is None:
            beside.begin(learner, task.train)
            _save(beside, path)
        learner.fit(task.train, checkpoint=path)
    if beside.heads and task.index == beside.tasks:
        beside.end(learner, task.train)
        _save(beside, path)


def _with_figures(run: Run, learner: Learner, beside: Beside, found: Mapping[str, Figures]) -> Run:
    kept = sum(value.nbytes for value in learner.method.learned().values())
    scores = dict(run.scores)
    for name, head in {OWN: learner.head, **beside.heads}.items():
        score = run.scores.get(name, Score(head.kind, (), 0))
        scores[name] = score.and_then(found[name], kept + head.nbytes)
    return replace(
        run,
        record=learner.record(),
        scores=scores,
        seconds=sum(one.seconds for one in learner.history),
        trained=max(one.parameters for one in learner.history),
    )


def _with_exported(
    run: Run,
    learner: Learner,
    precisions: Sequence[str],
    known: Images,
    images: Images,
    tasks: Sequence[Sequence[str]],
) -> Run:
    scores = dict(run.scores)
    for precision in precisions:
        head, features, size = on_a_device(learner, precision, known, images)
        score = scores.get(row_of(precision), Score(head.kind, (), 0))
        scores[row_of(precision)] = score.and_then(_figures_of(head, features, images, tasks), size)
    return replace(run, scores=scores)


def _check_readable(path: Path) -> None:
    """Refuse to write over what this version cannot read: it may be worth something to its owner."""
    for file, read in ((checkpoint.FILE, checkpoint.read), (FILE, Run.read)):
        if (path / file).exists():
            try:
                read(path)
            except ValueError as error:
                raise ValueError(
                    f"{error}; it is not written over: move it away, or give another folder"
                ) from None


def _check_tasks(learner: Learner, learning: ClassIncremental, run: Run, begun: Run | None) -> None:
    if begun is not None and begun.tasks != run.tasks:
        raise ValueError(
            f"this run was begun with tasks of {', '.join(map(str, begun.tasks))} classes, not of "
            f"{', '.join(map(str, run.tasks))}; go on with the same, or begin again in another folder"
        )
    for index, (classes, done) in enumerate(zip(learning.tasks, learner.tasks, strict=False)):
        if set(classes) != set(done):
            raise ValueError(
                f"task {index + 1} of the stream has the classes {', '.join(sorted(classes))}, "
                f"but this learner learned {', '.join(sorted(done))} there; give the stream it began with"
            )


def _going_on(
    path: Path | None, run: Run, begun: Run | None, beside: Beside, learner: Learner
) -> tuple[Run, Beside]:
    """The run of a folder as far as it is, and the heads beside."""
    done = len(learner.tasks)
    if begun is not None:
        differs = _difference(begun, run)
        if differs:
            raise ValueError(
                f"{path} was begun with {differs}; go on with the same, or begin again in another folder"
            )
        run = replace(run, scores=begun.scores, seconds=begun.seconds, trained=begun.trained)
    if not done - 1 <= run.measured <= done:
        raise ValueError(
            f"this learner has finished {done} tasks, but the accuracies after task {run.measured + 1} "
            "are not on record; start again with a fresh learner"
        )
    if beside.heads:
        if path is None:
            raise ValueError("heads beside a learner that has begun need the folder it was begun in")
        kept = Beside.load(path)
        if list(kept.heads) != list(beside.heads) or not done - 1 <= kept.tasks <= done:
            raise ValueError(
                f"{path} has the heads {', '.join(kept.heads)} after {kept.tasks} tasks, not "
                f"{', '.join(beside.heads)} after {done}; start again in another folder"
            )
        beside = kept
    return run, beside


def _difference(begun: Run, run: Run) -> str:
    if begun.classes != run.classes:
        return "the classes in another order"
    for key in begun.settings.keys() | run.settings.keys():
        before, now = begun.settings.get(key), run.settings.get(key)
        if before != now:
            return "other images" if key == "data" else f"{key} {before}, not {now}"
    return ""


def _write(run: Run, path: Path) -> None:
    if processes.is_main():
        run.write(path)


def _save(beside: Beside, path: Path | None) -> None:
    if path is not None and processes.is_main():
        beside.save(path)
