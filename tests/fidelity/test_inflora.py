"""`DualLoRA(subspace="inflora")` and its subspaces against what the authors' InfLoRA release computed.

What the arrays are stands in `tests/data/oracles/inflora_released.md`. All sizes are read from the
file, so that others of its layout can be put in its place (see `compare.read`). Ours is computed in
float64, the release in float32: 1e-5 is allowed, where values are large times the largest.

Float32 leaves singular vectors of close values undetermined by a few 1e-5, and Adam carries that on.
So the tasks are replayed twice: with A as we choose it, where what is trained is held to that, and
with A put in as recorded, where everything is held to 1e-5.
"""

import copy
import json
import math
import os
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from everlearn import Backbone, DualLoRA
from everlearn.methods.base import LinearClassifier, TaskInfo
from everlearn.methods.dual_lora.inflora import dual_gpm
from everlearn.methods.dual_lora.subspaces import Subspace

from .compare import close, read

ORACLE = read("inflora_released.npz")
CONFIG: dict[str, Any] = json.loads(str(ORACLE["config/json"]))
FLOAT32 = 1e-5  # what the release's own rounding leaves between any two right answers
VECTORS = 5e-5  # singular vectors of close values, see the tolerances in the .md
GPM = sorted({name.split("/")[0] for name in ORACLE if name.startswith("dualgpm")})


def tensor(name: str) -> Tensor:
    return torch.from_numpy(ORACLE[name]).double()


def near(group: str, got: Any, name: str, atol: float = FLOAT32) -> None:
    """Hold to `atol`, relative to the largest of the numbers where that is above one."""
    expected = ORACLE[name]
    close(group, got, expected, atol * max(1.0, float(np.abs(expected).max(initial=0))))


def children(prefix: str, kind: str) -> list[int]:
    """The numbers of `task0`, `task1` or `layer0`, `layer1` ... below a name."""
    start = f"{prefix}/{kind}"
    return sorted({int(n[len(start) :].split("/")[0]) for n in ORACLE if n.startswith(start)})


# The rule of subspaces, on given moments


@pytest.mark.parametrize("group", GPM)
def test_the_subspaces_of_given_moments(group: str) -> None:
    for layer in children(f"{group}/task0", "layer"):
        subspace: Subspace | None = None
        for task in children(group, "task"):
            name = f"{group}/task{task}"
            moment, threshold = tensor(f"{name}/layer{layer}/moment"), ORACLE[f"{name}/threshold"].item()
            if ORACLE[f"{name}/error"].item():  # what the release calls an AssertionError
                with pytest.raises(ValueError, match="the released rule ends there"):
                    dual_gpm(moment, subspace, threshold)
                break
            subspace = dual_gpm(moment, subspace, threshold)
            same_subspace("subspaces of given moments", subspace, f"{name}/layer{layer}", 1e-9)


def same_subspace(group: str, found: Subspace, name: str, atol: float = FLOAT32) -> None:
    basis = tensor(f"{name}/basis")
    assert found.basis.shape == basis.T.shape
    assert ("retain" if found.free else "remove") == ORACLE[f"{name}/basis_kind"].item()
    close(group, found.basis.T @ found.basis, (basis @ basis.T).numpy(), atol)


@pytest.mark.skipif("EVERLEARN_ORACLES" in os.environ, reason="of the record that comes with the tests")
def test_the_cases_of_the_rule_are_on_record() -> None:
    kinds = {ORACLE[name].item() for name in ORACLE if name.endswith("/basis_kind")}
    assert kinds == {"remove", "retain"}
    assert any(ORACLE[f"{group}/task0/error"].item() for group in GPM)


# Whole runs: three attention modules side by side, and a ViT


class Modules(VisionTransformer):  # type: ignore[misc]
    """Attention modules fed with tokens of their own; the feature is the sum of their first outputs.

    The tokens lie below each other in the first channel of the image.
    """

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        tokens = torch.unflatten(x[:, 0], 1, (len(self.blocks), -1))
        outputs = [block.attn(tokens[:, i])[:, 0] for i, block in enumerate(self.blocks.children())]
        return torch.stack(outputs).sum(0)


class Run(NamedTuple):
    """What of the two recorded runs differs."""

    prefix: str
    method: Callable[[], DualLoRA]
    images: Tensor


@cache
def projection() -> Run:
    config, tokens = CONFIG["projection"], tensor("projection/tokens")
    images, modules, count, width = tokens.shape
    model = Modules(
        img_size=(modules * count, width),
        patch_size=(1, width),
        embed_dim=width,
        depth=modules,
        num_heads=config["heads"],
        num_classes=0,
    )
    for index, block in enumerate(model.blocks.children()):
        start = f"projection/layer{index}/"
        weights = {n[len(start) :]: tensor(n) for n in ORACLE if n.startswith(start)}
        block.get_submodule("attn").load_state_dict(weights)
    pixels = tokens.reshape(images, 1, modules * count, width).expand(-1, 3, -1, -1)
    return Run("projection", partial(released, config, model), pixels)


@cache
def vit() -> Run:
    config = CONFIG["vit"]
    model = VisionTransformer(
        img_size=config["image_size"],
        patch_size=config["patch_size"],
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["heads"],
        mlp_ratio=config["mlp_ratio"],
        norm_layer=partial(nn.LayerNorm, eps=config["layernorm_eps"]),
        num_classes=0,
    )
    start = "vit/backbone/"
    model.load_state_dict({n[len(start) :]: tensor(n) for n in ORACLE if n.startswith(start)})
    return Run("vit", partial(released, config, model), tensor("vit/image") / 255)


RUNS = [projection, vit]
GIVEN = pytest.mark.parametrize("given", [False, True], ids=["own A", "A given"])


def of_a(prefix: str) -> float:
    """What is allowed for A: float32 turns a singular vector by its rounding over the gap to the next."""
    allowed = VECTORS
    for name in ORACLE:
        if name.startswith(prefix) and name.endswith("/design_singular_values"):
            values = ORACLE[name].astype(np.float64)
            rank = len(ORACLE[name.replace("design_singular_values", "A")])
            allowed = max(allowed, 1e-8 * values[0] / np.min(-np.diff(values)[:rank]))
    return allowed


def after_a(prefix: str, given: bool) -> float:
    """What is allowed for numbers that follow from A by training."""
    return FLOAT32 if given else of_a(prefix)


def released(config: dict[str, Any], model: VisionTransformer) -> DualLoRA:
    """The released form in float64 with the record's settings and weights."""
    method = DualLoRA(
        subspace="inflora",
        rank=config["rank"],
        energy=(config["lamb"], config["lame"]),
        tasks=config["tasks"],
        patches=False,
    )
    backbone = Backbone(copy.deepcopy(model))
    backbone.fuse_attention(False)
    method.attach(backbone)
    return method.double().eval()


def rate(config: dict[str, Any], epoch: int) -> float:
    """The released schedule: a quarter of a cosine, an epoch late."""
    last = max(config["epochs"] - 1, 1)
    return float(config["lr"] * math.cos(99 * math.pi * max(epoch - 1, 0) / (200 * last)))


class Recorded(NamedTuple):
    """A task of a run of ours: the state before its end, its losses, and the state after."""

    losses: list[float]
    moments: list[Tensor]
    moments_after: list[Tensor]
    trained: DualLoRA
    after: DualLoRA


@cache
def replay(made: Callable[[], Run], given: bool = False) -> list[Recorded]:
    """Train all tasks in the recorded order, from the recorded classifiers, with A own or given."""
    run = made()
    config, tasks, method = CONFIG[run.prefix], [], run.method()
    classes, batch, epochs = config["classes_per_task"], config["batch"], config["epochs"]
    labels = torch.from_numpy(ORACLE[f"{run.prefix}/label"])
    for task in range(config["tasks"]):
        first, group = task * classes, f"{run.prefix}/task{task}"
        names = [str(label) for label in range(first + classes)]
        passes = torch.from_numpy(ORACLE[f"{group}/order"]).view(epochs + 3, -1)

        def batches(rows: Tensor, first: int = first) -> Iterable[tuple[Tensor, Tensor]]:
            return [(run.images[part], labels[part] - first) for part in torch.split(rows, batch)]

        empty = torch.zeros(0, method.backbone.width)
        method.begin_task(TaskInfo(task, tuple(names[first:]), tuple(names[:first]), empty))
        classifier(method).load_state_dict(
            {name: tensor(f"{group}/classifier_start.{name}") for name in ("weight", "bias")}
        )
        moments = method.moments(batches(passes[0]))
        method.survey(batches(passes[0]))
        if given:
            for layer, branch in enumerate(method.orthogonal):
                branch.down.copy_(tensor(f"{group}/layer{layer}/A"))
        adam, losses = torch.optim.Adam(method.trainable()), []
        for epoch in range(epochs):
            adam.param_groups[0]["lr"] = rate(config, epoch)
            for images, targets in batches(passes[1 + epoch]):
                loss = method.loss(images, targets)["ce"]
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
                losses.append(loss.item())
        trained = copy.deepcopy(method)
        method.end_task(batches(passes[1 + epochs]))
        after = method.moments(batches(passes[1 + epochs]))
        tasks.append(Recorded(losses, moments, after, trained, copy.deepcopy(method)))
    return tasks


def classifier(method: DualLoRA) -> LinearClassifier:
    assert method.classifier is not None
    return method.classifier


def each(made: Callable[[], Run], given: bool = False) -> Iterable[tuple[str, str, int, Recorded]]:
    """What to call the run, the task's name in the record, its index, and ours."""
    prefix = made().prefix
    for index, found in enumerate(replay(made, given)):
        yield f"{prefix}, A given" if given else prefix, f"{prefix}/task{index}", index, found


@pytest.mark.parametrize("made", RUNS)
def test_the_rows_of_a(made: Callable[[], Run]) -> None:
    for prefix, group, _, found in each(made):
        for layer, branch in enumerate(found.trained.orthogonal):
            for own in branch.down:
                expected = ORACLE[f"{group}/layer{layer}/A"]
                close(f"{prefix}: A'A", own.T @ own, expected.T @ expected, of_a(prefix))
                close(f"{prefix}: A up to sign", signs(found, group, layer) @ own, expected, of_a(prefix))


def signs(found: Recorded, group: str, layer: int) -> Tensor:
    """A diagonal matrix of the signs that our rows of A have beside the record's."""
    own = found.trained.orthogonal[layer].down[0]
    return torch.diag((own * tensor(f"{group}/layer{layer}/A")).sum(1).sign())


@pytest.mark.parametrize("made", RUNS)
def test_the_moments_and_what_a_is_taken_from(made: Callable[[], Run]) -> None:
    for prefix, group, index, found in each(made):
        for layer, moment in enumerate(found.moments):
            name = f"{group}/layer{layer}"
            if f"{name}/moment_before" in ORACLE:
                near(f"{prefix}: moments", moment, f"{name}/moment_before")
            before = found.trained.psi(layer)
            design = before.outside(moment) if index else moment
            near(f"{prefix}: design", design, f"{name}/design_matrix")
            near(f"{prefix}: design", torch.linalg.svdvals(design), f"{name}/design_singular_values")
            near(f"{prefix}: moments", found.moments_after[layer], f"{name}/moment_after")


@GIVEN
@pytest.mark.parametrize("made", RUNS)
def test_the_losses_and_what_is_trained(made: Callable[[], Run], given: bool) -> None:
    atol = after_a(made().prefix, given)
    for title, group, _, found in each(made, given):
        near(f"{title}: loss", np.array(found.losses), f"{group}/loss_per_step", atol)
        for layer, branch in enumerate(found.trained.orthogonal):
            for part, own in zip(("B_k", "B_v"), branch.up, strict=True):
                value = own.detach() @ signs(found, group, layer)
                near(f"{title}: B", value, f"{group}/layer{layer}/{part}", atol)
        for name, value in classifier(found.trained).named_parameters():
            near(f"{title}: classifier", value, f"{group}/classifier.{name}", atol)


@GIVEN
@pytest.mark.parametrize("made", RUNS)
def test_the_merged_weights(made: Callable[[], Run], given: bool) -> None:
    atol = after_a(made().prefix, given)
    for title, group, _, found in each(made, given):
        for layer, branch in enumerate(found.after.orthogonal):
            _, key, value = branch.linear.weight.chunk(3)
            near(f"{title}: merged weights", key, f"{group}/layer{layer}/merged_k", atol)
            near(f"{title}: merged weights", value, f"{group}/layer{layer}/merged_v", atol)


@GIVEN
@pytest.mark.parametrize("made", RUNS)
def test_the_subspaces_after_each_task(made: Callable[[], Run], given: bool) -> None:
    for title, group, _, found in each(made, given):
        assert found.trained.threshold == pytest.approx(ORACLE[f"{group}/threshold"].item(), abs=1e-12)
        for layer in range(found.after.backbone.depth):
            own = found.after.psi(layer)
            same_subspace(f"{title}: subspaces", own, f"{group}/layer{layer}")
            near(f"{title}: subspaces", own.basis.T @ own.basis, f"{group}/layer{layer}/projection")


@GIVEN
@pytest.mark.parametrize("made", RUNS)
def test_features_logits_and_gradients(made: Callable[[], Run], given: bool) -> None:
    run: Run = made()
    known: list[LinearClassifier] = []
    atol = after_a(run.prefix, given)
    for title, group, index, found in each(made, given):
        rows = torch.from_numpy(ORACLE[f"{group}/probe_index"])
        # The first images of the ViT's probe are of the first task, and not in loss and gradients.
        own = rows[4:] if run.prefix == "vit" else rows
        method = copy.deepcopy(found.trained)
        known.append(classifier(method))
        features = method.features(run.images[rows])
        logits = classifier(method)(features)
        if run.prefix == "vit":
            joined = torch.cat([one(features) for one in known], 1)
            near(f"{title}: features", features, f"{group}/probe_features", atol)
            near(f"{title}: logits", joined, f"{group}/probe_logits_all", atol)
            near(f"{title}: logits", logits, f"{group}/probe_logits_current", atol)
        else:
            near(f"{title}: logits", logits, f"{group}/probe_logits", atol)
        first = index * CONFIG[run.prefix]["classes_per_task"]
        targets = torch.from_numpy(ORACLE[f"{run.prefix}/label"])[own] - first
        loss = method.loss(run.images[own], targets)["ce"]
        near(f"{title}: probe loss", loss, f"{group}/probe_loss", atol)
        loss.backward()  # type: ignore[no-untyped-call]
        for layer, branch in enumerate(method.orthogonal):
            assert branch.up.grad is not None
            for part, gradient in zip(("B_k", "B_v"), branch.up.grad, strict=True):
                name = f"{group}/probe_grad/layer{layer}/{part}"
                near(f"{title}: gradients", gradient @ signs(found, group, layer), name, atol)


def test_the_drift_of_the_first_tasks_outputs() -> None:
    run = projection()
    count = len(ORACLE["projection/task0/layer0/attention_out_task0_probe"])
    for _, group, _, found in each(projection):
        for method in (found.trained, found.after):  # merging changes nothing
            for layer, block in enumerate(method.twin.blocks()):
                tokens = torch.unflatten(run.images[:count, 0], 1, (method.backbone.depth, -1))[:, layer]
                with torch.no_grad():
                    output = block.attn(tokens)
                near("projection: drift", output, f"{group}/layer{layer}/attention_out_task0_probe")
