"""The diagnosis of a run: it names what was planted, and says so on the command line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everlearn import NTKCL, Frozen, ILoRA, Images, Learner, Method
from everlearn.analysis.advice import steps
from everlearn.cli import main
from everlearn.data import load
from everlearn.diagnosis import Diagnosis, diagnose, diagnose_run, regularisation_of

from ..conftest import coloured, fit_all, make_learner

Output = pytest.CaptureFixture[str]
SEEDS = range(3)


def planted(
    seed: int,
    *,
    images: int = 80,
    directions: int = 20,
    noise: float = 0.01,
    shared: bool = False,
    regularisation: float | None = 0.1,
    tasks: int = 4,
) -> Diagnosis:
    """Tasks of Gaussian features with a power-law spectrum and targets of their own.

    The features of different tasks are the same directions where ``shared``, else orthogonal.
    """
    rng = np.random.default_rng(seed)
    scale = np.arange(1, directions + 1) ** -0.6
    features = np.zeros((tasks * images, directions if shared else tasks * directions))
    targets = []
    for task in range(tasks):
        own = rng.normal(size=(images, directions)) * scale
        start = 0 if shared else task * directions
        features[task * images : (task + 1) * images, start : start + directions] = own
        truth = own @ rng.normal(size=(directions, 3))
        targets.append(truth + noise**0.5 * rng.normal(size=truth.shape))
    kernel, numbers = features @ features.T, np.repeat(range(tasks), images)
    return diagnose(kernel, numbers, np.concatenate(targets), regularisation=regularisation)


@pytest.mark.parametrize("seed", SEEDS)
def test_few_samples_are_named(seed: int) -> None:
    found = planted(seed, images=24, directions=400, noise=0.0, regularisation=0.01)
    assert found.limit == "samples"
    assert found.alone_doubled < found.alone - 0.1
    assert "too few samples" in found.text()


@pytest.mark.parametrize("seed", SEEDS)
def test_entangled_tasks_are_named(seed: int) -> None:
    found = planted(seed, shared=True)
    assert found.limit == "tasks"
    assert found.orthogonality < 0.2
    assert found.interference > 1
    assert "entangled tasks" in found.text()
    assert planted(seed).orthogonality == 1
    assert planted(seed).interference == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_too_little_regularisation_is_named(seed: int) -> None:
    found = planted(seed, images=60, directions=400, noise=10.0, regularisation=1e-4)
    assert (found.limit, found.direction) == ("regularisation", "more")
    assert found.regularisation == pytest.approx(1e-4 / 60)
    assert found.best_regularisation > 100 * 1e-4 / 60
    assert "too little regularisation" in found.text()


@pytest.mark.parametrize("seed", SEEDS)
def test_too_much_regularisation_is_told_from_too_little(seed: int) -> None:
    found = planted(seed, regularisation=100.0)
    assert (found.limit, found.direction) == ("regularisation", "less")
    assert "too much regularisation" in found.text()


def test_a_run_that_nothing_limits_is_left_in_peace() -> None:
    found = planted(0, images=150, directions=10, noise=1e-4)
    assert found.limit == "none"
    assert "none of the three stands out" in found.text()


def test_unknown_regularisation_is_not_blamed() -> None:
    found = planted(0, regularisation=None)
    assert found.regularisation is None
    assert found.direction == "the same"
    assert found.error + found.interference == found.best_total
    assert "not known" in found.text()
    apart = replace(found, interference=0.0, best_total=0.9, error=0.9, alone=0.1, alone_doubled=0.1)
    assert apart.gains["regularisation"] == 0  # though tasks alone would take another
    assert apart.case == "tasks"
    assert apart.gains["tasks"] == pytest.approx(0.8)


def test_the_gains_lead_from_the_run_to_twice_the_samples() -> None:
    found = planted(0, shared=True, images=40, directions=60, regularisation=1e-3, noise=1.0)
    assert min(found.gains.values()) > 0
    assert sum(found.gains.values()) == pytest.approx(found.error + found.interference - found.alone_doubled)


def test_the_largest_gain_is_named_with_its_figures() -> None:
    found = replace(
        planted(0), error=0.6, interference=0.0, best_total=0.5, alone=0.5, alone_doubled=0.2, images=(7, 9)
    )
    assert found.limit == "samples"
    factor = found.factors[0]
    assert factor.name == "samples"
    assert factor.gain == pytest.approx(0.3)
    assert "error of 0.500 by 8 images, of 0.200 by 16" in factor.sentence
    assert f"samples         0.300  {factor.sentence}" in found.text()


def test_more_images_than_sampled_lower_the_error() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 100)) * np.arange(1, 101) ** -0.6
    targets = features @ rng.normal(size=(100, 2))
    few = diagnose(features @ features.T, [0] * 60, targets, regularisation=0.1)
    many = diagnose(features @ features.T, [0] * 60, targets, images=[300], regularisation=0.5)
    assert many.alone < 0.7 * few.alone
    assert many.regularisation == pytest.approx(few.regularisation)
    assert "inferred from 60" in many.text()
    assert "inferred" not in few.text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"images": [5]}, "for each of 2 tasks"),
        ({"images": [5, 0]}, "at least 1"),
        ({"regularisation": 0.0}, "regularisation is 0.0"),
        ({"regularisation": [1.0]}, "one for each of 2 tasks"),
        ({"targets": np.repeat([[1.0], [0.0]], 5, axis=0)}, "targets of task 2 are all zero"),
        ({"targets": np.ones((3, 1))}, r"targets have shape \(3, 1\)"),
        ({"tasks": [0] * 9 + [1]}, "1 samples are too few"),
    ],
)
def test_a_diagnosis_that_cannot_be_is_refused(options: dict[str, Any], says: str) -> None:
    features = np.random.default_rng(0).normal(size=(10, 3))
    given = {"kernel": features @ features.T, "tasks": [0] * 5 + [1] * 5, "targets": np.ones((10, 1))}
    given |= options
    with pytest.raises(ValueError, match=says):
        diagnose(given.pop("kernel"), given.pop("tasks"), given.pop("targets"), **given)


# A learner.


def learned(method: Method | None = None) -> tuple[Learner, list[Images]]:
    tasks = [coloured("ab", 6), coloured("cd", 6)]
    return fit_all(make_learner(NTKCL() if method is None else method), tasks), tasks


def test_a_learner_is_diagnosed_on_its_training_images() -> None:
    learner, tasks = learned()
    found = diagnose_run(learner, tasks, samples=8)
    assert found.images == (12, 12)
    assert found.sampled == (8, 8)
    assert found.norms.shape == (2, 2)
    assert found.kernel == "kernel of 8 adapter tensors, 8 random readouts"
    assert found.regularisation == pytest.approx(regularisation_of(learner, 12))
    assert diagnose_run(learner, tasks, samples=8).text() == found.text()
    assert diagnose_run(learner, tasks, samples=8, seed=1).text() != found.text()
    assert diagnose_run(learner, tasks, samples=8, regularisation=0.5).regularisation == pytest.approx(0.5)


def test_the_sample_is_spread_over_the_classes() -> None:
    learner = fit_all(make_learner(Frozen()), [coloured("abc", 6)])
    read: list[int] = []
    images = coloured("abc", 6)

    def load_and_note(index: int) -> Any:
        read.append(index)
        return images[index][0]

    diagnose_run(learner, [Images(images.labels, load_and_note)], samples=6)
    assert [index // 6 for index in sorted(read)] == [0, 0, 1, 1, 2, 2]


def test_frozen_features_are_diagnosed_by_their_linear_kernel() -> None:
    learner, tasks = learned(Frozen())
    found = diagnose_run(learner, tasks)
    assert found.kernel == "kernel of a linear head on frozen features"
    assert found.sampled == (12, 12)
    assert found.regularisation is None


def test_longer_and_faster_training_is_less_regularisation() -> None:
    def of(method: Method | None = None, **settings: Any) -> float:
        found = regularisation_of(make_learner(NTKCL() if method is None else method, **settings), 100)
        assert found is not None
        return found

    plain = of(weight_decay=0.0)
    # Ten images a step and lr 0.1 / 0.5 once: time is 2, and L_reg 1e-3 counts twice.
    once: dict[str, Any] = {"batch_size": 10, "lr": 0.1, "momentum": 0.5, "epochs": 1, "weight_decay": 0.0}
    assert of(**once) == pytest.approx(1 / 2 + 2e-3)
    assert of(weight_decay=0.0, epochs=4) < plain
    assert of(weight_decay=0.0, lr=0.1) < plain
    assert of(weight_decay=0.1) == pytest.approx(plain + 0.1)
    assert of(NTKCL(regularisation=0.1), weight_decay=0.0) == pytest.approx(plain + 0.198)
    assert regularisation_of(make_learner(Frozen()), 100) is None
    assert regularisation_of(make_learner(NTKCL(), lr=0.0), 100) is None


def test_other_tasks_than_those_learned_are_refused() -> None:
    learner, tasks = learned(Frozen())
    for wrong in (tasks[:1], tasks[::-1], [*tasks, coloured("e")]):
        with pytest.raises(ValueError, match="of each task that it learned"):
            diagnose_run(learner, wrong)
    with pytest.raises(ValueError, match="samples is 3"):
        diagnose_run(learner, tasks, samples=3)
    with pytest.raises(ValueError, match="task 2 has 2 images"):
        diagnose_run(learner, [tasks[0], coloured("cd", 1)])
    with pytest.raises(ValueError, match="knows 0 classes"):
        diagnose_run(make_learner(Frozen()), [])
    with pytest.raises(ValueError, match="knows 1 classes"):
        diagnose_run(make_learner(Frozen()).fit(coloured("a")), [coloured("a")])


def test_the_verdict_comes_with_its_advice() -> None:
    learner, tasks = learned()
    found = diagnose_run(learner, tasks, samples=8)
    for case in ("samples", "tasks", "more", "less"):
        assert dict(found.steps)[case] == steps(learner, 12)[case]
    found = planted(0, shared=True)
    assert found.advice == ("fewer and larger tasks",)
    assert "\n  - fewer and larger tasks\n" in found.text()
    assert planted(0, images=150, directions=10, noise=1e-4).advice == ()


# The command line.


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of class folders, four classes of eight images each."""
    for number, (image, label) in enumerate(coloured("abcd", 8)):
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Path:
    train, _ = load(data, 0)
    learner = make_learner(NTKCL())
    fit_all(learner, [train.of_classes("ab"), train.of_classes("cd")]).save(tmp_path / "run")
    return tmp_path / "run"


WORKING = "looking into the learner, which takes longer than learning where there are many images ..."
SPLIT = "of each class four fifths to learn and one fifth to test, 24 and 8 images, drawn with seed 0"


def test_report_prints_the_verdict(data: Path, run: Path, capsys: Output) -> None:
    assert main(["report", str(run), str(data), "--samples", "6"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "kernel of 8 adapter tensors, 8 random readouts; 2 tasks, about 6 images of each"
    assert any(line.startswith("verdict: ") for line in lines[1:3])
    table = lines[lines.index("") + 1 :][:4]
    assert [line.split()[0] for line in table] == ["factor", "samples", "tasks", "regularisation"]
    assert max(map(len, lines)) < 130
    assert err.splitlines() == [f"{data} has no test/: {SPLIT}", WORKING]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--samples", "2"], "--samples is 2"),
        (["--readouts", "0"], "--readouts is 0; expected 1 to 192"),
        (["--seed", "-1"], "--seed is -1"),
    ],
)
def test_a_mistake_is_one_line(data: Path, run: Path, options: list[str], says: str, capsys: Output) -> None:
    assert main(["report", str(run), str(data), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    split, working, mistake = err.splitlines()
    assert (split, working) == (f"{data} has no test/: {SPLIT}", WORKING)
    assert mistake.startswith(f"everlearn: {says}")


def test_what_the_method_itself_says_stands_behind_it(data: Path, tmp_path: Path, capsys: Output) -> None:
    train, run = load(data, 0)[0], tmp_path / "run"
    fit_all(make_learner(ILoRA(memory=8)), [train.of_classes("ab"), train.of_classes("cd")]).save(run)
    assert main(["report", str(run), str(data), "--samples", "4"]) == 0
    out = capsys.readouterr().out
    assert "verdict: " in out
    assert "Mode connectivity: accuracy (%) of the classifier along" in out
    assert "Mode connectivity" in (run / "report" / "index.html").read_text()


def test_the_wrong_folders_are_told(data: Path, run: Path, capsys: Output) -> None:
    assert main(["report", str(data), str(data)]) == 2
    assert "no learner is saved at" in capsys.readouterr().err
    assert main(["report", str(run), str(run / "nowhere")]) == 2
    assert "is not a data set" in capsys.readouterr().err
    assert main(["report", str(run), "digits"]) == 2
    assert "no images of class 'a'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    assert "usage: everlearn report" in capsys.readouterr().out
