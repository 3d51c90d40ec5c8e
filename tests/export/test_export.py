"""Export: the graph on the device computes what the method does, or there is no bundle."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from everlearn import LDA, NTKCL, Frozen, Learner, Prototypes, exporting, load_backbone
from everlearn.data import photographs
from everlearn_export import Limits, Parity, ParityError, export_bundle, verify
from everlearn_export.onnx import quiet, to_onnx, with_preprocessing
from everlearn_runtime import EdgeLearner, InputSpec, Manifest, OnnxRuntime, from_state, prepare

from ..conftest import cnn, coloured, fit_all, make_learner, pixels, state

SPEC = InputSpec(16, 16, resize=16)


@dataclass
class Exported:
    """A learner, and the bundle it wrote."""

    learner: Learner
    bundle: Path
    manifest: Manifest


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    learner = fit_all(make_learner(NTKCL(view="hybrid"), head=LDA()), [coloured("ab"), coloured("cd")])
    path = tmp_path_factory.mktemp("export") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everlearn_export.bundle.to_onnx", to_onnx)  # in truth, whatever was traced before
        return Exported(learner, path, learner.export(path, images=coloured("abcd", 3, seed=4)))


@pytest.fixture
def edge(exported: Exported) -> Iterator[EdgeLearner]:
    with EdgeLearner.open(exported.bundle, threads=1) as opened:
        yield opened


# The graph


def test_the_graph_is_of_opset_20_and_static_but_for_the_batch(exported: Exported) -> None:
    model = onnx.load(exported.bundle / "features.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    (images,), (features,) = model.graph.input, model.graph.output
    assert (images.name, features.name) == ("images", "features")
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert features.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    batch, *size = images.type.tensor_type.shape.dim
    assert batch.dim_param
    assert [dimension.dim_value for dimension in size] == [32, 32, 3]
    assert features.type.tensor_type.shape.dim[1].dim_value == 96
    assert features.type.tensor_type.shape.dim[0].dim_param == batch.dim_param


def test_layer_norm_stays_one_node(exported: Exported) -> None:
    nodes = [node.op_type for node in onnx.load(exported.bundle / "features.onnx").graph.node]
    # Four branches with at least the second block's two and the last one; and the two prompt
    # generators that reach the features.
    assert nodes.count("LayerNormalization") >= 4 * 3 + 2
    assert {"ReduceMean", "Pow", "Sqrt", "Attention", "Dropout"}.isdisjoint(nodes)


def test_no_weight_is_outside_the_file(exported: Exported) -> None:
    assert sorted(path.name for path in exported.bundle.iterdir()) == [
        "features.onnx",
        "head.safetensors",
        "manifest.json",
    ]


@pytest.mark.parametrize("batch", [1, 2, 3, 32, 33])
def test_any_batch_size_gives_the_features(exported: Exported, batch: int) -> None:
    session = onnxruntime.InferenceSession(exported.bundle / "features.onnx")
    data = coloured("abcdefghijk", 3, seed=5).subset(range(batch))
    (features,) = session.run(None, {"images": pixels(data, exported.learner)})
    np.testing.assert_allclose(features, exported.learner.features(data), rtol=0, atol=1e-5)
    assert features.dtype == np.float32


# The device


def test_the_device_sees_the_same_features_and_classes(exported: Exported, edge: EdgeLearner) -> None:
    unseen = coloured("abcd", 10, seed=6)
    found = edge.predict(pixels(unseen, exported.learner))
    features = exported.learner.features(unseen)
    backend = OnnxRuntime(exported.bundle / "features.onnx", threads=1)
    assert np.abs(backend.run(pixels(unseen, exported.learner)) - features).max() < 1e-5
    assert found.labels == exported.learner.predict(pixels(unseen))
    assert found.classes == exported.learner.classes
    # A photograph of another size comes to the same pixels on both sides.
    photos = photographs(3)
    rows = np.stack([prepare(image, edge.bundle.manifest.input) for image, _ in photos])
    assert np.abs(backend.run(rows) - exported.learner.features(photos)).max() < 1e-5


def test_the_device_learns_what_the_sdks_head_learns(exported: Exported, edge: EdgeLearner) -> None:
    new, unseen = coloured("cef", 5, seed=7), pixels(coloured("abcdef", seed=8), exported.learner)
    head = from_state(exported.learner.head.state())
    backend = OnnxRuntime(exported.bundle / "features.onnx", threads=1)
    head.update(backend.run(pixels(new, exported.learner)), new.labels)
    edge.learn(pixels(new, exported.learner), new.labels)
    found = edge.predict(unseen)
    np.testing.assert_allclose(found.scores, head.scores(backend.run(unseen)), rtol=1e-6)
    assert found.labels == [name for name in "abcdef" for _ in range(6)]
    assert exported.learner.classes == tuple("abcd")


def test_the_manifest_says_how_the_model_came_to_be(exported: Exported) -> None:
    manifest = exported.manifest
    assert manifest.sections == (48, 48)
    assert manifest.classes == exported.learner.classes
    assert manifest.head["kind"] == "lda"
    assert manifest.input == exported.learner.backbone.input
    assert manifest.training == json.loads(json.dumps(exported.learner.record()))
    assert manifest.training["tasks"] == [["a", "b"], ["c", "d"]]
    assert manifest.parity["images"] == 36  # twelve, repeated to fill a batch of 32
    assert manifest.parity["batches"] == [1, 2, 32]
    assert 0 <= manifest.parity["max_abs_difference"] < 1e-5
    assert manifest.parity["min_cosine"] > 0.99999
    assert manifest.parity["top1_agreement"] == 1


def test_export_leaves_the_learner_as_it_was(exported: Exported) -> None:
    same = fit_all(make_learner(NTKCL(view="hybrid"), head=LDA()), [coloured("ab"), coloured("cd")])
    assert state(exported.learner) == state(same)
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize("level", [logging.NOTSET, logging.INFO, logging.CRITICAL])
def test_what_was_held_back_of_the_log_still_is_after_an_export(level: int) -> None:
    logging.disable(level)
    try:
        to_onnx(with_preprocessing(Small(), [0.5] * 3, [0.5] * 3), SPEC)
        assert logging.root.manager.disable == level
        held = max(level, logging.WARNING)

        def fail() -> None:
            with quiet():
                assert logging.root.manager.disable == held
                with quiet():
                    pass
                assert logging.root.manager.disable == held
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert logging.root.manager.disable == level
    finally:
        logging.disable(logging.NOTSET)


def test_the_normalisation_is_a_product_and_a_sum_of_floats(exported: Exported) -> None:
    nodes = onnx.load(exported.bundle / "features.onnx").graph.node
    way: list[str] = []
    tensor = "images"
    while len(way) < 5:
        (node,) = (node for node in nodes if tensor in node.input and node.op_type != "Shape")
        tensor = node.output[0]
        way.append(node.op_type)
    assert way == ["Cast", "Transpose", "Mul", "Add", "Conv"]


def test_a_path_that_is_taken_is_refused_before_any_work(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the graph was exported for nothing")

    monkeypatch.setattr("everlearn_export.bundle.to_onnx", never)
    before = {path: path.read_bytes() for path in exported.bundle.iterdir()}
    with pytest.raises(ValueError, match="already holds a bundle; give another path, or overwrite=True"):
        exported.learner.export(exported.bundle)
    assert {path: path.read_bytes() for path in exported.bundle.iterdir()} == before


# What the graph is verified on


@pytest.fixture
def verified_on(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.uint8]]:
    """The images that `Learner.export` hands to the gate; nothing is exported."""
    seen: list[NDArray[np.uint8]] = []
    monkeypatch.setattr(exporting, "export_bundle", lambda *_, images, **__: seen.append(images))
    return seen


def test_the_last_tasks_images_are_the_sample(verified_on: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    learner = fit_all(make_learner(Frozen()), [coloured("ab"), coloured("cd", 40)])
    learner.export(tmp_path / "bundle")
    (sample,) = verified_on
    every = pixels(coloured("cd", 40), learner)
    chosen = np.linspace(0, 79, 64).round().astype(int)
    np.testing.assert_array_equal(sample, every[chosen])


def test_a_loaded_learner_is_verified_on_photographs(
    verified_on: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    make_learner(Frozen()).fit(coloured("ab")).save(tmp_path)
    learner = Learner.load(tmp_path, device="cpu")
    learner.export(tmp_path / "bundle")
    learner.export(tmp_path / "bundle", images=coloured("c", 3))
    photos, given = verified_on
    np.testing.assert_array_equal(photos, pixels(photographs(64), learner))
    np.testing.assert_array_equal(given, pixels(coloured("c", 3), learner))


# Any module, and the gate


class Small(nn.Module):
    """Eight features of a 16 x 16 image; in an export it adds ``error``."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 8)
        self.error = error

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.linear(nn.functional.avg_pool2d(images, 8).flatten(1))
        return features + self.error if torch.compiler.is_exporting() else features


def small_bundle(path: Path, module: nn.Module, **changes: Any) -> Manifest:
    images = np.random.default_rng(0).integers(0, 256, size=(4, 16, 16, 3), dtype=np.uint8)
    head = Prototypes()
    head.update(np.eye(8)[:3], ["a", "b", "c"])
    given: dict[str, Any] = {
        "head": head,
        "input": SPEC,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "sections": [8],
        "images": images,
        "training": {"method": "none"},
    }
    return export_bundle(path, module.eval(), **{**given, **changes})


def test_the_normalisation_is_in_the_graph(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Small()
    small_bundle(tmp_path / "bundle", module)
    images = np.random.default_rng(1).integers(0, 256, size=(5, 16, 16, 3), dtype=np.uint8)
    normal = (images / 255 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
    with torch.no_grad():
        expected = module(torch.from_numpy(normal).float().permute(0, 3, 1, 2))
    found = OnnxRuntime(tmp_path / "bundle" / "features.onnx").run(images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    # Overwritten by another model.
    before = (tmp_path / "bundle" / "features.onnx").read_bytes()
    manifest = small_bundle(tmp_path / "bundle", module, overwrite=True, mean=[0.0, 0.0, 0.0])
    assert (tmp_path / "bundle" / "features.onnx").read_bytes() != before
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["files"] == manifest.files


def test_a_graph_that_is_not_the_model_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        ParityError,
        match=r"differ by up to 0\.01, 0\.0\d+ of their size \(allowed 0\.0001\).*no bundle was written",
    ):
        small_bundle(tmp_path / "bundle", Small(error=0.01))
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_there_outlives_a_graph_that_fails(exported: Exported) -> None:
    before = {path: path.read_bytes() for path in exported.bundle.parent.rglob("*") if path.is_file()}
    with pytest.raises(ParityError):
        small_bundle(exported.bundle, Small(), overwrite=True, tolerance=1e-12)
    after = {path: path.read_bytes() for path in exported.bundle.parent.rglob("*") if path.is_file()}
    assert after == before


def test_what_is_no_bundle_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("my only copy")
    with pytest.raises(ValueError, match="exists and is not an everlearn bundle"):
        small_bundle(tmp_path, Small(), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images have shape"):
        small_bundle(tmp_path / "bundle", Small(), images=np.zeros((1, 8, 8, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_a_cnn_is_exported_too(tmp_path: Path) -> None:
    backbone = cnn("resnet10t", channels=[16, 24, 32, 48])
    learner = Learner(backbone, Frozen(), device="cpu").fit(coloured("ab", 2))
    manifest = learner.export(tmp_path / "bundle")
    assert manifest.sections == (48,)
    with EdgeLearner.open(tmp_path / "bundle", threads=1) as edge:
        assert edge.predict(pixels(coloured("ab", 2), learner)).labels == ["a", "a", "b", "b"]


@pytest.mark.parametrize("name", ["repvit_m0_9", "fastvit_t8"])
def test_branches_for_training_are_merged(name: str) -> None:
    backbone = load_backbone(name, weights="random")
    generator = torch.Generator().manual_seed(0)
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):  # as after training
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
    method = Frozen()
    method.attach(backbone)
    deployed = method.deployable()
    layers = [sum(isinstance(one, nn.Conv2d) for one in module.modules()) for module in (method, deployed)]
    assert layers[1] < 0.9 * layers[0]
    images = torch.rand(2, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        torch.testing.assert_close(deployed(images), method.features(images), rtol=1e-4, atol=1e-5)


IMAGES = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(4, axis=1)


def features(images: NDArray[np.uint8], error: Any = 0.0) -> NDArray[np.float32]:
    """Two features of an image, the cosine and the sine of its first pixel, and an error."""
    angle = images[:, 0, 0, 0].astype(np.float32)
    return np.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1) + error, dtype=np.float32)


def two_classes() -> Prototypes:
    head = Prototypes()
    head.update(np.array([[1.0, 0.1], [-1.0, 0.1]]), ["right", "left"])
    return head


def test_parity_is_measured_at_every_batch_size_on_every_image() -> None:
    calls: list[int] = []

    def exported(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        calls.append(len(images))
        return features(images, 1e-5)

    parity = verify(features, exported, IMAGES, two_classes(), batches=(1, 2, 8))
    assert calls == [1] * 10 + [2] * 5 + [8, 2]
    assert isinstance(parity, Parity)
    assert (parity.images, parity.batches, parity.top1_agreement) == (10, (1, 2, 8), 1.0)
    assert parity.max_abs_difference == pytest.approx(1e-5, rel=0.1)
    assert 0.999999 < parity.min_cosine <= 1


def test_a_difference_at_one_batch_size_is_found() -> None:
    def specialised(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return features(images, 0.001 * (len(images) == 2))

    with pytest.raises(ParityError, match=r"differ by up to 0\.001, 0\.0014 of their size "):
        verify(features, specialised, IMAGES, two_classes())
    assert (
        verify(features, specialised, IMAGES, two_classes(), limits=Limits.within(0.002)).max_abs_difference
        > 9e-4
    )


@pytest.mark.parametrize("size", [1e-12, 5e-5, 8868.0, 1e20])
def test_differences_are_relative_to_the_features_size(size: float) -> None:
    def sized(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return (features(images) * size).astype(np.float32)

    def rounded(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return (sized(images).astype(np.float64) * (1 + 4e-7)).astype(np.float32)

    def off(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return (sized(images).astype(np.float64) * (1 + 5e-4)).astype(np.float32)

    parity = verify(sized, rounded, IMAGES, two_classes())
    assert parity.max_relative_difference == pytest.approx(4e-7 / 0.5**0.5, rel=0.3)
    assert parity.max_abs_difference == pytest.approx(size * 4e-7, rel=0.3)
    with pytest.raises(ParityError, match="of their size"):
        verify(sized, off, IMAGES, two_classes())


def test_a_small_section_is_measured_by_its_own_size() -> None:
    def both(images: NDArray[np.uint8], error: float = 0.0) -> NDArray[np.float32]:
        return np.concatenate([features(images) * np.float32(1e4), features(images, error)], axis=1)

    head = Prototypes()
    head.update(np.array([[1.0, 0.1] * 2, [-1.0, 0.1] * 2]), ["right", "left"])
    assert verify(both, lambda images: both(images, 0.01), IMAGES, head).max_relative_difference < 1e-5
    with pytest.raises(ParityError, match=r"differ by up to 0\.01, 0\.014 of their size"):
        verify(both, lambda images: both(images, 0.01), IMAGES, head, sections=[2, 2])
    with pytest.raises(ValueError, match=r"sections \[2, 3\] make 5 features; torch gives 4"):
        verify(both, both, IMAGES, head, sections=[2, 3])


def test_an_image_whose_features_turn_is_found_by_their_cosine() -> None:
    def faint(images: NDArray[np.uint8], angle: float = 0.0) -> NDArray[np.float32]:
        found = features(images)
        found[images[:, 0, 0, 0] == 4] = np.array([np.cos(angle), np.sin(angle)]) * 1e-5
        return found

    with pytest.raises(ParityError, match=r"cosines fall to 0\.995004 \(allowed 0\.9999\), 100\.0%"):
        verify(faint, lambda images: faint(images, 0.1), IMAGES, two_classes())
    assert verify(faint, faint, IMAGES, two_classes()).min_cosine == pytest.approx(1, abs=1e-12)


def test_features_that_are_zero_must_stay_so() -> None:
    def none(images: NDArray[np.uint8], size: float = 0.0) -> NDArray[np.float32]:
        return np.full((len(images), 2), size, np.float32)

    assert verify(none, none, IMAGES, two_classes()).max_relative_difference == 0
    with pytest.raises(ParityError):
        verify(none, lambda images: none(images, 1e-30), IMAGES, two_classes())


def test_no_tolerance_lets_everything_pass() -> None:
    with pytest.raises(ParityError):
        verify(features, features, IMAGES, two_classes(), limits=Limits(float("nan"), -1, 0, 1))
    with pytest.raises(ValueError, match="no images to verify on"):
        verify(features, features, IMAGES[:0], two_classes())


def test_a_learner_passes_its_tolerance_on(tmp_path: Path) -> None:
    learner = make_learner(Frozen()).fit(coloured("ab"))
    with pytest.raises(ParityError, match=r"allowed 1e-12\)"):
        learner.export(tmp_path / "bundle", tolerance=1e-12)
    assert learner.export(tmp_path / "bundle").parity["max_relative_difference"] < 1e-5


def test_a_difference_at_one_image_is_found() -> None:
    def odd(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return features(images, 0.001 * (images[:, 0, 0] == 4))

    with pytest.raises(ParityError, match="differ by up to"):
        verify(features, odd, IMAGES, two_classes())


def test_an_image_that_changes_its_class_is_found() -> None:
    def edge_of_two(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.array([[-1e-6, 1e-6]] * len(images), np.float32)

    def other_side(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return -edge_of_two(images)

    with pytest.raises(ParityError, match=r"0\.0% of the classes agree \(all must\)"):
        verify(edge_of_two, other_side, IMAGES, two_classes())


def test_another_shape_and_nan_are_found() -> None:
    with pytest.raises(ParityError, match=r"at batch 1 the graph gives \(35, 1\), torch \(35, 2\)"):
        verify(features, lambda images: features(images)[:, :1], IMAGES, two_classes())
    with pytest.raises(ParityError, match="at batch 1 the graph gives values that are not finite"):
        verify(features, lambda images: features(images, np.nan), IMAGES, two_classes())
