"""`NTKCL(variant="released")` against what the authors' released code computed.

What the arrays are stands in `tests/data/oracles/ntkcl_released.md`. All sizes are read from the
file, so that others of its layout can be put in its place (see `compare.read`).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from everlearn import NTKCL, Backbone, Prototypes
from everlearn.methods.base import CosineClassifier, TaskInfo
from everlearn.methods.ntkcl.released import batch_wide_info_nce, complement_sum

from .compare import Oracle, close, read

ORACLE = read("ntkcl_released.npz")
CONFIG = {name.split("/")[1]: value.tolist() for name, value in ORACLE.items() if name.startswith("config/")}
TASKS = CONFIG["classes_per_task"]
STATES = ["init", "perturbed", "strong"]

# The released names of our adapters and of their parts.
VIEWS = {
    "S2": ("channel", {"down": "down", "up": "up"}),
    "S1": ("patch", {"token_map": "mix", "norm": "norm"}),
}


class Replay(NTKCL):
    """The released variant in which the old prototypes are not drawn, but those of a record."""

    drawn: Iterator[NDArray[np.int64]] = iter(())

    def negatives(self, count: int) -> Tensor:
        return torch.from_numpy(next(self.drawn))


def part(prefix: str) -> Oracle:
    """The arrays below a name."""
    return {name[len(prefix) + 1 :]: ORACLE[name] for name in ORACLE if name.startswith(f"{prefix}/")}


def tensor(name: str) -> Tensor:
    return torch.from_numpy(ORACLE[name]).double()


def images(name: str) -> Tensor:
    return tensor(f"input/{name}_images")


def names(view: str) -> dict[str, str]:
    """Released name of a parameter to ours."""
    return {f"{old}.{k}": f"{new}.{k}" for old, new in VIEWS[view][1].items() for k in ("weight", "bias")}


def put(adapters: nn.ModuleDict, values: Oracle) -> None:
    """Put values named `S2/down.weight`, stacked over the blocks, into adapters."""
    for view, (own, _) in VIEWS.items():
        for index, adapter in enumerate(adapters[own].children()):
            adapter.load_state_dict(
                {ours: torch.from_numpy(values[f"{view}/{old}"][index]) for old, ours in names(view).items()}
            )


def stacked(adapters: nn.ModuleDict, gradient: bool = False) -> dict[str, Tensor]:
    """The other way round: values, or gradients with zero where there is none."""
    found: dict[str, Tensor] = {}
    for view, (own, _) in VIEWS.items():
        for old, ours in names(view).items():
            one = [adapter.get_parameter(ours) for adapter in adapters[own].children()]
            if gradient:
                found[f"{view}/{old}"] = torch.stack(
                    [torch.zeros_like(p) if p.grad is None else p.grad for p in one]
                )
            else:
                found[f"{view}/{old}"] = torch.stack([p.detach() for p in one])
    return found


def state(name: str, which: str) -> Oracle:
    """Adapters of a state, `pre` or `cur`, as `S2/down.weight` and so on."""
    return {
        f"{view}/{old}": ORACLE[f"adapter/{name}/{view}/{which}/{old}"]
        for view in VIEWS
        for old in names(view)
    }


def linear(name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in part(f"hybrid/{name}").items()}


def vit(depth: int, norm: bool = True) -> Backbone:
    """The record's backbone, or its first blocks."""
    model = VisionTransformer(
        img_size=CONFIG["image"],
        patch_size=CONFIG["patch"],
        embed_dim=CONFIG["width"],
        depth=CONFIG["depth"],
        num_heads=CONFIG["heads"],
        mlp_ratio=CONFIG["mlp_ratio"],
        num_classes=0,
    )
    model.load_state_dict({name: torch.from_numpy(value) for name, value in part("backbone").items()})
    model.blocks = model.blocks[:depth]
    if not norm:
        model.norm = nn.Identity()
    backbone = Backbone(model)
    backbone.fuse_attention(False)
    return backbone


def released(
    adapters: str = "perturbed",
    hybrid: str = "perturbed",
    *,
    ptm: bool = False,
    depth: int = CONFIG["depth"],
    norm: bool = True,
    **options: Any,
) -> Replay:
    """The released variant in float64 with the record's settings, in one of its states."""
    given: dict[str, Any] = {
        "variant": "released",
        "increment": CONFIG["increment"],
        "ptm": ptm,
        "hidden": CONFIG["bottleneck"],
        "scale": CONFIG["adapter_scale"],
        "prompts": CONFIG["prompts"],
        "dropout": 0.0,
        "heads": CONFIG["hybrid_heads"],
        "dissimilarity": CONFIG["eta_L_dis"],
        "orthogonality": CONFIG["upsilon_L_orth"],
        "regularisation": CONFIG["lambda_L_reg"],
        "temperature": CONFIG["temperature_L_dis"],
        "rank": CONFIG["orth_directions"],
    }
    method = Replay(**given | options)
    method.attach(vit(depth, norm))
    for which, own in (("pre", method.pre), ("cur", method.cur)):
        put(own, state(adapters, which))
    method.hybrid.load_state_dict(linear("ptm" if ptm else hybrid))
    return method.double().eval()


def begin(
    method: Replay,
    index: int,
    prototypes: Tensor,
    *,
    classifier: NDArray[Any],
    scale: float = 1.0,
    basis: NDArray[Any] | None = None,
    drawn: NDArray[np.int64] | None = None,
) -> None:
    """Begin a task of the record, and put in what is arbitrary there."""
    first = sum(TASKS[:index])
    known, new = tuple(map(str, range(first))), tuple(map(str, range(first, first + TASKS[index])))
    method.begin_task(TaskInfo(index, new, known, prototypes))
    assert method.classifier is not None
    values = {"weight": torch.from_numpy(classifier), "scale": torch.tensor(scale)}
    method.classifier.load_state_dict(values)
    if basis is not None:
        method.basis = torch.from_numpy(basis.T.copy())
    if drawn is not None:
        method.drawn = iter(drawn)


def measure_from(method: Replay, adapters: str, hybrid: str) -> None:
    """Let L_reg measure from a state, not from where the task starts."""
    assert method.anchor is not None
    cur, fusion = method.anchor
    assert isinstance(cur, nn.ModuleDict)
    put(cur, state(adapters, "cur"))
    fusion.load_state_dict(linear(hybrid))
    method.double()


def train(
    method: Replay, batches: list[tuple[Tensor, Tensor]], rates: list[float]
) -> tuple[dict[str, NDArray[Any]], dict[str, Tensor]]:
    """Train a step a batch: the unweighted terms of each, and all gradients of the first."""
    sgd = torch.optim.SGD(
        method.trainable(), rates[0], momentum=CONFIG["momentum"], weight_decay=CONFIG["weight_decay"]
    )
    weights = {
        "L_dis": ("dissimilarity", method.dissimilarity),
        "L_orth": ("orthogonality", method.orthogonality),
        "L_reg": ("regularisation", method.regularisation),
    } | {
        f"ce_{name[0]}": (f"ce_{own}", 1.0)
        for name, own in (("c", "channel"), ("p", "patch"), ("m", "hybrid"))
    }
    found: dict[str, list[float]] = {name: [] for name in [*weights, "total"]}
    gradients: dict[str, Tensor] = {}
    method.train()
    for (pixels, targets), rate in zip(batches, rates, strict=True):
        sgd.param_groups[0]["lr"] = rate
        terms = method.loss(pixels, targets)
        total = torch.stack(list(terms.values())).sum()
        found["total"].append(total.item())
        for name, (own, weight) in weights.items():
            found[name].append(terms[own].item() / weight if weight else 0.0)
        sgd.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        for parameter in method.trainable():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if not gradients:
            gradients = {name: value.clone() for name, value in stacked(method.cur, gradient=True).items()}
            for owner in ("hybrid", "classifier"):
                for name, value in method.get_submodule(owner).named_parameters():
                    assert value.grad is not None
                    gradients[f"{owner}/{name}"] = value.grad.clone()
        sgd.step()
    method.eval()
    return {name: np.array(values) for name, values in found.items()}, gradients


def agree(group: str, found: dict[str, Any], expected: Oracle) -> None:
    """Hold each named value to the record's."""
    assert expected
    for name, value in expected.items():
        own = name.replace("/cur/", "/").replace("sigma", "scale")
        # The record keeps the classifier's scale as an array of one number.
        close(group, found[own].reshape(value.shape), value)


def head(method: Replay, *tasks: tuple[Tensor, NDArray[np.int64]]) -> Prototypes:
    made = method.head()
    assert isinstance(made, Prototypes)
    for pixels, labels in tasks:
        made.update(features(method, pixels), [str(label) for label in labels])
    return made


def features(method: Replay, pixels: Tensor) -> NDArray[np.float64]:
    with torch.no_grad():
        return np.asarray(method.features(pixels).numpy())


def by_number(made: Prototypes, columns: NDArray[Any]) -> NDArray[Any]:
    """Columns of a head, in the record's order of classes."""
    return columns[..., np.argsort([int(name) for name in made.classes])]


# Forward


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", [*STATES, "perturbed_with_ptm"])
def test_the_three_views(name: str, dtype: torch.dtype) -> None:
    adapters, ptm = name.removesuffix("_with_ptm"), name.endswith("_with_ptm")
    method = released(adapters, "init" if name == "init" else "perturbed", ptm=ptm).to(dtype)
    with torch.no_grad():
        views = method.views(images("eval").to(dtype))
    double = dtype == torch.float64
    for view, expected in zip(views, ("z_c", "z_p", "z_m"), strict=True):
        group = "features" if double else "features in float32"
        close(group, view, ORACLE[f"features/{name}/{expected}"], atol=1e-9 if double else 1e-5)


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("depth", range(1, CONFIG["depth"] + 1))
def test_cls_after_each_block(name: str, depth: int) -> None:
    method = released(name, depth=depth, norm=False)
    with torch.no_grad():
        channel, patch, _ = method.views(images("eval"))
    for branch, view in (("S2", channel), ("S1", patch)):
        for which, cls in zip(("pre", "cur"), torch.split(view, CONFIG["width"], dim=1), strict=True):
            close(
                "CLS after each block", cls, ORACLE[f"features/{name}/block_cls/{branch}_{which}"][depth - 1]
            )
    plain = ORACLE["features/perturbed_with_ptm/block_cls/ptm"][depth - 1]
    with torch.no_grad():
        close("CLS after each block", method.backbone.features(images("eval")), plain)


@pytest.mark.parametrize("name", ["perturbed", "strong"])
def test_the_prompts_of_each_block(name: str) -> None:
    """Seen where they enter the MLP; those of the last block reach nothing and are not made."""
    method, seen = released(name), []
    at, count = method.backbone.prefix, CONFIG["prompts"]

    def watch(block: int) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor]) -> None:
            length = given[0].shape[1]
            if length == count:  # in the first block they are alone
                seen.append((block, given[0][:2]))
            elif length == method.backbone.tokens + count:
                seen.append((block, given[0][:2, at : at + count]))

        return hook

    for index, block in enumerate(method.backbone.blocks()):
        block.norm2.register_forward_pre_hook(watch(index))
    with torch.no_grad():
        method.views(images("eval"))
    made = CONFIG["depth"] - 1
    assert [block for block, _ in seen] == [*range(made), *range(made)]
    for which, part_of in (("pre", seen[:made]), ("cur", seen[made:])):
        for block, prompts in part_of:
            close("prompts", prompts, ORACLE[f"features/{name}/prompts_first2/S1_{which}"][block])


def test_a_fresh_method_starts_as_released() -> None:
    method = NTKCL(variant="released", hidden=CONFIG["bottleneck"], prompts=CONFIG["prompts"])
    method.attach(vit(CONFIG["depth"]))
    for which, adapters in (("pre", method.pre), ("cur", method.cur)):
        expected = state("init", which)
        for name, value in stacked(adapters).items():
            if name == "S2/down.weight":  # drawn: the same spread
                assert value.std().item() == pytest.approx(expected[name].std(), rel=0.1)
            else:
                close("start values", value, expected[name])
    for name, weight in linear("init").items():
        own = method.hybrid.state_dict()[name]
        assert own.std().item() == pytest.approx(weight.std().item(), rel=0.3 if "bias" in name else 0.05)


# Training


def begin_as_recorded(method: Replay, task: int, group: str) -> None:
    """Begin a task with the classifier, basis and drawn prototypes of a recorded run."""
    begin(
        method,
        task,
        tensor(f"{group}/fc_before")[: sum(TASKS[:task])],
        classifier=ORACLE[f"{group}/classifier/weight"],
        scale=ORACLE[f"{group}/classifier/sigma"].item(),
        basis=ORACLE[f"{group}/orth_basis"],
        drawn=ORACLE[f"train_task{task}/old_labels_used"],
    )


@pytest.mark.parametrize("orthogonality", [True, False], ids=["orth", "no_orth"])
@pytest.mark.parametrize("task", [0, 1])
def test_three_steps(task: int, orthogonality: bool) -> None:
    group, steps = f"train_task{task}", len(ORACLE[f"train_task{task}/loss/total"])
    known, batch = sum(TASKS[:task]), CONFIG["batch"]
    method = released(orthogonality=CONFIG["upsilon_L_orth"] if orthogonality else 0.0)
    begin_as_recorded(method, task, group)
    close("old prototypes", method.old.norm(dim=1).sign(), np.sign(np.linalg.norm(unit_old(group), axis=1)))
    if task == 0:
        measure_from(method, "init", "init")
    pixels, targets = images(f"task{task}"), torch.from_numpy(ORACLE[f"input/task{task}_labels"]) - known
    if orthogonality:
        with torch.no_grad():
            for name, view in zip(("c", "p", "m"), method.views(pixels[:batch]), strict=True):
                assert method.classifier is not None
                close("training logits", method.classifier(view), ORACLE[f"{group}/step1/logits_{name}"])
                close("features", view, ORACLE[f"{group}/step1/z_{name}"])
    batches = list(zip(torch.split(pixels, batch), torch.split(targets, batch), strict=True))[:steps]
    losses, gradients = train(method, batches, [CONFIG["lr"]] * steps)
    after = stacked(method.cur) | {
        f"classifier/{name}": value for name, value in method.get_submodule("classifier").state_dict().items()
    }
    if orthogonality:
        for name, values in part(f"{group}/loss").items():
            close(f"loss {name}", losses[name], values)
        agree("gradients", gradients, part(f"{group}/grad"))
        agree("parameters after three steps", after, part(f"{group}/after3"))
    else:
        close("loss total", losses["total"], ORACLE[f"{group}/no_orth/total"])
        agree("gradients", gradients, part(f"{group}/no_orth/grad"))
        agree("parameters after three steps", after, part(f"{group}/no_orth/after3"))


def unit_old(group: str) -> NDArray[Any]:
    """The rows that may join L_dis: all classes but the last `increment`."""
    matrix = ORACLE[f"{group}/fc_before"]
    return matrix[: len(matrix) - CONFIG["increment"]]


@pytest.mark.parametrize("task", [0, 1])
def test_the_first_step_with_the_ptm_section(task: int) -> None:
    group, known, batch = f"train_task{task}_with_ptm", sum(TASKS[:task]), CONFIG["batch"]
    method = released(ptm=True)
    begin_as_recorded(method, task, group)
    if task == 0:
        measure_from(method, "init", "ptm")
    pixels, targets = images(f"task{task}"), torch.from_numpy(ORACLE[f"input/task{task}_labels"]) - known
    losses, _ = train(method, [(pixels[:batch], targets[:batch])], [CONFIG["lr"]])
    for name, values in part(f"{group}/loss").items():
        close(f"loss {name}, with PTM", losses[name], values)


@pytest.mark.parametrize("task", ["train_task0", "train_task1"])
def test_the_basis_is_the_one_that_the_svd_gives(task: str) -> None:
    """Where the record leaves no choice: the span of the old prototypes, and unit vectors without any."""
    method, index = released(), int(task[-1])
    known, matrix = sum(TASKS[:index]), tensor(f"{task}/fc_before")
    begin(method, index, matrix[:known], classifier=ORACLE[f"{task}/classifier/weight"])
    expected = torch.from_numpy(ORACLE[f"{task}/orth_basis"]).T
    assert method.basis.shape == expected.shape
    own, other = (basis[:known].T @ basis[:known] for basis in (method.basis, expected))
    close("span of the old prototypes", own, other.numpy())
    if known == 0:
        close("span of the old prototypes", method.basis.abs(), expected.abs().numpy())


def test_the_released_start_trains_one_parameter_of_the_prompts() -> None:
    method = released("init", "init")
    run, count = part("released_init_run"), CONFIG["batch"]
    begin(
        method,
        0,
        torch.zeros(0, sum(method.sections)).double(),
        classifier=run["classifier_start/weight"],
        basis=ORACLE["chain/task0/orth_basis"],
        drawn=ORACLE["chain/task0/old_labels_used"],
    )
    batch = images("task0")[:count], torch.from_numpy(ORACLE["input/task0_labels"])[:count]
    rates = run["loss/lr"].tolist()
    losses, gradients = train(method, [batch] * len(rates), rates)
    for name in ("L_dis", "L_orth", "L_reg", "total"):
        close("released start", losses[name], run[f"loss/{name}"])
    for name, value in stacked(method.cur).items():
        view, old = name.split("/")
        close("released start", value, run[f"after3/{view}/cur/{old}"])
        largest = gradients[name].flatten(1).abs().amax(1)
        close("released start", largest, run[f"grad_step1_absmax/{view}/cur/{old}"])
        if name in ("S1/token_map.weight", "S1/token_map.bias", "S1/norm.weight"):
            assert not gradients[name].any()
            assert not value.any()


# The chain of tasks


@pytest.mark.parametrize("orthogonality", [True, False], ids=["orth", "no_orth"])
def test_the_chain_of_tasks(orthogonality: bool) -> None:
    method = released(orthogonality=CONFIG["upsilon_L_orth"] if orthogonality else 0.0)
    count, made = CONFIG["batch"], method.head()
    assert isinstance(made, Prototypes)
    tasks = CONFIG["tasks_in_chain"]
    for task in range(tasks):
        group = f"chain/task{task}"
        known, ours = sum(TASKS[:task]), f"{group}/no_orth" if not orthogonality else group
        old = torch.zeros(0, sum(method.sections)).double()
        if known:
            old = torch.from_numpy(by_number(made, made.prototypes.T).T.copy())
        begin(
            method,
            task,
            old,
            classifier=ORACLE[f"{group}/classifier_start/weight"],
            basis=ORACLE[f"{group}/orth_basis"],
            drawn=ORACLE[f"{group}/old_labels_used"],
        )
        if task == 0:
            measure_from(method, "init", "init")
        pixels, labels = images(f"task{task}")[:count], ORACLE[f"input/task{task}_labels"][:count]
        rates = ORACLE[f"{group}/loss/lr"].tolist()
        last = task == tasks - 1
        if orthogonality and not last:
            agree("averaging", stacked(method.pre), part(f"{group}/pre_before"))
        losses, _ = train(method, [(pixels, torch.from_numpy(labels) - known)] * len(rates), rates)
        if orthogonality:
            for name, values in part(f"{group}/loss").items():
                if name != "lr":
                    close("chain, losses", losses[name], values)
            agree("chain, adapters", stacked(method.cur), part(f"{group}/cur_end"))
        else:
            close("chain, losses", losses["total"], ORACLE[f"{ours}/total"])
        if not last:  # the release does not average after the last task of its stream
            method.end_task([])
            if orthogonality:
                agree("averaging", stacked(method.pre), part(f"{group}/pre_after"))
        made.update(features(method, pixels), [str(label) for label in labels])
        close("chain, prototypes", by_number(made, made.prototypes.T).T, ORACLE[f"{ours}/prototypes"])
        scores = made.scores(features(method, images("eval")))
        close("chain, logits", by_number(made, scores), ORACLE[f"{ours}/eval_logits"])
    if not orthogonality:
        for which, adapters in (("pre", method.pre), ("cur", method.cur)):
            for name, value in stacked(adapters).items():
                view, part_name = name.split("/")
                close("chain, adapters", value, ORACLE[f"chain/no_orth_final/{view}/{which}/{part_name}"])


# The losses alone


def test_dissimilarity_alone() -> None:
    rows = tensor("dis/features").requires_grad_()
    value = batch_wide_info_nce(rows, torch.from_numpy(ORACLE["dis/labels"]), CONFIG["temperature_L_dis"])
    value.backward()  # type: ignore[no-untyped-call]
    close("dis", value, ORACLE["dis/L_dis"])
    assert rows.grad is not None
    close("dis", rows.grad, ORACLE["dis/grad"])


def test_orthogonality_where_the_basis_is_unique() -> None:
    prototypes = tensor("orth45/prototypes")
    assert len(prototypes) > CONFIG["orth_directions"]
    method = released()
    method.begin_task(TaskInfo(1, ("new",), tuple(map(str, range(len(prototypes)))), prototypes))
    views = {name: tensor(f"orth45/{name}").requires_grad_() for name in ("z_c", "z_p")}
    value = torch.stack([complement_sum(view, method.basis) for view in views.values()]).sum()
    value.backward()  # type: ignore[no-untyped-call]
    close("orth45", value, ORACLE["orth45/L_orth"])
    for name, view in views.items():
        assert view.grad is not None
        close("orth45", view.grad, ORACLE[f"orth45/grad_{name}"])


# Inference


@pytest.mark.parametrize("ptm", [False, True])
def test_prototypes_and_logits(ptm: bool) -> None:
    method, group = released(ptm=ptm), "inference_with_ptm" if ptm else "inference"
    made = head(method, *((images(f"task{task}"), ORACLE[f"input/task{task}_labels"]) for task in (0, 1)))
    weights = [CONFIG[f"section_weight_{name}"] for name in ("ptm", "pre", "cur")][0 if ptm else 1 :]
    assert made.options["weights"] == weights
    close("prototypes", by_number(made, made.prototypes.T).T, ORACLE[f"{group}/prototypes"])
    with torch.no_grad():
        channel, patch, hybrid = (view.numpy() for view in method.views(images("eval")))
    for name, view in (("", hybrid), ("_from_z_c", channel), ("_from_z_p", patch)):
        close("logits", by_number(made, made.scores(view)), ORACLE[f"{group}/logits{name}"])


@pytest.mark.parametrize("ptm", [False, True])
def test_the_sizes_of_the_real_model(ptm: bool) -> None:
    with torch.device("meta"):  # shapes only
        method = NTKCL(variant="released", ptm=ptm)
        method.attach(Backbone(VisionTransformer(num_classes=0)))
        classifier = CosineClassifier(sum(method.sections), 10)
    modules: dict[str, nn.Module] = {
        "S2": method.cur["channel"],
        "S1": method.cur["patch"],
        "hybrid": method.hybrid,
        "classifier_10_classes": classifier,
    }
    found = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    found["before_first_classifier"] = sum(p.numel() for p in method.trainable())
    found["trainable"] = found["before_first_classifier"] + found["classifier_10_classes"]
    for name, value in part(f"param_counts_real_size/{'with_ptm' if ptm else 'without_ptm'}").items():
        close("parameter counts", np.array(found[name]), value)
