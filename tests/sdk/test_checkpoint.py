"""A saved learner: whole or not at all, and plain data."""

import ast
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from everlearn import NTKCL, Augmentation, Backbone, Frozen, Learner, Method, checkpoint, load_backbone
from everlearn.checkpoint import FILE

from ..conftest import coloured, fit_all, make_learner, state, vit

SOURCE = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a saved learner."""
    make_learner(NTKCL()).fit(coloured("ab")).save(tmp_path / "run")
    return tmp_path / "run"


def rewrite(file: Path, **changes: Any) -> None:
    """Write a saved learner again, with other settings."""
    with safe_open(file, "pt") as stored:
        settings = json.loads(stored.metadata()["everlearn"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    save_file(tensors, file, metadata={"everlearn": json.dumps(settings | changes)})


def test_a_learner_is_one_file(run: Path) -> None:
    assert [path.name for path in run.iterdir()] == [FILE]


def test_settings_come_back(tmp_path: Path) -> None:
    learner = make_learner(
        NTKCL(ptm=True, hidden=4, dissimilarity=0.03),
        seed=7,
        precision="bf16",
        augmentation=Augmentation(scale=(0.5, 1.0), flip=False),
        momentum=0.5,
        weight_decay=0.01,
    )
    learner.save(tmp_path)
    loaded = Learner.load(tmp_path, device="cpu", progress=False)
    assert state(loaded) == state(learner)
    assert loaded.augmentation == learner.augmentation
    assert loaded.training == learner.training
    assert loaded.backbone.spec == learner.backbone.spec
    assert loaded.progress is False
    assert loaded.classes == ()
    make_learner(Frozen(), augmentation=None).save(tmp_path)
    assert Learner.load(tmp_path).augmentation is None


def test_a_backbone_by_file_and_options_comes_back(tmp_path: Path) -> None:
    weights, size = tmp_path / "w.safetensors", {"patch_size": 8, "depth": 1, "embed_dim": 48, "num_heads": 3}
    save_file(vit(depth=1, img_size=(32, 64)).model.state_dict(), weights)
    backbone = load_backbone("vit_tiny_patch16_224", weights=weights, img_size=(32, 64), **size)
    learner = make_learner(Frozen(), backbone=backbone).fit(coloured("ab"))
    learner.save(tmp_path / "run")
    assert state(Learner.load(tmp_path / "run", device="cpu"))["statistics"] == state(learner)["statistics"]
    moved = weights.rename(tmp_path / "moved.safetensors")
    with pytest.raises(ValueError, match=r"existing file .*, got .*w\.safetensors"):
        Learner.load(tmp_path / "run")
    assert Learner.load(tmp_path / "run", weights=moved).classes == ("a", "b")


# What cannot be read


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def cut_to_the_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:64])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def something_else(file: Path) -> None:
    file.write_bytes(b"\x80\x04K\x01." * 30)


def weights_only(file: Path) -> None:
    save_file({"method.x": torch.zeros(2)}, file)


def no_json(file: Path) -> None:
    save_file({"x": torch.zeros(2)}, file, metadata={"everlearn": "{"})


def a_list(file: Path) -> None:
    save_file({"x": torch.zeros(2)}, file, metadata={"everlearn": "[]"})


@pytest.mark.parametrize(
    "spoil", [cut, cut_to_the_header, empty, something_else, weights_only, no_json, a_list]
)
def test_a_damaged_file_is_refused(run: Path, spoil: Callable[[Path], None]) -> None:
    spoil(run / FILE)
    with pytest.raises(ValueError, match=r"learner\.safetensors is damaged or no saved learner"):
        Learner.load(run)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"no learner is saved at .*run; expected the file {FILE} there"):
        Learner.load(tmp_path / "run")


def test_a_newer_format_is_refused(run: Path) -> None:
    rewrite(run / FILE, format=9, everlearn="9.9")
    with pytest.raises(
        ValueError, match=r"has format 9, by everlearn 9\.9; this one reads format 3: pip install"
    ):
        Learner.load(run)


def test_other_weights_are_refused(run: Path) -> None:
    other = vit()
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match=r"weights are not those that .*run was trained on"):
        Learner.load(run, backbone=other)
    assert Learner.load(run, backbone=vit()).classes == ("a", "b")


def test_another_configuration_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match=r"not those of this NTKCL: they differ at \['cur\.channel\.0"):
        Learner.load(run, method=NTKCL(hidden=4))
    rewrite(run / FILE, head={"kind": "ridge", "classes": ["a", "b"], "options": {}})
    with pytest.raises(ValueError, match="the state holds the arrays"):
        Learner.load(run)


# The caller's own


class Own(Method):
    """A method that no package knows."""


def test_a_method_of_the_callers_own_is_passed_again(tmp_path: Path) -> None:
    learner = make_learner(Own()).fit(coloured("ab"))
    learner.save(tmp_path)
    with pytest.raises(
        ValueError, match="saved with a method of the caller's own, Own; pass an instance as method="
    ):
        Learner.load(tmp_path)
    assert state(Learner.load(tmp_path, method=Own(), device="cpu")) == state(learner)


def test_a_backbone_of_the_callers_own_is_passed_again(tmp_path: Path) -> None:
    backbone = Backbone(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=0))
    make_learner(Frozen(), backbone=backbone).fit(coloured("ab")).save(tmp_path)
    with pytest.raises(ValueError, match="saved with a backbone of the caller's own; pass it as backbone="):
        Learner.load(tmp_path)
    assert Learner.load(tmp_path, backbone=backbone).classes == ("a", "b")


# Writing


@pytest.mark.parametrize("step", ["save_file", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(
    run: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner.load(run, device="cpu")
    before = (run / FILE).read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        if step == "save_file":
            patch.setattr(checkpoint, "save_file", full)
        elif step == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="no space left"):
            fit_all(learner, [coloured("cd")], checkpoint=run)
    assert (run / FILE).read_bytes() == before
    learner = Learner.load(run, device="cpu").fit(coloured("cd"), checkpoint=run)
    assert {path.name for path in run.iterdir()} == {FILE, "log.csv"}
    assert state(Learner.load(run, device="cpu")) == state(learner)


def test_saving_changes_nothing(tmp_path: Path) -> None:
    learner = make_learner(NTKCL()).fit(coloured("ab"))
    before = state(learner)
    learner.save(tmp_path / "one")
    learner.save(str(tmp_path / "two"))
    assert state(learner) == before
    assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "two" / FILE).read_bytes()


# Nothing is pickled


def pickling(source: str) -> list[str]:
    """Where a source could write or read a pickle: the offending calls and imports."""
    found = []
    nodes = list(ast.walk(ast.parse(source)))
    guarded = [
        node.func
        for node in nodes
        if isinstance(node, ast.Call) and "weights_only=True" in map(ast.unparse, node.keywords)
    ]
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [name.name for name in node.names] + [getattr(node, "module", None) or ""]
            found += [
                name for name in modules if name.split(".")[0] in ("pickle", "dill", "joblib", "shelve")
            ]
        elif isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            safe = whole == "torch.load" and node in guarded
            found += [whole] if whole in ("torch.load", "torch.save", "np.save") and not safe else []
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found += [] if ast.unparse(node.value) == "False" else ["allow_pickle"]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load":
            found += [] if any(keyword.arg == "allow_pickle" for keyword in node.keywords) else ["np.load"]
    return found


def test_nothing_is_ever_pickled() -> None:
    files = [path for part in ("sdk", "export", "runtime") for path in (SOURCE / part).rglob("*.py")]
    assert len(files) > 30
    assert {path.name: found for path in files if (found := pickling(path.read_text()))} == {}
    assert pickling("torch.load(path, weights_only=True)") == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import dump",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(torch.load(path), weights_only=True)",
        "load = torch.load",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "f(allow_pickle=unsafe)",
    ],
)
def test_a_pickle_would_be_found(source: str) -> None:
    assert pickling(source)


def test_weights_beside_a_backbone_are_refused(tmp_path: Path) -> None:
    make_learner(Frozen()).fit(coloured("ab")).save(tmp_path)
    with pytest.raises(ValueError, match="is made already, so weights='random' would change nothing"):
        Learner.load(tmp_path, backbone=vit(), weights="random")
    with pytest.raises(ValueError, match="backbone is a int; give a name"):
        Learner.load(tmp_path, backbone=3)  # type: ignore[arg-type]
