"""What every method promises: each check is one promise, and its docstring says it.

A check takes what makes a fresh method, and a folder of its own. `test_methods.py` runs all
of them over every method.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from everlearn import Images, Learner, Method
from everlearn.analysis.of_run import diagnose_run, method_report
from everlearn.checkpoint import FILE
from everlearn_runtime import EdgeLearner, OnnxRuntime, from_state

from ..conftest import Clock, coloured, digests, fit_all, make_learner, pixels, state

MakeMethod = Callable[[], Method]
Check = Callable[[MakeMethod, Path], None]
CHECKS: list[Check] = []


def promise(check: Check) -> Check:
    """Put a check into the contract."""
    CHECKS.append(check)
    return check


@promise
def the_same_seed_gives_the_same_bits(make: MakeMethod, folder: Path) -> None:
    """Learned state, head and features of two runs with one seed are bit-equal."""
    tasks = [coloured("ab"), coloured("cd")]
    one, other = fit_all(make_learner(make()), tasks), fit_all(make_learner(make()), tasks)
    assert state(one) == state(other)
    np.testing.assert_array_equal(one.features(tasks[0]), other.features(tasks[0]))


@promise
def another_seed_gives_another_result(make: MakeMethod, folder: Path) -> None:
    """What is trained depends on the seed: values at the start as well as the course of training."""
    one, other = make_learner(make(), seed=0), make_learner(make(), seed=1)
    if not one.method.trainable():
        return
    start = digests(one.method.learned())
    assert start != digests(other.method.learned())
    other.method.restore(one.method.learned())
    one.fit(coloured("ab"))
    other.fit(coloured("ab"))
    assert digests(one.method.learned()) not in (start, digests(other.method.learned()))


@promise
def the_callers_world_stays_as_it_is(make: MakeMethod, folder: Path) -> None:
    """Images, labels, global random states and torch's modes are untouched by every call."""
    data, unseen = coloured("abc"), pixels(coloured("abc", seed=1))
    images, labels, given = pixels(data), data.labels, unseen.copy()

    def world() -> list[Any]:
        kind, keys, *rest = np.random.get_state()
        modes = torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype()
        numbers = torch.get_rng_state().tolist(), (kind, np.asarray(keys).tolist(), *rest), random.getstate()
        return [modes, *numbers]

    before = world()
    learner = make_learner(make()).fit(data, checkpoint=folder)
    learner.evaluate(data)
    learner.predict(unseen)
    learner.features(data)
    learner.method.deployable()
    Learner.load(folder, backbone=learner.backbone, method=make())
    assert world() == before
    np.testing.assert_array_equal(unseen, given)
    np.testing.assert_array_equal(pixels(data), images)
    assert data.labels == labels


@promise
def the_configuration_makes_the_method_again(make: MakeMethod, folder: Path) -> None:
    """``config()`` is JSON and holds every constructor argument."""
    method = make()
    config = json.loads(json.dumps(method.config()))
    assert type(method)(**config).config() == method.config()


@promise
def the_backbone_stays_frozen(make: MakeMethod, folder: Path) -> None:
    """Not a bit of the backbone changes, and the optimizer never gets hold of it."""
    learner = make_learner(make())
    before = learner.backbone.fingerprint()
    own = {id(parameter) for parameter in learner.backbone.parameters()}
    fit_all(learner, [coloured("ab"), coloured("cd")])
    assert learner.backbone.fingerprint() == before
    assert own.isdisjoint(map(id, learner.method.trainable()))
    assert learner.method.backbone is learner.backbone


@promise
def classes_may_come_in_any_task(make: MakeMethod, folder: Path) -> None:
    """New classes in each task, one class at a time or several, are all told apart afterwards.

    A head trained by gradient descent forgets, and knows the newest only.
    """
    for tasks in (["ab", "cd"], ["a", "b", "c", "d"], ["abc", "d"]):
        learner = fit_all(make_learner(make()), [coloured(names) for names in tasks])
        assert learner.classes == tuple("abcd")
        assert learner.tasks == [tuple(names) for names in tasks]
        assert learner.evaluate(coloured("abcd" if learner.head.exact else tasks[-1], seed=1)) == 1


@promise
def a_class_may_come_back(make: MakeMethod, folder: Path) -> None:
    """Further images of a known class add to it, beside new classes or alone."""
    tasks = [coloured("ab"), coloured("bc", seed=1), coloured("a", count=3, seed=2)]
    learner = fit_all(make_learner(make(), epochs=3), tasks)
    assert learner.classes == ("a", "b", "c")
    assert learner.head.counts.tolist() == [9, 12, 6]
    assert learner.evaluate(coloured("abc" if learner.head.exact else "a", seed=3)) == 1


@promise
def old_statistics_follow_the_features(make: MakeMethod, folder: Path) -> None:
    """What the head knows of earlier tasks is carried along, unless it is told not to."""
    first, second = coloured("ab"), coloured("bc", seed=1)
    for carry in (True, False):
        learner = make_learner(make(), carry=carry).fit(first)
        head, before = from_state(learner.head.state()), learner.features(second)
        learner.fit(second)
        after = learner.features(second)
        if carry:
            head.carry(before, after)
        learner.method.teach(head, after, second.labels)
        for name, array in head.state().arrays.items():
            np.testing.assert_allclose(learner.head.state().arrays[name], array, rtol=1e-9, atol=1e-12)


@promise
def a_class_can_be_forgotten(make: MakeMethod, folder: Path) -> None:
    """Nothing of it alone is kept, all else stays as it was, and learning goes on; it may come back.

    So it is when a learner is saved in between, and when the class is taken from the head by hand. What
    heads say of classes that share statistics with a forgotten one need not be as good as without.
    """
    gone = {image.tobytes() for image in pixels(coloured("a"), make_learner(make()))}
    learner = fit_all(make_learner(make()), [coloured("ca"), coloured("bd", seed=1)])
    learner.save(folder / "before")
    before = {name: value.numpy().copy() for name, value in learner.method.learned().items()}
    learner.forget("a")
    assert learner.classes == ("c", "b", "d")
    assert learner.method.classes.names == (learner.classes if learner.method.grows else ())
    for name, value in learner.method.learned().items():
        kept, grows = value.numpy(), learner.method.grows
        if any(name.startswith(start) for start, what in grows.items() if what == "classes"):
            np.testing.assert_array_equal(kept, np.delete(before[name], 1, axis=0))
        elif kept.dtype == np.uint8:
            assert gone & {image.tobytes() for image in before[name]}
            assert not gone & {image.tobytes() for image in kept}
            assert kept.any()
        elif kept.dtype.kind == "f":
            np.testing.assert_array_equal(kept, before[name])
    exact = learner.head.exact
    assert learner.evaluate(coloured("cbd" if exact else "bd", seed=2)) == 1
    assert "a" not in learner.predict(pixels(coloured("a")))

    learner.save(folder / "after")
    loaded, by_hand = (Learner.load(folder / name, device="cpu") for name in ("after", "before"))
    assert state(loaded) == state(learner)
    by_hand.head.remove("a")
    more = coloured("eb", seed=1)
    one, two, three = (state(each.fit(more)) for each in (learner, loaded, by_hand))
    assert one == two
    assert two == three
    assert list(learner.classes) == list("cbde")
    assert not exact or learner.evaluate(coloured("cbde", seed=2)) > 0.75
    learner.fit(coloured("fa", count=12, seed=1))
    assert list(learner.classes) == list("cbdefa")
    assert learner.head.counts.tolist() == [6, 12, 6, 6, 12, 12]
    assert learner.evaluate(coloured("fa", seed=2)) > 0.75
    assert not exact or learner.evaluate(coloured("cbdefa", seed=2)) > 0.75


@promise
def every_class_can_be_forgotten(make: MakeMethod, folder: Path) -> None:
    """The only class too; then nothing can be predicted, and learning goes on. A wrong one is refused."""
    learner = make_learner(make()).fit(coloured("a"))
    before = state(learner)
    with pytest.raises(ValueError, match="no class 'b'"):
        learner.forget("b")
    assert state(learner) == before
    learner.forget("a")
    assert not learner.classes
    assert not learner.method.classes
    with pytest.raises(ValueError, match="nothing has been learned yet"):
        learner.predict(pixels(coloured("a")))
    learner.save(folder)
    loaded, tasks = Learner.load(folder, device="cpu"), [coloured("bc"), coloured("a", seed=1)]
    assert state(fit_all(learner, tasks)) == state(fit_all(loaded, tasks))
    assert learner.classes == ("b", "c", "a")
    assert learner.evaluate(coloured("bca" if learner.head.exact else "a", seed=2)) == 1


@promise
def one_image_is_enough(make: MakeMethod, folder: Path) -> None:
    """A task of one image is learned, and so is one whose last batch has one image only."""
    learner = make_learner(make(), batch_size=4)
    fit_all(learner, [coloured("a", count=1), coloured("b", count=5), coloured("c", count=1)])
    assert learner.head.counts.tolist() == [1, 5, 1]
    assert all(torch.isfinite(value).all() for value in learner.method.learned().values())
    assert learner.predict(pixels(coloured("abc", count=1)))[-1] == "c"
    if learner.head.exact:
        assert learner.predict(pixels(coloured("abc", count=1))) == ["a", "b", "c"]


@promise
def memory_between_tasks_does_not_grow(make: MakeMethod, folder: Path) -> None:
    """After every task the method keeps as many bytes; the head grows with its classes alone.

    A method that declares what grows keeps exactly in proportion to that.
    """
    learner = make_learner(make())
    kept, heads = [], []
    for names, classes, images in (("ab", 2, 6), ("cd", 4, 12), ("efg", 7, 21), ("ag", 7, 27)):
        learner.fit(coloured(names, count=3))
        numbers = {"classes": classes, "images": images}
        growing = {
            name: numbers[what]
            for name in learner.method.learned()
            for start, what in learner.method.grows.items()
            if name.startswith(start)
        }
        kept.append({n: v.nbytes / growing.get(n, 1) for n, v in learner.method.learned().items()})
        heads.append(learner.head.nbytes)
    assert kept[0] == kept[1] == kept[2] == kept[3]
    assert heads[3] == heads[2]


@promise
def a_saved_learner_is_the_same_learner(make: MakeMethod, folder: Path) -> None:
    """Loading gives back state, settings, features and predictions to the bit, and learns on alike."""
    learner = make_learner(make(), seed=3).fit(coloured("ab"))
    learner.save(folder)
    loaded = Learner.load(folder, device="cpu")
    assert state(loaded) == state(learner)
    assert loaded.augmentation == learner.augmentation
    unseen = coloured("abcd", seed=1)
    np.testing.assert_array_equal(loaded.features(unseen), learner.features(unseen))
    assert loaded.predict(pixels(unseen)) == learner.predict(pixels(unseen))
    assert state(loaded.fit(coloured("cd"))) == state(learner.fit(coloured("cd")))


@promise
def an_interrupted_run_goes_on_to_the_same_bits(make: MakeMethod, folder: Path) -> None:
    """Stopped at any moment and resumed from its checkpoint, a run ends as if it had not been."""
    tasks = [coloured("ab"), coloured("cb", seed=1)]
    clock = Clock()
    expected = fit_all(make_learner(make(), epochs=3), [clock.watch(task) for task in tasks])
    total = clock.reads
    somewhere = random.Random(repr(make().config())).sample(range(2, total), 2)  # elsewhere for each method
    for number, stop in enumerate([1, *somewhere, total]):
        run = folder / str(number)
        learner, clock = make_learner(make(), epochs=3), Clock(stop)
        with pytest.raises(KeyboardInterrupt):
            fit_all(learner, [clock.watch(task) for task in tasks], checkpoint=run)
        if (run / FILE).is_file():
            learner = Learner.load(run, device="cpu")
        fit_all(learner, tasks[len(learner.tasks) :], checkpoint=run)
        assert state(learner) == state(expected), f"stopped when image {stop} of {total} was read"
        assert state(Learner.load(run, device="cpu")) == state(expected)


@promise
def a_fit_that_fails_changes_nothing(make: MakeMethod, folder: Path) -> None:
    """Whatever goes wrong in the middle, the learner is as before, and learns as if nothing had been."""
    learner = make_learner(make()).fit(coloured("ab"))
    before, good = state(learner), coloured("cd", seed=1)

    def damaged(index: int) -> Image.Image:
        if index == 7:
            raise ValueError("image 7 is damaged")
        return good[index][0]

    with pytest.raises(ValueError, match="image 7 is damaged"):
        learner.fit(Images(good.labels, damaged))
    assert state(learner) == before
    with pytest.raises(KeyboardInterrupt):
        learner.fit(Clock(17).watch(coloured("cdefghijk")))
    assert state(learner) == before
    if learner.method.trainable():
        wild = make_learner(make(), lr=1e30)
        before_wild = state(wild)
        with pytest.raises(FloatingPointError, match=r"no longer finite .*; lower lr=1e\+30"):
            wild.fit(good)
        assert state(wild) == before_wild
    assert state(learner.fit(good)) == state(fit_all(make_learner(make()), [coloured("ab"), good]))


@promise
def deployable_equals_features(make: MakeMethod, folder: Path) -> None:
    """The module for export computes `features`, shares nothing with the method, and needs no gradient."""
    learner = fit_all(make_learner(make()), [coloured("ab"), coloured("cd")])
    before = state(learner)
    module = learner.method.deployable()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = learner.method.features(images)
        assert (module(images) - expected).abs().max() < 1e-5
        for value in module.state_dict().values():
            value.zero_()
        torch.testing.assert_close(learner.method.features(images), expected, rtol=0, atol=0)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert state(learner) == before


@promise
def a_run_can_be_diagnosed(make: MakeMethod, folder: Path) -> None:
    """What limits a run, and what the method itself has to say, can be asked of every learner."""
    tasks = [coloured("ab"), coloured("cd")]
    learner = fit_all(make_learner(make()), tasks)
    before = state(learner)
    found = diagnose_run(learner, tasks, samples=4, readouts=2)
    assert all(np.isfinite(gain) for gain in found.gains.values())
    own = method_report(learner, tasks)
    assert (own is not None) == (type(learner.method).report is not Method.report)
    assert method_report(learner, tasks) == own
    with pytest.raises(ValueError, match="there are images of 'e', which the learner does not know"):
        method_report(learner, [coloured("e")])
    assert state(learner) == before


@promise
def the_device_goes_on_where_the_workstation_stopped(make: MakeMethod, folder: Path) -> None:
    """The bundle's features are the method's, and the device learns what the SDK's head learns."""
    learner = fit_all(make_learner(make()), [coloured("ab"), coloured("cd")])
    manifest = learner.export(folder / "bundle")
    assert manifest.parity["max_relative_difference"] < 1e-5
    new, unseen = coloured("ce", seed=1), coloured("abcde", seed=2)
    head = from_state(learner.head.state())
    backend = OnnxRuntime(folder / "bundle" / "features.onnx", threads=1)
    head.update(backend.run(pixels(new, learner)), new.labels)
    with EdgeLearner.open(folder / "bundle", threads=1) as edge:
        assert edge.classes == learner.classes
        assert edge.predict(pixels(unseen, learner)).labels == learner.predict(pixels(unseen))
        edge.learn(pixels(new, learner), new.labels)
        found = edge.predict(pixels(unseen, learner))
    assert found.classes == head.classes == tuple("abcde")
    features, exported = learner.features(unseen), backend.run(pixels(unseen, learner))
    np.testing.assert_allclose(exported, features, rtol=1e-5, atol=1e-5)
    # The graph ran in other batches, which shows in the last bits, and a small ridge magnifies that.
    expected = head.scores(exported)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-3, atol=1e-3 * max(1, np.abs(expected).max()))
    assert found.labels == head.predict(features)
    if head.exact:
        assert found.labels == list(unseen.labels)
