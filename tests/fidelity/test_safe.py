"""`SAFE(variant="released")` against what the authors' released code computed.

What the arrays are stands in `tests/data/oracles/safe_released.md`. All sizes are read from the
file, so that others of its layout can be put in its place (see `compare.read`).
"""

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from everlearn import SAFE, Aggregate, Backbone
from everlearn.adapters import Bottlenecks, DeepPrompts
from everlearn.methods.base import CosineClassifier, TaskInfo
from everlearn.methods.losses import cross_correlation
from everlearn_runtime import Head, HeldOutRidge
from everlearn_runtime.heads import SharedAggregate
from everlearn_runtime.heads.aggregate import aggregate, entropy
from everlearn_runtime.heads.held_out_ridge import held_out_errors

from .compare import Oracle, close, read

ORACLE = read("safe_released.npz")
CONFIG: dict[str, Any] = json.loads(str(ORACLE["config/json"]))
TASKS: list[int] = CONFIG["classes_per_task"]
STARTS = np.cumsum([0, *TASKS]).tolist()
WIDTH: int = CONFIG["embed_dim"]
GRID = tuple(round(math.log10(CONFIG["ridge_grid"][end])) for end in (0, -1))
LEARNERS = ("slow", "fast")  # in the order of the sections
SSF_LAYERS = {
    "patch_embed.1": "patch_embed.proj",
    "block.1": "norm1",
    "attn.1": "attn.qkv",
    "attn.2": "attn.proj",
    "block.2": "norm2",
    "mlp.1": "mlp.fc1",
    "mlp.2": "mlp.fc2",
    "1": "norm",
}
"""Layer that the release scales under a name, without the block's number."""


class Given(HeldOutRidge):
    """The released ridge, with a recorded projection and recorded orders of the rows."""

    kind = "recorded_held_out_ridge"
    projection = np.zeros((0, 0))
    orders: Iterator[NDArray[np.intp]] | None = None

    def random_projection(self, width: int) -> NDArray[np.float64]:
        return self.projection

    def order(self, rows: int) -> NDArray[np.intp]:
        return np.arange(rows) if self.orders is None else next(self.orders)


def part(prefix: str) -> Oracle:
    """The arrays below a name."""
    return {name[len(prefix) + 1 :]: ORACLE[name] for name in ORACLE if name.startswith(f"{prefix}/")}


def near(
    group: str, got: Any, expected: NDArray[Any], tolerance: float = 1e-5, smallest: float = 1.0
) -> None:
    """Hold numbers to `tolerance`, relative to a row's largest where that is above `smallest`."""
    value = np.asarray(got.detach().numpy() if isinstance(got, Tensor) else got, np.float64)
    assert value.size == expected.size
    rows = np.atleast_1d(expected)
    scale = np.maximum(np.abs(rows).max(axis=-1, keepdims=True), np.asarray(smallest, rows.dtype))
    close(group, value.reshape(rows.shape) / scale, rows / scale, tolerance)


def tensor(name: str) -> Tensor:
    return torch.from_numpy(ORACLE[name]).double()


def pixels(name: str, index: NDArray[np.int64] | None = None) -> Tensor:
    """Images in [0, 1], which the release does not normalise further."""
    images = ORACLE[f"image/{name}"]
    return torch.from_numpy(images if index is None else images[index]).double() / 255


def vit() -> Backbone:
    model = VisionTransformer(
        img_size=CONFIG["image_size"],
        patch_size=CONFIG["patch_size"],
        embed_dim=WIDTH,
        depth=CONFIG["depth"],
        num_heads=CONFIG["num_heads"],
        mlp_ratio=CONFIG["mlp_ratio"],
        num_classes=0,
    )
    model.load_state_dict({name: torch.from_numpy(value) for name, value in part("backbone").items()})
    backbone = Backbone(model)
    backbone.fuse_attention(False)
    return backbone


def released(adapter: str = "bottleneck", **options: Any) -> SAFE:
    """The released variant in float64 with the record's settings."""
    method = SAFE(
        variant="released",
        adapter=adapter,
        hidden=CONFIG["adapter_rank"],
        scale=CONFIG["adapter_scale"],
        dropout=0.0,
        prompts=CONFIG["vpt_tokens"],
        diagonal=CONFIG["lambda_diag"],
        redundancy=CONFIG["lambda_rdn"],
        alignment=CONFIG["lambda_cos"],
        cross=CONFIG["cross_weight"],
        gamma=CONFIG["gamma"],
        projection=CONFIG["projection_width"],
        **options,
    )
    method.attach(vit())
    return method.double().eval()


def named(learner: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of a learner by the release's names."""
    if isinstance(learner, Bottlenecks):
        return {f"blocks.{name}": value for name, value in learner.named_parameters()}
    if isinstance(learner, DeepPrompts):
        return {"prompts": learner.prompts}
    assert isinstance(learner, Backbone)
    found = {}
    for released_name in part("ssf"):
        path, _, last = released_name.rpartition(".")
        kind, number = last.removeprefix("ssf_").split("_")
        inside = path.split(".")
        if inside[0] == "blocks":
            layer = f"blocks.{inside[1]}." + SSF_LAYERS[f"{(inside[2:] or ['block'])[0]}.{number}"]
        else:
            layer = SSF_LAYERS[f"{path}.{number}" if path else number]
        found[released_name] = learner.vit.get_parameter(f"{layer}.{kind}")
    return found


def put(learner: nn.Module, values: Oracle) -> None:
    own = named(learner)
    assert own.keys() == values.keys()
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(torch.from_numpy(value))


def put_head(classifier: CosineClassifier, prefix: str) -> None:
    weight, scale = tensor(f"{prefix}.weight"), tensor(f"{prefix}.sigma").squeeze()
    classifier.load_state_dict({"weight": weight, "scale": scale})


def begin(method: SAFE, index: int) -> None:
    names = [str(number) for number in range(STARTS[index + 1])]
    known, new = tuple(names[: STARTS[index]]), tuple(names[STARTS[index] :])
    method.begin_task(TaskInfo(index, new, known, torch.zeros(len(known), 2 * WIDTH)))
    method.survey(iter(()))


def gradients(method: SAFE, term: Tensor, adapter: str) -> dict[str, Tensor]:
    """Gradients by the release's names, zero where there is none."""
    parameters = {f"{adapter}/{name}": value for name, value in named(method.fast).items()}
    parameters |= {
        "head.weight": method.fast_classifier.weight,
        "head.sigma": method.fast_classifier.scale,
    }
    found = torch.autograd.grad(term, [*parameters.values()], retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(value) if gradient is None else gradient
        for (name, value), gradient in zip(parameters.items(), found, strict=True)
    }


def check_terms(method: SAFE, group: str, ours: dict[str, tuple[str, float]], adapter: str) -> None:
    """Every term of one batch, unweighted, and its gradients; then the weighted total's."""
    index, labels = ORACLE[f"{group}/index"], torch.from_numpy(ORACLE[f"{group}/label"])
    terms = method.loss(pixels("train", index), labels - method.known)
    assert terms.keys() == {name for name, _ in ours.values()}
    for name, (own, weight) in ours.items():
        term = terms[own] / weight
        near(f"{group}: losses", term, ORACLE[f"{group}/loss_{name}"])
        for parameter, gradient in gradients(method, term, adapter).items():
            near(f"{group}: gradients", gradient, ORACLE[f"{group}/grad_{name}/{parameter}"], 5e-6)
    total = torch.stack([*terms.values()]).sum()
    near(f"{group}: losses", total, ORACLE[f"{group}/loss_total"])
    expected = part(f"{group}/grad_total")
    got = gradients(method, total, adapter)
    assert got.keys() == expected.keys()
    for parameter, gradient in got.items():
        near(f"{group}: gradients", gradient, expected[parameter], 5e-6)


def gram(head: Head) -> NDArray[np.float64]:
    """G of a ridge, whole."""
    packed = head.state().arrays["gram"]
    width = CONFIG["projection_width"]
    whole = np.zeros((width, width))
    below = np.tril_indices(width)
    whole[below] = whole.T[below] = packed
    return whole


def weights(head: Head, projection: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C, M), found from the scores of many random features."""
    features = np.random.default_rng(0).normal(size=(20 * projection.shape[1], WIDTH))
    solved = np.linalg.lstsq(np.maximum(features @ projection, 0), head.scores(features), rcond=None)[0]
    return np.asarray(solved.T, np.float64)


def new_head(projection: str, *, shared: bool = True, monkeypatch: pytest.MonkeyPatch) -> Aggregate:
    """The released head, with a recorded projection."""
    monkeypatch.setattr(Given, "projection", ORACLE[projection].astype(np.float64))
    monkeypatch.setattr(Given, "orders", None)
    ridge = Given(projection=CONFIG["projection_width"], grid=GRID)
    kind = SharedAggregate if shared else Aggregate
    return kind([WIDTH, WIDTH], [ridge, ridge], CONFIG["gamma"])


def check_ridges(group: str, head: Aggregate, record: Oracle, after: str) -> None:
    for name, ridge in zip(LEARNERS, head.heads, strict=True):
        assert isinstance(ridge, Given)
        near(f"{group}: G", gram(ridge), record[f"G{after}_{name}"].ravel(), 3e-6)
        columns, expected = [int(label) for label in head.classes], record[f"Q{after}_{name}"]
        near(f"{group}: Q", ridge.state().arrays["sums"].T, expected[:, columns].ravel(), 3e-6)
        assert not np.delete(expected, columns, axis=1).any()
        solved = weights(ridge, ridge.projection)
        near(f"{group}: weights", solved, record[f"weight_{name}"][columns].ravel(), 5e-5, smallest=1e-9)
        if f"ridge_{name}" in record:
            assert ridge.strength == record[f"ridge_{name}"]


@torch.no_grad()
def test_features() -> None:
    images = pixels("test")
    method = released()
    near("features: pretrained", method.backbone.features(images), ORACLE["features/ptm"])
    for learner, name in ((method.slow, "slow"), (method.fast, "fast")):
        put(learner, part(f"adapter/{name}"))
    expected = np.hstack([ORACLE["features/adapter_slow"], ORACLE["features/adapter_fast"]])
    near("features: bottleneck", method.features(images), expected)
    for adapter in ("ssf", "vpt"):
        method = released(adapter)
        for learner in (method.slow, method.fast):
            put(learner, part(adapter))
        near(f"features: {adapter}", method.features(images), np.hstack([ORACLE[f"features/{adapter}"]] * 2))


@pytest.mark.parametrize("adapter", ["bottleneck", "ssf"])
def test_the_first_tasks_losses_and_gradients(adapter: str) -> None:
    group, name = ("slow", "adapter") if adapter == "bottleneck" else ("slow_ssf", "ssf")
    method = released(adapter)
    begin(method, 0)
    for learner in (method.slow, method.fast):
        put(learner, part("adapter/slow" if adapter == "bottleneck" else "ssf"))
    put_head(method.fast_classifier, f"{group}/head")
    images = pixels("train", ORACLE[f"{group}/index"])
    with torch.no_grad():
        features, _ = method.features(images).chunk(2, 1)
        pretrained = method.backbone.features(images)
        near(f"{group}: features", features, ORACLE[f"{group}/features"])
        near(f"{group}: features", pretrained, ORACLE[f"{group}/features_ptm"])
        near(f"{group}: logits", method.fast_classifier(features), ORACLE[f"{group}/logits"])
        near(f"{group}: C", cross_correlation(features, pretrained), ORACLE[f"{group}/corr"])
    ours = {
        "ce": ("ce", 1.0),
        "diag": ("diagonal", method.diagonal),
        "redundancy": ("redundancy", method.redundancy),
    }
    check_terms(method, group, ours, name)


@pytest.mark.parametrize("group", ["fast", "fast_zero_rows"])
def test_later_tasks_losses_and_gradients(group: str) -> None:
    method = released()
    begin(method, 1)
    for name, learner, classifier in (
        ("slow", method.slow, method.slow_classifier),
        ("fast", method.fast, method.fast_classifier),
    ):
        put(learner, part(f"adapter/{name}"))
        put_head(classifier, f"{group}/head_{name}")
    assert method.known == ORACLE[f"{group}/known_classes"]
    with torch.no_grad():
        slow, fast = method.features(pixels("train", ORACLE[f"{group}/index"])).chunk(2, 1)
        near(f"{group}: features", slow, ORACLE[f"{group}/features_slow"])
        near(f"{group}: features", fast, ORACLE[f"{group}/features_fast"])
        near(f"{group}: logits", method.fast_classifier(fast), ORACLE[f"{group}/logits"])
        inputs = torch.cat([method.slow_classifier.weight[: method.known], slow])
        near(f"{group}: logits", method.fast_classifier(inputs), ORACLE[f"{group}/logits_fast_head"])
        inputs = torch.cat([method.fast_classifier.weight[: method.known], fast])
        near(f"{group}: logits", method.slow_classifier(inputs), ORACLE[f"{group}/logits_slow_head"])
    ours = {
        "ce": ("ce", 1.0),
        "align": ("alignment", method.alignment),
        "cross_fast_head": ("cross_fast", method.cross),
        "cross_slow_head": ("cross_slow", method.cross),
    }
    check_terms(method, group, ours, "adapter")


@pytest.mark.parametrize("shared", [True, False], ids=["released", "separate"])
def test_statistics_and_ridge_weights(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    head = new_head("rp/projection", shared=shared, monkeypatch=monkeypatch)
    columns = ORACLE["rp/released/task0/Q_after_fast"].shape[1]
    for index in range(sum(name.startswith("rp/task") and name.endswith("/label") for name in ORACLE)):
        rows = {name: ORACLE[f"rp/task{index}/features_{name}"].astype(np.float64) for name in LEARNERS}
        labels = ORACLE[f"rp/task{index}/label"]
        head.update(np.hstack([rows[name] for name in LEARNERS]), [str(label) for label in labels])
        kind = "released" if shared else "separate"
        record = part(f"rp/{kind}/task{index}")
        check_ridges(f"rp {kind}", head, record, "_after" if shared else "")
        for name in LEARNERS:
            hidden = np.maximum(rows[name] @ Given.projection, 0)
            errors = held_out_errors(hidden, labels, np.array(CONFIG["ridge_grid"]))
            held_out = (len(labels) - int(0.8 * len(labels))) * columns
            near("rp: held-out errors", errors / held_out, ORACLE[f"rp/task{index}/holdout_mse_{name}"])


@pytest.mark.parametrize("gamma", sorted({name.split("/")[1][5:] for name in ORACLE if "/gamma" in name}))
def test_aggregation(gamma: str) -> None:
    scores = np.stack([ORACLE[f"aggregate/logits_{name}"] for name in ("fast", "slow")]).astype(np.float64)
    record, labels = part(f"aggregate/gamma{gamma}"), ORACLE["aggregate/label"]
    combined, shares = aggregate(scores, float(gamma))
    near("aggregation: entropies", entropy(scores).T, record["entropy_fast_slow"])
    near("aggregation: weights", shares.T, record["weight_fast_slow"])
    near("aggregation: logits", combined, record["logits"])
    fast, both = (100 * float(np.mean(one.argmax(1) == labels)) for one in (scores[0], combined))
    assert fast == pytest.approx(record["accuracy_fast"], abs=0.01)
    assert both == pytest.approx(record["accuracy_aggregate"], abs=0.01)
    # What it reports is chosen by the labels that it is judged by; nothing here does that.
    assert record["accuracy_reported"] == pytest.approx(max(fast, both), abs=0.01)


def test_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    method = released()
    head = new_head("run/projection", monkeypatch=monkeypatch)
    put(method.fast, part("run/init/adapter"))
    for index in range(len(TASKS)):
        begin(method, index)
        run_task(method, head, index, monkeypatch)
        if index == 0:
            slow = {name: value.clone() for name, value in named(method.slow).items()}
    for name, value in named(method.slow).items():
        torch.testing.assert_close(value, slow[name], rtol=0, atol=0)


def run_task(method: SAFE, head: Aggregate, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    record, seen = part(f"run/task{index}"), STARTS[index + 1]
    if index:
        for name, classifier in (("slow", method.slow_classifier), ("start", method.fast_classifier)):
            check_head(classifier, f"run/task{index}/train/head_{name}", "run: heads at the start")
    else:
        put_head(method.fast_classifier, "run/init/head")
    near("run: losses", train(method, index), record["train/loss_per_step"])
    for name, value in named(method.fast).items():
        near("run: adapters", value, record[f"adapter/fast/{name}"])
    check_head(method.fast_classifier, f"run/task{index}/train/head", "run: heads")
    method.end_task(iter(()))
    for name, classifier in (("slow", method.slow_classifier), ("fast", method.fast_classifier)):
        near("run: scales", classifier.scale, record[f"rp/sigma_{name}"])

    labels = ORACLE["image/train_label"]
    rows = np.flatnonzero((labels >= STARTS[index]) & (labels < seen))
    with torch.no_grad():
        features = method.features(pixels("train", rows)).numpy()
        unseen = method.features(pixels("test")[torch.from_numpy(ORACLE["image/test_label"] < seen)]).numpy()
    places = {int(row): place for place, row in enumerate(rows)}
    orders = {name: np.array([places[int(row)] for row in record[f"rp/order_{name}"]]) for name in LEARNERS}
    for name, own in zip(LEARNERS, np.hsplit(features, 2), strict=True):
        near("run: features", own[orders[name]], record[f"rp/features_{name}"])
    monkeypatch.setattr(Given, "orders", iter([orders["fast"], orders["slow"]]))
    method.teach(head, features, [str(label) for label in labels[rows]])
    check_ridges("run", head, {n.removeprefix("rp/"): v for n, v in record.items()}, "_after")

    each = [
        sharpness * ridge.scores(own)
        for sharpness, ridge, own in zip(head.sharpness, head.heads, np.hsplit(unseen, 2), strict=True)
    ]
    if index == 0:
        near("run: test logits", each[1], record["eval/logits"])
        return
    for name, scores in zip(LEARNERS, each, strict=True):
        near("run: test logits", scores, record[f"eval/logits_{name}"])
    near("run: test logits", head.scores(unseen), record["eval/logits_aggregate"])
    _, shares = aggregate(np.stack(each), CONFIG["gamma"])
    near("run: test weights", shares[::-1].T, record["eval/weight_fast_slow"])


def check_head(classifier: CosineClassifier, prefix: str, group: str) -> None:
    """Rows in direction and length: the release's new rows are up to 1e11 long."""
    got, expected = classifier.weight.detach().numpy(), ORACLE[f"{prefix}.weight"].astype(np.float64)
    lengths = np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-12)
    near(group, got / lengths, expected / lengths)
    near(group, classifier.scale, ORACLE[f"{prefix}.sigma"])


def train(method: SAFE, index: int) -> list[float]:
    """Train as recorded, and give the total loss of each step."""
    epochs = CONFIG["epochs_later" if index else "epochs_task0"]
    order = ORACLE[f"run/task{index}/train/order"].reshape(epochs, -1)
    sgd = torch.optim.SGD(
        method.trainable(), CONFIG["lr"], momentum=CONFIG["momentum"], weight_decay=CONFIG["weight_decay"]
    )
    losses = []
    method.train()
    for epoch, rows in enumerate(order):
        span = CONFIG["lr"] - CONFIG["eta_min"]
        rate = CONFIG["eta_min"] + span * (1 + math.cos(math.pi * epoch / CONFIG["cosine_T_max"])) / 2
        sgd.param_groups[0]["lr"] = rate
        for start in range(0, len(rows), CONFIG["batch_size"]):
            batch = rows[start : start + CONFIG["batch_size"]]
            targets = torch.from_numpy(ORACLE["image/train_label"][batch]) - method.known
            total = torch.stack([*method.loss(pixels("train", batch), targets).values()]).sum()
            sgd.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            sgd.step()
            losses.append(total.item())
    method.eval()
    return losses
