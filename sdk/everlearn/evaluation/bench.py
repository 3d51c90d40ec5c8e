"""Methods beside each other: every method, with every seed, on one stream.

    from everlearn import npz
    from everlearn.bench import bench

    print(bench(*npz("data.npz"), "runs/", classes_per_task=10, seeds=[0, 1, 2]).table())

or ``everlearn bench DATA --out RUN``. What is finished stays: the same call goes on where a
stopped one was.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from tqdm.auto import tqdm

from everlearn import checkpoint, processes
from everlearn import methods as all_methods
from everlearn import precision as precisions
from everlearn.backbones import Backbone, resolve
from everlearn.checks import whole
from everlearn.choices import BUNDLED, HEADS
from everlearn.data import Augmentation, ClassIncremental, Images, as_images
from everlearn.evaluation import beside
from everlearn.evaluation.cache import CachedLearner, FeatureStore
from everlearn.evaluation.exported import check_exported
from everlearn.evaluation.left import Left
from everlearn.evaluation.run import FILE as RUN
from everlearn.evaluation.run import OWN, Run
from everlearn.evaluation.runner import measure
from everlearn.files import BENCH, read_json, write_json
from everlearn.learner import DEFAULT_AUGMENTATION, Learner
from everlearn.methods.base import Method
from everlearn.tables import aligned, seconds, spread
from everlearn.training import Training
from everlearn_runtime.version import __version__

FILE = BENCH
FORMAT = 2

MakeMethod = Callable[[], Method]
_SETTINGS = tuple(one.name for one in fields(Training))


@dataclass(frozen=True)
class Bench:
    """The figures of all runs.

    Attributes:
        settings: what all runs have in common: data, tasks, backbone, training.
        runs: in the order in which they were asked for.
        version: of everlearn, that wrote them.
    """

    settings: dict[str, Any]
    runs: tuple[Run, ...]
    version: str = __version__

    @classmethod
    def read(cls, folder: str | Path) -> "Bench":
        """Read what `bench` wrote; ``ValueError`` when nothing is there, or it is damaged."""
        file = Path(folder) / FILE
        if not file.is_file():
            raise ValueError(f"no benchmark is at {folder}; expected the file {FILE} there")
        data = read_json(file, "a benchmark")
        if data.get("format") != FORMAT:
            raise ValueError(
                f"{file} has format {data.get('format')!r}, by everlearn {data.get('everlearn')}; this one "
                f"reads format {FORMAT}: pip install the version that wrote it, or give another folder"
            )
        try:
            runs = tuple(Run.from_dict(run) for run in data["runs"])
            return cls(data["settings"], runs, data["everlearn"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file} is damaged ({error}); delete it, and the bench that made it makes it again"
            ) from error

    def write(self, folder: str | Path) -> None:
        """Write everything as one JSON file into a folder."""
        data = {
            "format": FORMAT,
            "everlearn": self.version,
            "settings": self.settings,
            "runs": [run.to_dict() for run in self.runs],
        }
        write_json(Path(folder) / FILE, data)

    def rows(self) -> dict[tuple[str, str], list[Run]]:
        """The runs of each (method, head), over the seeds."""
        rows: dict[tuple[str, str], list[Run]] = {}
        for run in self.runs:
            for head in run.scores:
                rows.setdefault((run.method, head), []).append(run)
        return rows

    def table(self) -> str:
        """Aligned text: mean and standard deviation over the seeds for each method and head.

        Accuracies are in percent, with the figures of `everlearn.evaluation.run.Score`; "params" is the
        largest number of parameters that a task has trained.
        """
        titles = ("A_bar", "A_T", "forgetting", "task id", "within task", "params", "MB kept", "seconds")
        rows = [["method", "head", *titles, "seeds"]]
        for (method, head), runs in self.rows().items():
            name = head if head != OWN else f"{OWN} ({runs[0].scores[head].kind})"
            *figures, time = cells(runs, head)
            if runs[0].reused is not None:
                time += f" + {seconds(runs[0].reused)}*"
            rows.append([method, name, *figures, time, str(len(runs))])
        lines = [aligned(rows, left=[0, 1])]
        if any(run.reused is not None for run in self.runs):
            lines.append(
                "* features computed once for all methods and seeds that share them: "
                "learning alone + the training images' features"
            )
        return "\n".join(lines)


def cells(runs: Sequence[Run], head: str) -> list[str]:
    """What a table has of one method and head over the seeds, as text.

    A_bar, A_T, forgetting, right task and within the task, in percent; parameters trained, MB kept,
    seconds of learning.
    """
    scores = [run.scores[head] for run in runs]
    return [
        spread([score.average for score in scores]),
        spread([score.last for score in scores]),
        spread([score.forgetting for score in scores]),
        spread([score.task_id[-1] for score in scores]),
        spread([score.within_task[-1] for score in scores]),
        f"{max(run.trained for run in runs):,}",
        f"{np.mean([score.bytes for score in scores]) / 1e6:,.2f}",
        seconds(float(np.mean([run.seconds for run in runs]))),
    ]


def bench(
    train: object,
    test: object,
    out: str | Path,
    *,
    classes_per_task: int,
    first: int | None = None,
    methods: Sequence[str] | Mapping[str, MakeMethod] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    heads: Sequence[str] = (),
    exported: Sequence[str] = (),
    backbone: str | Backbone = BUNDLED,
    weights: str | Path | None = None,
    augmentation: Augmentation | None = DEFAULT_AUGMENTATION,
    precision: str = "fp32",
    device: str | None = None,
    workers: int = 0,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
    finished: Callable[[Run, Learner], None] = lambda run, learner: None,
    **training: Any,
) -> Bench:
    """Learn one stream with every method and every seed, and measure all of them alike.

    A seed sets the order of the classes, initial values, batches and augmentation. All methods
    have one seed before the next one begins. In ``out`` lie ``bench.json`` with every figure, a
    folder for each run under ``runs``, and under ``features`` what methods share that train
    nothing. Whatever stops it, the same call goes on; more methods or seeds may be asked for later.

    Args:
        train, test: data sets with the same classes, see `as_images`.
        out: folder for the results.
        classes_per_task, first: see `ClassIncremental`.
        methods: names among ``everlearn.methods``, all of them by default; or what makes each, by
            any name.
        seeds: whole numbers of at least 0.
        heads: names in `everlearn.choices.HEADS`, to learn from every method's features beside
            its own head.
        exported: precisions in which every method is exported after each task, and measured as a device
            would, see `everlearn.evaluation.runner.measure`.
        backbone, weights, augmentation, precision, device, workers, progress: see `Learner`.
        say: is told in one line what was done and what was reused.
        finished: is given each run and its learner when it is done, to export it, say; a run counts
            as finished when this has returned.
        training: what replaces the methods' own settings, such as ``epochs``; see `Training`.

    Raises:
        ValueError: for what cannot be; when ``out`` was begun with other settings; and, after all
            other runs are done, when some were given up because their loss was not finite.
    """
    makers = _makers(methods)
    unknown = [name for name in heads if name not in HEADS]
    if unknown:
        raise ValueError(f"no head is named {unknown[0]!r}; take some of {', '.join(HEADS)}")
    lower = check_exported(exported)
    if isinstance(seeds, (str, bytes)) or not isinstance(seeds, Iterable):
        raise ValueError(f"seeds is {seeds!r}; give a list of whole numbers")
    seeds = [whole("a seed", seed, least=0) for seed in seeds]
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds are {seeds}; give at least one, and each once")
    if odd := training.keys() - set(_SETTINGS):
        raise ValueError(f"there is no setting {sorted(odd)[0]!r}; training has {', '.join(_SETTINGS)}")
    training = {
        name: value.item() if isinstance(value, np.generic) else value for name, value in training.items()
    }
    data = as_images(train), as_images(test)
    streams = {seed: ClassIncremental(*data, classes_per_task, first=first, seed=seed) for seed in seeds}
    trunk = resolve(backbone, weights)
    precision = precisions.resolve(precision, processes.join(device))
    here = {"device": device, "workers": workers, "progress": progress}

    def fresh(name: str, seed: int) -> CachedLearner:
        settings = {"augmentation": augmentation, "precision": precision, **here, **training}
        return CachedLearner(trunk, makers[name](), seed=seed, **settings)

    # Whether every method can be made at all is said before hours of learning, not after.
    records = {name: fresh(name, seeds[0]).record() for name in makers}
    if processes.count() > 1:
        raise ValueError(
            f"a benchmark is made by one process, not {processes.count()}; leave the launcher out"
        )
    digests = [_digest(part, progress) for part in data]
    settings = {
        "data": digests,
        "images": [len(part) for part in data],
        "classes_per_task": int(classes_per_task),
        "first": None if first is None else int(first),
        "heads": list(heads),
        **({"exported": lower} if lower else {}),
        "backbone": asdict(trunk.spec) if trunk.spec else None,
        "fingerprint": trunk.fingerprint(),
        "training": training,
        "augmentation": asdict(augmentation) if augmentation else None,
        "precision": precision,
    }
    folder = _Folder(Path(out), settings)
    store = FeatureStore(Path(out) / "features", *data, digest="".join(digests), say=say)
    wanted = [(name, seed) for seed in seeds for name in makers]
    before = {run: folder.finished(*run, records[run[0]]) for run in wanted}
    left = [run for run, found in before.items() if found is None]
    done = len(wanted) - len(left)
    pace = Left((name for name, _ in left), _seconds_of(before.values()), done)
    if done:
        say(f"{done} of {len(wanted)} runs reused, they are in {out} already")
    given_up = []
    quiet = None if progress is None else not progress
    shape = "{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}"  # its own time left takes all runs for alike
    with tqdm(total=len(wanted), initial=done, unit="run", disable=quiet, bar_format=shape) as bar:
        for name, seed in left:
            title = f"{name}, seed {seed}"
            bar.set_description(title)
            path = folder.of(name, seed)
            learner = _resumed(path, title, {"backbone": trunk, "method": makers[name](), **here}, say)
            if learner is None:
                learner = fresh(name, seed)
            learner.store = store
            pace.begin(name, 1 if learner.method.at_once else len(streams[seed]), len(learner.tasks))
            if store.covers(learner.method):
                learner.features(data[0])  # now, so that the seconds of learning are of learning
            try:
                found = measure(
                    learner,
                    streams[seed],
                    folder=path,
                    heads={head: HEADS[head](seed) for head in heads},
                    exported=lower,
                    name=name,
                    settings=folder.settings,
                    after_task=partial(_describe, bar, pace, title, say),
                )
            except FloatingPointError as error:
                pace.end(whole=False)
                given_up.append(title)
                say(f"{title}: given up, for {error}")
                continue
            stored = store.stored(learner.method)
            found = replace(found, reused=stored.seconds[0] if stored else None, finished=True)
            finished(found, learner)
            folder.finish(found)
            bar.update()
            pace.end()
            own = found.scores[OWN]
            say(
                f"{title}: A_bar {spread([own.average])}, A_T {spread([own.last])}, {seconds(found.seconds)} "
                f"s{'' if found.reused is None else ' with the features that are kept'}; {pace.told()}"
            )
    result = folder.collect(wanted)
    if given_up:
        raise ValueError(
            f"{len(given_up)} of {len(wanted)} runs were given up ({'; '.join(given_up)}), the others are in "
            f"{out}; lower lr, or leave these methods out"
        )
    return result


def _makers(methods: Sequence[str] | Mapping[str, MakeMethod] | None) -> dict[str, MakeMethod]:
    if isinstance(methods, Mapping):
        makers = dict(methods)
    else:
        names = all_methods.__all__ if methods is None else list(dict.fromkeys(methods))
        unknown = [name for name in names if name not in all_methods.__all__]
        if unknown:
            raise ValueError(
                f"no method is named {unknown[0]!r}; take some of {', '.join(all_methods.__all__)}"
            )
        makers = {name: getattr(all_methods, name) for name in names}
    odd = [name for name in makers if not name or Path(name).name != name or name.startswith(".")]
    if odd or not makers:
        raise ValueError(f"methods are {list(makers)}; give at least one, by a name that a file can have")
    return makers


def _describe(bar: Any, pace: Left, title: str, say: Callable[[str], None], line: str) -> None:
    """After a task: on the bar at once, on lines now and then."""
    pace.task()
    bar.set_description(f"{title}, {line}", refresh=False)
    if not bar.disable:
        bar.set_postfix_str(pace.told())
    elif pace.due():
        say(f"{title}, {line}; {pace.told()}")


def _seconds_of(runs: Iterable[Run | None]) -> dict[str, float]:
    """What finished runs of each method have taken, on average."""
    took: dict[str, list[float]] = {}
    for run in runs:
        if run is not None:
            took.setdefault(run.method, []).append(run.seconds)
    return {method: float(np.mean(several)) for method, several in took.items()}


def _digest(images: Images, progress: bool | None) -> str:
    quiet = None if progress is None else not progress
    with tqdm(total=len(images), desc="reading the data", unit="image", disable=quiet, leave=False) as bar:
        return images.digest(bar.update)


def _resumed(
    path: Path, title: str, options: dict[str, Any], say: Callable[[str], None]
) -> CachedLearner | None:
    """The learner that an interrupt left behind, or None.

    What cannot be read is not deleted: it is set aside, and said. What another version wrote stops
    the benchmark, as that version can go on with it.
    """
    if not (path / checkpoint.FILE).is_file():
        return None
    try:
        learner = cast(CachedLearner, CachedLearner.load(path, **options))
        done, measured = len(learner.tasks), Run.read(path).measured
        if learner.started and not done - 1 <= measured <= done:
            raise ValueError(f"it has learned {done} tasks, and there are the figures of {measured}")
    except checkpoint.OtherFormatError:
        raise
    except ValueError as error:
        aside = _free(path)
        path.rename(aside)
        say(f"{title}: begun anew, for its checkpoint cannot be used: {error}; it is kept as {aside}")
        return None
    say(f"{title}: going on after {len(learner.tasks)} tasks")
    return learner


def _free(path: Path) -> Path:
    """A name beside a path that nothing has."""
    number = 1
    while (aside := path.with_name(f".{path.name}-unreadable-{number}")).exists():
        number += 1
    return aside


def _complete(record: dict[str, Any]) -> dict[str, Any]:
    """A record of a method that was made before some of its arguments came; others as they are."""
    name = record.get("name")
    if name not in all_methods.__all__:
        return record
    return record | {"config": getattr(all_methods, name).completed(record["config"])}


_MEANING = {"fingerprint": "weights of the backbone"}


class _Folder:
    """Where the results of a benchmark lie: its own file, and a folder for each run."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.settings = _as_read(settings)
        if (path / FILE).is_file():
            self._check(path / FILE, Bench.read(path).settings)
        else:
            self.collect([])

    def of(self, method: str, seed: int) -> Path:
        """Folder of a run."""
        return self.path / "runs" / f"{method}-{seed}"

    def finished(self, method: str, seed: int, record: dict[str, Any]) -> Run | None:
        """The run, if it is finished; it must have been made as the record says."""
        path = self.of(method, seed)
        if not (path / RUN).is_file():
            return None
        found = self._read(path)
        for what in ("method", "training"):
            made, now = _complete(found.record[what]), _as_read(record)[what]
            if made != now:
                raise ValueError(
                    f"{path} was made with {what} {made}, not {now}; delete it to have it made anew, or give "
                    "another --out"
                )
        return found if found.finished else None

    def finish(self, found: Run) -> None:
        """Keep a run, and drop what was needed to go on with it."""
        path = self.of(found.method, found.seed)
        found.write(path)
        for file in (checkpoint.FILE, beside.FILE):
            (path / file).unlink(missing_ok=True)
        self.collect([])

    def collect(self, first: Sequence[tuple[str, int]]) -> Bench:
        """Write all finished runs as one file; those named come first."""
        found = [self._read(file.parent) for file in sorted((self.path / "runs").glob(f"[!.]*/{RUN}"))]
        runs = {(one.method, one.seed): one for one in found if one.finished}
        order = dict.fromkeys([name for name in first if name in runs] + list(runs))
        result = Bench(self.settings, tuple(runs[name] for name in order))
        result.write(self.path)
        return result

    def _read(self, path: Path) -> Run:
        found = Run.read(path)
        self._check(path / RUN, found.settings)
        return found

    def _check(self, file: Path, begun: dict[str, Any]) -> None:
        for key, now in self.settings.items():
            if begun.get(key) != now:
                known = key in begun and key not in ("data", "fingerprint")
                difference = f"{key} {begun[key]}, not {now}" if known else f"other {_MEANING.get(key, key)}"
                raise ValueError(
                    f"{file} was begun with {difference}; go on with the same, or give another --out"
                )


def _as_read(data: dict[str, Any]) -> dict[str, Any]:
    """The data as they are when they have been written and read: JSON has no tuples."""
    return cast(dict[str, Any], json.loads(json.dumps(data)))
