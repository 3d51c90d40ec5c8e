"""I-LoRA and the other methods with LoRA: what is averaged, replayed and kept."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from everlearn import FineTune, ILoRA, Joint, Learner
from everlearn.adapters import LoRA
from everlearn.analysis.of_run import method_report
from everlearn.data.loader import Loader
from everlearn.methods.base import Batches, TaskInfo

from ..conftest import coloured, fit_all, make_learner, pixels, vit


def attached(method: Any) -> Any:
    torch.manual_seed(0)
    method.attach(vit())
    method.begin_task(TaskInfo(0, ("a", "b"), (), torch.zeros(0, 48)))
    return method


def shake(method: FineTune, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in method.adapters:
            adapter.down.copy_(torch.randn(adapter.down.shape, generator=generator))
            adapter.up.copy_(torch.randn(adapter.up.shape, generator=generator))


def as_batches(learner: Learner, data: Any) -> Batches:
    targets = [learner.classes.index(name) for name in data.labels]
    return list(Loader(data, learner.backbone, learner.device).in_order(targets))


@pytest.mark.parametrize("average", ["factors", "delta"])
def test_the_average_follows_every_step_and_warms_up(average: str) -> None:
    method = attached(ILoRA(average=average, decay=0.7))
    slow, fast = method.averages[0], method.adapters[0]

    def value(adapter: Any) -> Tensor:
        if average == "delta":
            return (adapter.delta() if isinstance(adapter, LoRA) else adapter.delta).clone()
        return torch.cat([adapter.down.flatten(), adapter.up.flatten()]).clone()

    expected = value(fast)  # at first they are the same
    torch.testing.assert_close(value(slow), expected)
    for step, kept in enumerate([1 / 2, 2 / 3, 0.7, 0.7], 1):
        shake(method, step)
        method.after_step()
        expected = kept * expected + (1 - kept) * value(fast)
        torch.testing.assert_close(value(slow), expected)


def test_averages_of_factors_and_of_products_differ() -> None:
    deltas = []
    for average in ("factors", "delta"):
        method = attached(ILoRA(average=average))
        for step in range(2):
            shake(method, step)
            method.after_step()
        slow = method.averages[0]
        deltas.append(slow.delta() if isinstance(slow, LoRA) else slow.delta)
    assert (deltas[0] - deltas[1]).abs().max() > 0.1


def test_inference_uses_the_average() -> None:
    method, images = attached(ILoRA()), torch.randn(2, 3, 32, 32)
    before = method.features(images)
    shake(method, 1)
    assert torch.equal(method.features(images), before)
    method.after_step()
    assert not torch.allclose(method.features(images), before)


def test_the_loss_has_replay_and_the_distance_from_the_slow_features() -> None:
    method, backbone = attached(ILoRA(consistency=2.0, replay=3)), vit()
    shake(method, 1)
    with torch.no_grad():
        method.classifier.weight.normal_()
    images, targets = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 1, 0])
    terms = method.loss(images, targets)
    alone = torch.nn.functional.cross_entropy(method.classifier(method.twin.features(images)), targets)
    assert terms.keys() == {"ce"}
    torch.testing.assert_close(terms["ce"], alone)
    old = torch.randint(256, (3, 32, 32, 3), dtype=torch.uint8)
    method.reservoir.add(old, torch.tensor([1, 0, 1]))
    terms = method.loss(images, targets)
    seen = backbone.normalise(old)
    joined, labels = torch.cat([images, seen]), torch.tensor([0, 1, 1, 0, 1, 0, 1])
    fast = method.twin.features(joined)
    torch.testing.assert_close(
        terms["ce"], torch.nn.functional.cross_entropy(method.classifier(fast), labels), rtol=1e-4, atol=1e-5
    )
    distance = (fast[4:] - method.slow.features(seen)).square().mean()
    torch.testing.assert_close(terms["consistency"], 2 * distance, rtol=1e-4, atol=1e-6)
    assert not any(value.requires_grad for value in method.slow.parameters())


def test_the_memory_is_what_it_declares() -> None:
    learner = fit_all(make_learner(ILoRA(memory=5)), [coloured("ab"), coloured("cd")])
    method = learner.method
    assert isinstance(method, ILoRA)
    reservoir = method.reservoir
    assert reservoir.images.shape == (5, 32, 32, 3)
    assert reservoir.images.dtype == torch.uint8
    assert int(reservoir.seen) == 24
    assert set(reservoir.labels.tolist()) <= {0, 1, 2, 3}


def test_joint_keeps_every_image_under_the_class_the_head_knows_it_by() -> None:
    first, second = coloured("ba"), coloured("dac", seed=1)
    learner = fit_all(make_learner(Joint()), [first, second])
    assert learner.classes == ("b", "a", "d", "c")
    labels = learner.method.memory.labels.tolist()  # type: ignore[union-attr, operator]
    assert [learner.classes[label] for label in labels] == [*first.labels, *second.labels]


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_memory_keeps_its_labels_when_a_class_is_forgotten(by_hand: bool) -> None:
    for method in (Joint(), ILoRA(memory=100)):
        learner = make_learner(method).fit(coloured("abc"))
        if by_hand:
            learner.head.remove("a")
        else:
            learner.forget("a")
        learner.fit(coloured("da", seed=1))
        assert learner.classes == method.classes.names == ("b", "c", "d", "a")
        memory = method.reservoir if isinstance(method, ILoRA) else method.memory
        names: dict[bytes, str] = {}
        for task in (coloured("bc"), coloured("da", seed=1)):
            rows = zip(pixels(task, learner), task.labels, strict=True)
            names |= {image.tobytes(): name for image, name in rows}
        images, labels = memory.images[: len(memory)].numpy(), memory.labels[: len(memory)].tolist()
        assert [names.get(image.tobytes()) for image in images] == [
            learner.classes[label] for label in labels
        ]
        assert len(memory) == 24


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_report_speaks_of_the_classes_by_name(by_hand: bool) -> None:
    learner = make_learner(ILoRA(memory=8), epochs=4, lr=0.01).fit(coloured("abc"))
    method = learner.method
    assert isinstance(method, ILoRA)
    expected = method.connectivity([as_batches(learner, coloured("bc"))], learner.classes, points=2)[0, 0]
    with torch.no_grad():
        method.classifier.bias[0] = -1e9  # as if there were no "a"
    assert expected == 1
    if by_hand:
        learner.head.remove("a")
    else:
        learner.forget("a")
    told = method_report(learner, [coloured("bc")])
    assert told is not None
    assert told.rows[0][1] == "100.0"


def test_the_classifier_of_fine_tuning_is_the_head() -> None:
    data = coloured("ba")
    learner = make_learner(FineTune(), epochs=4).fit(data)
    method = learner.method
    assert isinstance(method, FineTune)
    features = torch.from_numpy(learner.features(data))
    with torch.no_grad():
        np.testing.assert_allclose(
            learner.head.scores(features.numpy()), method.classifier(features), atol=1e-5
        )
    assert learner.evaluate(data) == 1


def test_the_head_takes_over_rows_by_name_whatever_its_order() -> None:
    learner = make_learner(FineTune(), epochs=4).fit(coloured("abc"))
    features = learner.features(coloured("a"))
    learner.head.remove("a")
    learner.head.update(features, ["a"] * 6)
    learner.fit(coloured("cd", seed=1))
    assert learner.classes == ("b", "c", "a", "d")
    method = learner.method
    assert isinstance(method, FineTune)
    assert method.classes.names == ("a", "b", "c", "d")
    with torch.no_grad():
        scores = method.classifier(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(learner.head.scores(features), scores[:, [1, 2, 0, 3]], atol=1e-5)


def test_connectivity_runs_from_the_last_parameters_to_those_before() -> None:
    tasks = [coloured("ab"), coloured("cd")]
    learner = fit_all(make_learner(ILoRA(memory=8, decay=0.5), epochs=4, lr=0.01), tasks)
    method = learner.method
    assert isinstance(method, ILoRA)
    batches = [as_batches(learner, task) for task in tasks]
    found = method.connectivity(batches, learner.classes, points=3)
    assert found.shape == (2, 3)
    with torch.no_grad():
        for row, parts in enumerate(batches):
            for images, columns in parts:
                now = method.classifier(method.slow.features(images)).argmax(1)
                assert found[row, 0] == float((now == columns).double().mean())
    assert found[1, 0] == 1
    assert found[1, 2] == 0  # before the task nothing was known of its classes
    assert found[0, 2] == 1
    backwards = [[(images, 3 - targets) for images, targets in parts] for parts in batches]
    np.testing.assert_array_equal(method.connectivity(backwards, learner.classes[::-1], points=3), found)
    table = method.report(batches, learner.classes)
    assert list(table.rows[0][:2]) == ["task 1", f"{100 * found[0, 0]:.1f}"]
    assert len(table.head) == len(table.rows[0])
    with pytest.raises(ValueError, match="points is 1; a line needs at least 2"):
        method.connectivity(batches, learner.classes, points=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": "both"}, "average must be 'factors' or 'delta', got 'both'"),
        ({"memory": 0}, "memory must be a whole number of at least 1, got 0"),
        ({"replay": 1.5}, "replay must be a whole number of at least 1, got 1.5"),
        ({"decay": 1.0}, "decay must be at least 0 and below 1, got 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ILoRA(**options)
