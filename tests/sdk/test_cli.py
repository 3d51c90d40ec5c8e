"""The command line, as it is typed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import SafetensorError

from everlearn import Backbone, Images, Learner, load_backbone
from everlearn.backbones import BUNDLED
from everlearn.checkpoint import FILE
from everlearn.cli import commands, main
from everlearn.data import load as load_data
from everlearn_runtime import Bundle

from ..conftest import Clock, coloured, vit

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled backbone's name stands for a tiny one: the command line has no other."""

    def load(name: str, *, weights: str) -> Backbone:
        return vit() if name == BUNDLED else load_backbone(name, weights=weights)

    monkeypatch.setattr(commands, "load_backbone", load)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of class folders, five classes of five images each."""
    images = coloured("abcde", 5)
    for number, (image, label) in enumerate(images):
        folder = tmp_path / "data" / label
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
    return tmp_path / "data"


def train(data: Path, run: Path, *more: str) -> int:
    quick = ["--epochs", "1", "--batch-size", "8", "--lr", "0.05"]
    return main(["train", str(data), "--out", str(run), *quick, *more])


def last(err: str) -> str:
    """The last line on stderr; what there is to say of the data stands before it."""
    return err.splitlines()[-1]


def test_train_export_and_predict(data: Path, tmp_path: Path, capsys: Output) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    assert train(data, run, "--method", "Frozen", "--head", "lda", "--classes-per-task", "3") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["after", "task", "1", "2", "all"]
    assert table[2].split()[0] == "2"
    assert table[3].startswith("average ")
    assert {path.name for path in run.iterdir()} == {FILE, "run.json", "log.csv"}

    for images, says in (
        (["--images", str(data / "a")], f"--canaries 5 are images of learned classes, and {data / 'a'} has"),
        ([], "--canaries 5 without images to take them from; give --images"),
    ):
        assert main(["export", str(run), "--out", str(bundle), "--canaries", "5", *images]) == 2
        assert says in last(capsys.readouterr().err)
    verify_on = ["--images", str(data)]
    assert main(["export", str(run), "--out", str(bundle), *verify_on]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{bundle}: 5 classes; on ")
    assert said.splitlines()[0].endswith("100% of classes agree")
    assert said.splitlines()[1].startswith("not calibrated, by ")

    replaces = ["--out", str(tmp_path / "next"), *verify_on, "--replaces", str(bundle)]
    assert main(["export", str(run), *replaces]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"replaces {bundle}: on ")
    assert said.endswith("the map explains 100.0% of the variance, 100% of classes agree")

    images = [str(path) for path in (sorted(data.glob("c/*.png"))[:2])]
    assert main(["predict", str(bundle), *images]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["image", "label"], *([path, "c"] for path in images)]
    assert lines[-1].startswith("not calibrated")

    assert main(["export", str(run), "--out", str(bundle)]) == 2
    assert "already holds a bundle; give another path, or --overwrite\n" in capsys.readouterr().err
    assert main(["export", str(bundle), "--for", "triton", "--out", str(run / "x"), "--batch", "0"]) == 2
    assert "--batch is 0; give a whole number" in capsys.readouterr().err
    plain = ["--images", str(data / "a")]  # a folder of images without classes
    assert main(["export", str(run), "--out", str(bundle), "--overwrite", "--removable", *plain]) == 0
    assert Bundle.open(bundle).manifest.head == {
        "kind": "lda",
        "options": {"shrinkage": 0.01, "removable": True},
    }


def test_by_default_nt_kcl_learns_in_five_tasks(data: Path, tmp_path: Path, capsys: Output) -> None:
    assert train(data, tmp_path / "run", "--no-flip", "--smallest-crop", "0.5", "--seed", "3") == 0
    learner = Learner.load(tmp_path / "run", device="cpu")
    assert type(learner.method).__name__ == "NTKCL"
    assert [len(classes) for classes in learner.tasks] == [1] * 5
    assert (learner.training.epochs, learner.training.batch_size, learner.training.lr) == (1, 8, 0.05)
    assert learner.augmentation is not None
    assert (learner.augmentation.flip, learner.augmentation.scale) == (False, (0.5, 1.0))
    assert learner.seed == 3
    assert "forgetting" in capsys.readouterr().out


def test_the_same_command_goes_on(
    data: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def table() -> str:
        return capsys.readouterr().out

    assert train(data, tmp_path / "whole", "--classes-per-task", "2") == 0
    expected = table()

    def stopping(*given: Any, **more: Any) -> tuple[Images, Images]:
        images, test = load_data(*given, **more)
        return Clock(20).watch(images), test

    with monkeypatch.context() as patch:
        patch.setattr(commands, "load", stopping)
        assert train(data, tmp_path / "run", "--classes-per-task", "2") == 130
    out, err = capsys.readouterr()
    goes_on = "and the same command goes on where this one stopped"
    assert last(err) == f"everlearn: interrupted; {tmp_path / 'run'} has 1 of 3 tasks, {goes_on}"
    assert out == ""

    assert train(data, tmp_path / "run", "--classes-per-task", "2") == 0
    first, rest = table().split("\n", 1)
    assert first == f"{tmp_path / 'run'} has 1 of 3 tasks; going on with its settings"
    assert rest == expected


@pytest.mark.parametrize(
    "other",
    [
        *(["--lr", "0.01"], ["--epochs", "2"], ["--batch-size", "9"], ["--seed", "9"]),
        *(["--method", "RanPAC"], ["--head", "lda"], ["--head", "random-ridge"], ["--recipe", "cifar100"]),
        *(["--backbone", "resnet18"], ["--weights", "pretrained"], ["--precision", "bf16"]),
        *(["--no-flip"], ["--smallest-crop", "0.9"], ["--classes-per-task", "2"]),
    ],
    ids=" ".join,
)
def test_other_settings_are_not_ignored(data: Path, tmp_path: Path, capsys: Output, other: list[str]) -> None:
    assert train(data, tmp_path / "run", "--method", "Frozen") == 0
    kept = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    capsys.readouterr()
    assert main(["train", str(data), "--out", str(tmp_path / "run"), *other]) == 2
    err = capsys.readouterr().err
    assert "was begun with" in err
    assert "go on with the same, or" in err
    assert kept == {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}


def test_settings_that_led_nowhere_may_be_changed(data: Path, tmp_path: Path, capsys: Output) -> None:
    one_epoch = ["train", str(data), "--out", str(tmp_path / "run"), "--epochs", "1"]
    assert main([*one_epoch, "--lr", "1e30"]) == 2  # before there was anything to go on with
    assert main([*one_epoch, "--lr", "0.05"]) == 0


def test_what_is_left_out_is_the_folders_own(data: Path, tmp_path: Path, capsys: Output) -> None:
    more = ("--method", "SLDA", "--seed", "4", "--classes-per-task", "2", "--no-flip")
    assert train(data, tmp_path / "run", *more) == 0
    expected = capsys.readouterr().out
    assert main(["train", str(data), "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.split("\n", 1)[1] == expected


def test_other_images_of_the_same_names_are_refused(data: Path, tmp_path: Path, capsys: Output) -> None:
    assert train(data, tmp_path / "run", "--method", "Frozen") == 0
    file = next(data.glob("a/*.png"))
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    assert train(data, tmp_path / "run", "--method", "Frozen") == 2
    assert "was begun with other images" in capsys.readouterr().err


def test_what_is_in_a_folder_is_said_before_training(data: Path, tmp_path: Path, capsys: Output) -> None:
    (data / "a" / "notes.txt").write_text("text")
    (data / "b" / "broken.png").write_bytes(b"hello")
    assert train(data, tmp_path / "run", "--method", "Frozen") == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"{data}: not used are"
    assert [line.split()[:2] for line in said[1:3]] == [["broken", "1"], ["ignored", "1"]]
    assert said[3].startswith(f"everlearn: 1 of 26 images in '{data}' cannot be read: b/broken.png (not a")
    assert not (tmp_path / "run").exists()

    for path in sorted((data / "c").iterdir())[1:]:
        path.unlink()
    assert train(data, tmp_path / "run", "--method", "Frozen", "--skip-bad", "--seed", "3") == 0
    said = capsys.readouterr().err.splitlines()
    assert said[3].endswith("fifth to test, 17 and 4 images, drawn with seed 3")
    assert said[4] == f"{data}: learned but not tested, with one image only: 'c'"
    learner = Learner.load(tmp_path / "run", device="cpu")
    assert set(learner.classes) == set("abcde")
    assert sorted(map(len, learner.tasks)) == [1, 1, 1, 2]
    assert main(["train", str(data), "--out", str(tmp_path / "run"), "--skip-bad"]) == 0
    assert "has 4 of 4 tasks" in capsys.readouterr().out
    bundle = ["--out", str(tmp_path / "bundle"), "--images", str(data), "--skip-bad"]
    assert main(["export", str(tmp_path / "run"), *bundle]) == 0
    (tmp_path / "run" / "run.json").unlink()  # as if it had been fitted by hand
    assert main(["report", str(tmp_path / "run"), str(data), "--skip-bad", "--samples", "4"]) == 0


def test_one_class_alone_is_told(data: Path, tmp_path: Path, capsys: Output) -> None:
    for name in "bcde":
        shutil.rmtree(data / name)
    assert main(["bench", str(data), "--out", str(tmp_path / "bench")]) == 2
    assert "has one class only, 'a', which every method" in last(capsys.readouterr().err)
    assert train(data, tmp_path / "run") == 0
    said = capsys.readouterr().err.splitlines()[1]
    assert said.startswith(f"{data} has one class only, 'a': every picture will be called that, until ")
    learner = Learner.load(tmp_path / "run", device="cpu")
    assert learner.predict(coloured("b", 2)) == ["a", "a"]
    assert learner.fit(coloured("b", 5)).score(coloured("ab", 2)) == 1


def test_an_npz_file_is_data_too(tmp_path: Path, capsys: Output) -> None:
    encoded, labels = [], []
    for number, (image, label) in enumerate(coloured("ab", 4)):
        path = tmp_path / f"{number}.png"
        image.save(path)
        encoded.append(path.read_bytes())
        labels.append("ab".index(label))
    np.savez(
        tmp_path / "data.npz",
        data=np.frombuffer(b"".join(encoded), np.uint8),
        offsets=np.cumsum([0, *map(len, encoded)]),
        labels=np.array(labels),
        is_test=np.arange(8) % 4 == 3,
        classes=np.array(["mug", "pen"]),
    )
    assert train(tmp_path / "data.npz", tmp_path / "run", "--method", "Frozen") == 0
    assert set(Learner.load(tmp_path / "run").classes) == {"mug", "pen"}
    assert capsys.readouterr().out.count("\n") == 4


def no_images(data: Path) -> list[str]:
    for file in data.rglob("*.png"):
        file.unlink()
    return ["train", str(data), "--out", str(data / "../run")]


def not_an_image(data: Path) -> list[str]:
    for file in (data / "a").iterdir():
        file.write_text("hello")
    return ["train", str(data), "--out", str(data / "../run"), "--method", "Frozen"]


def a_run(data: Path) -> Path:
    (data / "../run").mkdir()
    (data / "../run/learner.safetensors").write_bytes(b"")
    return data / "../run"


def holding(data: Path, file: str) -> Path:
    (data / "../held").mkdir()
    (data / "../held" / file).write_text("{}")
    return data / "../held"


def options(*more: str) -> Callable[[Path], list[str]]:
    return lambda data: ["train", str(data), "--out", str(data / "../run"), *more]


def bench_options(*more: str) -> Callable[[Path], list[str]]:
    return lambda data: ["bench", str(data), "--out", str(data / "../run"), *more]


MISTAKES: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "data": (lambda _: ["train", "nowhere", "--out", "run"], "'nowhere' is not a data set"),
    "out among data": (
        lambda data: ["train", str(data), "--out", str(data / "run")],
        "give a folder elsewhere",
    ),
    "out a file": (
        lambda data: ["bench", str(data), "--out", str(next(data.glob("a/*.png")))],
        "which is a file; give a folder",
    ),
    "out below a file": (
        lambda data: ["train", str(data), "--out", str(next(data.glob("a/*.png")) / "run")],
        ".png is a file, no folder; give another path",
    ),
    "out nowhere": (
        lambda data: ["export", str(data), "--out", "/proc/run"],
        "--out is /proc/run, where nothing can be written (this folder takes no files); ",
    ),
    "out a run": (
        lambda data: ["bench", str(data), "--out", str(a_run(data))],
        "which holds what `everlearn train` wrote; give another folder",
    ),
    "out a benchmark": (
        lambda data: ["train", str(data), "--out", str(holding(data, "bench.json"))],
        "which holds a benchmark; give another folder",
    ),
    "out a bundle": (
        lambda data: ["train", str(data), "--out", str(holding(data, "manifest.json"))],
        "which holds a bundle; give another folder",
    ),
    "run for a bundle": (
        lambda data: ["predict", str(a_run(data)), "image.png"],
        "it is what `everlearn train` wrote: everlearn export ",
    ),
    "empty class": (no_images, "has no image in its class folders"),
    "no image": (not_an_image, "5 of 25 images in "),
    "backbone": (
        options("--backbone", "vit_bsae_patch16_224"),
        "no backbone is named 'vit_bsae_patch16_224'",
    ),
    "weights": (
        options("--backbone", "resnet10t", "--weights", "w.safetensors"),
        "an existing file (.safetensors, .pth, .pt, .bin)",
    ),
    "needs tokens": (
        options("--method", "DualLoRA", "--backbone", "resnet10t", "--weights", "random"),
        "no plain Vision Transformer",
    ),
    "classes": (options("--classes-per-task", "0"), "--classes-per-task is 0; expected 1 to 5"),
    "many classes": (options("--classes-per-task", "6"), "--classes-per-task is 6; expected 1 to 5"),
    "epochs": (options("--epochs", "0"), "--epochs must be a whole number"),
    "crop": (options("--smallest-crop", "0"), "--smallest-crop is 0.0; give a share"),
    "seed": (options("--seed", "-1"), "--seed is -1"),
    "device": (options("--device", "nonesuch"), "--device nonesuch cannot be used here"),
    "rate": (options("--epochs", "2", "--lr", "1e30"), "lower --lr 1e+30"),
    "bench seed": (bench_options("--seeds", "1", "-1"), "--seeds has -1"),
    "bench classes": (bench_options("--classes-per-task", "0"), "--classes-per-task is 0; expected 1 to 5"),
    "bench tokens": (
        bench_options("--methods", "DualLoRA", "--backbone", "resnet10t", "--weights", "random"),
        "no plain Vision Transformer",
    ),
    "no report": (lambda _: ["report", "nowhere"], "no run is at nowhere"),
    "no run": (lambda _: ["export", "nowhere", "--out", "bundle"], "no learner is saved at nowhere"),
    "no bundle": (lambda _: ["predict", "nowhere", "image.png"], "nowhere"),
}


@pytest.mark.parametrize(("arguments", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(
    data: Path, arguments: Callable[[Path], list[str]], says: str, capsys: Output
) -> None:
    given = arguments(data)
    assert main(given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert last(err).startswith("everlearn: ")
    assert says in last(err)
    assert not any(line.startswith("everlearn") for line in err.splitlines()[:-1])


@pytest.mark.parametrize("command", ["train", "bench", "export"])
def test_a_full_disk_is_told_before_the_work(
    data: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    left = shutil.disk_usage(tmp_path)._replace(free=1_500_000)
    monkeypatch.setattr("everlearn_runtime.files.shutil.disk_usage", lambda _: left)
    assert main([command, str(data), "--out", str(tmp_path / "run" / "deeper")]) == 2
    said = "where 1.5 MB are left, and at least 33.6 MB are needed; make room, or give another path\n"
    assert capsys.readouterr() == ("", f"everlearn: --out is {tmp_path / 'run' / 'deeper'}, {said}")
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_meanwhile(
    data: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"a part")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    assert train(data, tmp_path / "run", "--method", "Frozen", "--classes-per-task", "5") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("everlearn.checkpoint.save_file", full)
        assert train(data, tmp_path / "other", "--method", "Frozen") == 2
        assert last(capsys.readouterr().err) == (
            f"everlearn: {tmp_path / 'other' / FILE}: no space left on device; make room, and the same "
            "command goes on where this one stopped"
        )
        assert list((tmp_path / "other").iterdir()) == []
        with pytest.raises(OSError, match="No space left on device"):
            Learner.load(tmp_path / "run").save(tmp_path / "run")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert train(data, tmp_path / "other", "--method", "Frozen") == 0


def test_a_run_on_other_data_is_refused(data: Path, tmp_path: Path, capsys: Output) -> None:
    assert train(data, tmp_path / "run", "--method", "Frozen") == 0
    before = (tmp_path / "run" / FILE).read_bytes()
    for path in sorted(data.glob("a/*.png")):
        other = data.parent / "other"
        for name in "vwxyz":
            (other / name).mkdir(parents=True, exist_ok=True)
            Image.open(path).save(other / name / path.name)
    capsys.readouterr()
    assert train(data.parent / "other", tmp_path / "run", "--method", "Frozen") == 2
    assert "give the stream it began with" in capsys.readouterr().err
    assert (tmp_path / "run" / FILE).read_bytes() == before


@pytest.mark.parametrize("command", [[], ["train"], ["bench"], ["report"], ["export"], ["predict"]])
def test_help_says_what_there_is(command: list[str], capsys: Output) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: everlearn" in capsys.readouterr().out


# Methods beside each other, and the report


def compare(data: Path, run: Path, *more: str) -> int:
    quick = ["--methods", "Frozen", "NTKCL", "--epochs", "1", "--batch-size", "8", "--lr", "0.05"]
    return main(["bench", str(data), "--out", str(run), "--classes-per-task", "3", *quick, *more])


def test_bench_prints_a_table_and_report_draws_it(data: Path, tmp_path: Path, capsys: Output) -> None:
    run = tmp_path / "run"
    assert compare(data, run, "--seeds", "0", "1", "--heads", "lda") == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[-6:]
    assert table[0].split()[:4] == ["method", "head", "A_bar", "A_T"]
    assert [line.split()[0] for line in table[1:5]] == ["Frozen", "Frozen", "NTKCL", "NTKCL"]
    assert any("features of 25 images computed" in line for line in lines[:-6])
    assert any("features reused" in line for line in lines[:-6])

    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report' / 'index.html'}\n"
    assert (run / "report" / "confusion-NTKCL.png").is_file()
    assert main(["report", str(run), str(data)]) == 2
    assert f"{run} is a benchmark, which keeps no learner; leave {data} out" in capsys.readouterr().err


def test_a_stopped_bench_says_that_it_goes_on(
    data: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(80)

    def watched(*given: Any, **more: Any) -> tuple[Images, Images]:
        train, test = load_data(*given, **more)
        return clock.watch(train), clock.watch(test)

    with monkeypatch.context() as patch:
        patch.setattr(commands, "load", watched)
        assert compare(data, tmp_path / "run", "--seeds", "0") == 130
    goes_on = "has 1 run, and the same command goes on where this one stopped"
    assert last(capsys.readouterr().err) == f"everlearn: interrupted; {tmp_path / 'run'} {goes_on}"
    assert compare(data, tmp_path / "run", "--seeds", "0") == 0
    assert "1 of 2 runs reused" in capsys.readouterr().out
    assert compare(data, tmp_path / "run", "--precision", "bf16") == 2
    assert "was begun with precision fp32, not bf16" in capsys.readouterr().err


def test_a_stopped_export_leaves_nothing(
    data: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(data, tmp_path / "run", "--method", "Frozen", "--classes-per-task", "5") == 0
    export = ["export", str(tmp_path / "run"), "--out", str(tmp_path / "bundle")]
    assert main(export) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "bundle").iterdir()}

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("everlearn_runtime.bundle.write_synced", stop)
    for there, says in ((True, "is whole, as it was or anew"), (False, "nothing is at ")):
        if not there:
            shutil.rmtree(tmp_path / "bundle")
        kept = sorted(tmp_path.iterdir())
        assert main([*export, "--overwrite"]) == 130
        assert says in last(capsys.readouterr().err)
        assert sorted(tmp_path.iterdir()) == kept
        if there:
            assert before == {path: path.read_bytes() for path in (tmp_path / "bundle").iterdir()}


def test_an_interrupt_before_anything_is_finished(
    data: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "load", stop)
    assert train(data, tmp_path / "run") == 130
    says = "everlearn: interrupted; nothing is finished yet, and the same command begins anew"
    assert last(capsys.readouterr().err) == says


def test_a_stopped_report_promises_nothing(tmp_path: Path, capsys: Output, monkeypatch: Any) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "write_report", stop)
    assert main(["report", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "drawing the pictures ...\neverlearn: interrupted\n"


def test_report_of_a_training_has_the_diagnosis_and_the_confusion(
    data: Path, tmp_path: Path, capsys: Output
) -> None:
    run = tmp_path / "run"
    assert train(data, run, "--method", "Frozen", "--classes-per-task", "3") == 0
    assert main(["report", str(run)]) == 0
    assert (run / "report" / "confusion-Frozen.png").is_file()
    (run / "run.json").unlink()  # as if it had been fitted by hand
    capsys.readouterr()
    assert main(["report", str(run), str(data), "--samples", "6"]) == 0
    out = capsys.readouterr().out
    assert "verdict: " in out
    assert out.endswith(f"{run / 'report' / 'index.html'}\n")
    assert (run / "report" / "confusion-Frozen.png").is_file()
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    for heading in ("What limits it", "What is mistaken for what", "From a few images"):
        assert heading in page
