"""The training step as a graph: it trains as torch does, on real images, and a device can run it."""

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from everlearn import LDA, NTKCL, Frozen, Learner, SimpleCIL, load_backbone
from everlearn.data import photographs
from everlearn.data.loader import Loader
from everlearn.trainable import trainable
from everlearn_export.step_parity import StepParityError, verify_step
from everlearn_export.train_step import Trainable, to_step
from everlearn_runtime import Bundle, BundleError, EdgeLearner, OnnxRuntime, TrainStep
from everlearn_runtime.train_step import BLOCKS, Settings, StepParity

from ..conftest import coloured, fit_all, make_learner, pixels, vit

BLOCKS_OF_ADAPTERS = ("last2", "all")


@dataclass
class Exported:
    """A learner, and the bundles it wrote, by what trains."""

    learner: Learner
    folder: Path

    def bundle(self, blocks: str) -> Bundle:
        """That bundle, written when it is first asked for."""
        path = self.folder / blocks
        if not path.exists():
            self.learner.export(path, train_step=blocks, images=coloured("abcd", 10, seed=4))
        return Bundle.open(path)

    def graph(self, blocks: str) -> bytes:
        return (self.bundle(blocks).path / "train_step.onnx").read_bytes()

    def trainable(self, blocks: str) -> Trainable:
        """What that step was made from."""
        decay = self.learner.training.weight_decay
        made = trainable(self.learner.method, blocks, weight_decay=decay, tasks=2)
        backbone = self.learner.backbone
        return made.behind(backbone.mean.flatten().tolist(), backbone.std.flatten().tolist())

    def inputs(self, blocks: str, images: NDArray[np.uint8]) -> NDArray[np.generic]:
        """What that step trains on."""
        backend = OnnxRuntime(self.bundle(blocks).features, threads=1)
        try:
            if blocks == "all":
                return images
            return backend.tokens(images) if blocks == "last2" else backend.run(images)
        finally:
            backend.close()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    # Three blocks, so that the last two are not all; a head that also sees parts that the loss does not.
    learner = make_learner(NTKCL(), backbone=vit(depth=3))
    return Exported(fit_all(learner, [coloured("ab"), coloured("cd")]), tmp_path_factory.mktemp("train_step"))


def real_images(exported: Exported, count: int) -> NDArray[np.uint8]:
    sample = photographs(count)
    return Loader(sample, exported.learner.backbone, torch.device("cpu")).pixels(list(range(count)))


# It trains as torch does


class Alone(Exported):
    """The graph of the last blocks' step alone: the ten before take longer to trace than all else."""

    @cached_property
    def step(self) -> bytes:
        return to_step(self.trainable("last2"), torch.from_numpy(self.inputs("last2", real_images(self, 1))))

    def graph(self, blocks: str) -> bytes:
        assert blocks == "last2"
        return self.step

    def inputs(self, blocks: str, images: NDArray[np.uint8]) -> NDArray[np.generic]:
        assert blocks == "last2"
        whole, normalise = self.trainable("last2").whole, self.learner.backbone.normalise
        assert whole is not None
        with torch.no_grad():
            _features, tokens = whole(normalise(torch.from_numpy(images)))
        return np.asarray(tokens)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """With the backbone that comes with the package."""
    learner = make_learner(NTKCL(depths=()), backbone=load_backbone(), epochs=1)
    return Alone(fit_all(learner, [coloured("ab"), coloured("cd")]), tmp_path_factory.mktemp("pretrained"))


def trained(exported: Exported, blocks: str, batch: int, rate: float) -> StepParity:
    """Twenty steps by the graph and by torch, on photographs."""
    return verify_step(
        exported.graph(blocks),
        exported.trainable(blocks),
        exported.inputs(blocks, real_images(exported, 40)),
        np.arange(40) % 4,
        exported.learner.head.prototypes,
        steps=20,
        batch=batch,
        rate=rate,
    )


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_twenty_steps_on_photographs_are_those_of_torch(pretrained: Exported, batch: int) -> None:
    parity = trained(pretrained, "last2", batch, rate=1e-4)
    assert parity.steps == 20
    assert parity.loss < 1e-4  # NaN is not less
    assert parity.parameters < 1e-4


@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("blocks", BLOCKS)
def test_whatever_trains_trains_as_in_torch(exported: Exported, blocks: str, batch: int) -> None:
    parity = trained(exported, blocks, batch, rate=1e-3)
    assert parity.loss < 1e-4
    # Where a gradient is hardly more than rounding, AdamW still makes a step of the rate's length.
    assert parity.parameters < 1e-3


def test_the_gate_sees_a_step_that_trains_otherwise(exported: Exported) -> None:
    images = real_images(exported, 8)
    given = exported.trainable("last2")
    for changes in ({"sharpness": 6.0}, {"regularisation": 1.0}, {"betas": (0.5, 0.999)}):
        other = replace(given, settings=replace(given.settings, **changes))
        with pytest.raises(StepParityError, match=r"does not train as torch does: over 20 steps"):
            verify_step(
                exported.graph("last2"),
                other,
                exported.inputs("last2", images),
                np.arange(8) % 4,
                exported.learner.head.prototypes,
                steps=20,
                rate=1e-2,
            )


def test_adams_eps_survives_the_export(exported: Exported) -> None:
    bundle = exported.bundle("last2")
    adapters = bundle.adapters()
    for name, value in adapters.items():
        if ".up.weight" in name:  # then nothing comes back to the other layer, and 0 / 0 without eps
            adapters[name] = np.zeros_like(value)
    still = [name for name in adapters if ".down." in name]
    step = TrainStep(bundle.path / "train_step.onnx", adapters, exported.learner.head.prototypes, threads=1)
    tokens = exported.inputs("last2", real_images(exported, 4))
    step.step(tokens, np.arange(4), 1e-3)
    shrunk = 1 - 1e-3 * exported.trainable("last2").settings.weight_decay
    for name in still:
        np.testing.assert_allclose(step.adapters[name], shrunk * adapters[name], rtol=1e-6)


def test_an_eps_that_the_exporter_leaves_out_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eps is 1e-08; give at least 1e-07"):
        Trainable("head", torch.nn.Identity(), Settings(eps=1e-8), 1, [4])


@pytest.mark.parametrize("blocks", BLOCKS)
def test_training_learns_new_classes_from_any_number_of_images(exported: Exported, blocks: str) -> None:
    images = coloured("efg", 11, seed=1)
    inputs = exported.inputs(blocks, pixels(images))
    labels = np.repeat([4, 5, 6], 11)
    known = exported.learner.head.prototypes
    rows = np.concatenate([known, np.ones((3, known.shape[1]))])
    bundle = exported.bundle(blocks)
    step = TrainStep(bundle.path / "train_step.onnx", bundle.adapters(), rows, threads=1)
    rate = 5e-2 if blocks == "head" else 5e-3
    order = np.random.default_rng(0).permutation(33)
    losses = []
    for _ in range(6):
        for start, end in ((0, 1), (1, 3), (3, 16), (16, 33)):
            chosen = order[start:end]
            losses.append(step.step(inputs[chosen], labels[chosen], rate))
    assert step.steps == 24
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    moved = {name: np.abs(step.adapters[name] - value).max() for name, value in bundle.adapters().items()}
    assert bool(moved) == (blocks != "head")
    assert min(moved.values(), default=1.0) > 0


# What a bundle has of it


@pytest.mark.parametrize("blocks", BLOCKS)
def test_the_manifest_says_what_there_is(exported: Exported, blocks: str) -> None:
    bundle = exported.bundle(blocks)
    says = bundle.manifest.train_step
    assert says is not None
    assert bundle.manifest.format == 3
    assert (says["blocks"], says["tasks"]) == (blocks, 2)
    assert says["settings"]["sharpness"] == 12.0
    assert says["parity"]["loss"] < 1e-4
    adapters = bundle.adapters()
    assert {name: list(value.shape) for name, value in adapters.items()} == says["adapters"]
    numbers = {name.split(".")[1] for name in adapters}
    assert numbers == {"head": set(), "last2": {"1", "2"}, "all": {"0", "1", "2"}}[blocks]
    with EdgeLearner.open(bundle.path, threads=1) as edge:
        frames = pixels(coloured("abcd", 5, seed=9))
        assert edge.predict(frames).labels == exported.learner.predict(frames)


def test_shipped_values_are_the_averaged_adapters(exported: Exported) -> None:
    method = exported.learner.method
    assert isinstance(method, NTKCL)
    for name, value in exported.bundle("all").adapters().items():
        _, block, _, rest = name.split(".", 3)
        own = method.pre.get_parameter(f"channel.{block}.{rest}").detach().numpy()
        np.testing.assert_array_equal(value, own)


def test_tokens_and_adapters_give_the_features(exported: Exported) -> None:
    images = real_images(exported, 3)
    tokens = exported.inputs("last2", images)
    tail = exported.trainable("last2").tail
    backend = OnnxRuntime(exported.bundle("last2").features, threads=1)
    expected = backend.run(images)
    backend.close()
    with torch.inference_mode():
        found = tail(torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(found, expected[:, : found.shape[1]], atol=2e-5)
    widths = exported.learner.method.sections
    assert found.shape[1] == sum(widths[:2]) < expected.shape[1] == sum(widths)  # the head sees more


def test_a_bundle_without_tokens_says_so(exported: Exported) -> None:
    backend = OnnxRuntime(exported.bundle("all").features, threads=1)
    with pytest.raises(ValueError, match=r"gives no tokens; export it with train_step='last2'"):
        backend.tokens(real_images(exported, 1))
    backend.close()


def test_exporting_leaves_the_learner_as_it_was(exported: Exported) -> None:
    exported.bundle("last2")
    names = {name for name, value in exported.learner.method.named_parameters() if value.requires_grad}
    assert names
    assert all(name.startswith("cur.") for name in names)


def test_a_method_without_such_adapters_can_train_a_classifier(tmp_path: Path) -> None:
    learner = fit_all(make_learner(Frozen()), [coloured("ab")])
    with pytest.raises(ValueError, match=r"Frozen has no adapters that a device could train on.*'head'"):
        learner.export(tmp_path / "bundle", train_step="last2")
    hybrid = fit_all(make_learner(NTKCL(view="hybrid"), head=LDA()), [coloured("ab")])
    with pytest.raises(ValueError, match=r"NTKCL has no adapters that a device could train on"):
        hybrid.export(tmp_path / "bundle", train_step="all")
    with pytest.raises(
        ValueError, match=r"train_step is 'last3'; give None or one of 'head', 'last2', 'all'"
    ):
        learner.export(tmp_path / "bundle", train_step="last3")
    assert not (tmp_path / "bundle").exists()
    simple = fit_all(make_learner(SimpleCIL()), [coloured("ab")])
    assert simple.export(tmp_path / "bundle", train_step="head").format == 3
    assert Bundle.open(tmp_path / "bundle").adapters() == {}


def test_without_a_training_step_nothing_has_changed(exported: Exported, tmp_path: Path) -> None:
    manifest = exported.learner.export(tmp_path / "bundle")
    assert (manifest.format, manifest.train_step) == (1, None)
    model = onnx.load(tmp_path / "bundle" / "features.onnx")
    assert [output.name for output in model.graph.output] == ["features"]


# What a device cannot do with it


def test_what_does_not_fit_is_refused_and_changes_nothing(exported: Exported) -> None:
    bundle = exported.bundle("last2")
    rows = exported.learner.head.prototypes
    step = TrainStep(bundle.path / "train_step.onnx", bundle.adapters(), rows, threads=1)
    tokens = exported.inputs("last2", real_images(exported, 2))
    with pytest.raises(ValueError, match=r"labels go from 0 to 4; the classifier has rows 0 to 3"):
        step.step(tokens, [0, 4], 1e-3)
    with pytest.raises(ValueError, match=r"labels are int64 of shape \(1,\) for 2 inputs"):
        step.step(tokens, [0], 1e-3)
    with pytest.raises(ValueError, match=r"labels are float64"):
        step.step(tokens, [0.0, 1.0], 1e-3)
    with pytest.raises(ValueError, match=r"rate is nan; give a finite number above 0"):
        step.step(tokens, [0, 1], float("nan"))
    with pytest.raises(ValueError, match=r"the step failed on inputs of shape \(2, 5, 48\)"):
        step.step(tokens[:, :5], [0, 1], 1e-3)
    with pytest.raises(ValueError, match=r"step 1 gave values that are not finite"):
        step.step(np.full_like(tokens, np.nan), [0, 1], 1e-3)
    assert step.steps == 0
    for name, value in bundle.adapters().items():
        np.testing.assert_array_equal(step.adapters[name], value)
    with pytest.raises(BundleError, match=r"takes other inputs than the adapters"):
        TrainStep(bundle.path / "train_step.onnx", {}, rows)


# TensorRT


@pytest.mark.parametrize("blocks", BLOCKS_OF_ADAPTERS)
def test_the_graph_has_standard_operators_only(exported: Exported, blocks: str) -> None:
    model = onnx.load_from_string(exported.graph(blocks))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    kinds = Counter(node.op_type for node in model.graph.node)
    assert "LayerNormalization" not in kinds  # with a gradient it has outputs that TensorRT refuses
    assert "Attention" not in kinds


BUILD = """
import sys, tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
parsed = parser.parse(open(sys.argv[1], "rb").read())
print([parser.get_error(i).desc() for i in range(parser.num_errors)], file=open(sys.argv[2], "w"))
if not parsed:
    sys.exit(1)
config, profile = builder.create_builder_config(), builder.create_optimization_profile()
for given in map(network.get_input, range(network.num_inputs)):
    classes = given.name.endswith("classifier")
    shape = tuple((4 if classes else 8) if size == -1 else size for size in given.shape)
    if shape != tuple(given.shape):
        profile.set_shape(given.name, shape, shape, shape)
config.add_optimization_profile(profile)
config.builder_optimization_level = 0
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM86, 0)
sys.exit(builder.build_serialized_network(network, config) is None)
"""


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx-cu13 (everlearn[trt-rtx])")
@pytest.mark.parametrize("blocks", BLOCKS_OF_ADAPTERS)
def test_tensorrt_rtx_parses_and_builds_it(exported: Exported, blocks: str) -> None:
    # In a process of its own: the library writes to its output by the megabyte, whatever its logger says.
    folder = exported.bundle(blocks).path
    says = exported.folder / f"{blocks}.txt"
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder / "train_step.onnx"), str(says)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, says.read_text()
