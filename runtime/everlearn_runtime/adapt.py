"""Adapters that go on learning on the device, and the graph that runs with them.

The bundle's training step trains the deployed adapters on images at hand; the result is averaged into them as
NTK-CL averages the adapters of its tasks; and the head's sums move along by a map that is fitted on the
same images, before and after.

How the graph gets other adapters: their weights are overwritten in the bytes of ``features.onnx``, by the
places that the manifest names, and a new session is made of it, in a fraction of a second, when adapters
change. So the graph that runs is the same one, as fast as with the bundle's own adapters, in any precision,
and bundles without a training step are as they were. A second graph with inputs for them would double the
bundle. Adapters that are inputs with default values would cost little or nothing in time: interleaved with
the shipped graph, neither way was slower by more than the noise of the machine
(``examples/benchmarks/adapt.py``). But ONNX Runtime warns of each of them, folds none, and every run must be
given them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.backends import Adaptable, Backend
from everlearn_runtime.backends.graph import put_weights
from everlearn_runtime.bundle import Bundle
from everlearn_runtime.errors import BundleError, StateError
from everlearn_runtime.heads import Head
from everlearn_runtime.heads.drift import missed
from everlearn_runtime.heads.statistics import describe
from everlearn_runtime.manifest import FEATURES
from everlearn_runtime.state import Version
from everlearn_runtime.state.adapted import Adapters
from everlearn_runtime.train_step import INPUTS, TRAIN_STEP, TrainStep, as_weights, check_adapters, places_of

# The gentlest of what helped new classes on held-out images (examples/benchmarks/adapt.py --choose).
STEPS = 20
RATE = 1e-3
BATCH = 16
LEAST_IMAGES = 4
# Below it old classes lost 3 to 12 points there, above it 2 at most.
LEAST_EXPLAINED = 0.95

Array = NDArray[np.float32]
Part = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Adapted(Version):
    """What :meth:`EdgeLearner.adapt` did: a version, and how it went.

    Args:
        images: How many it was trained on.
        steps: Of the training.
        first: Mean loss of the first tenth of the steps, at least one.
        last: And of the last.
        weight: Share of the trained adapters in the new ones: 1 of all tasks, the device's included.
        explained: Share of the variance of the new features that the head's map explains, on images that
            it was not fitted on: 1 is all.
        moved: How far the features of these images moved, as a share of their spread (root mean squares).
    """

    images: int = 0
    steps: int = 0
    first: float = math.nan
    last: float = math.nan
    weight: float = math.nan
    explained: float = math.nan
    moved: float = math.nan

    def __repr__(self) -> str:
        return (
            f"Adapted(number={self.number}, images={self.images}, steps={self.steps}, "
            f"loss={self.first:.3g} -> {self.last:.3g}, weight={self.weight:.3g}, "
            f"moved={self.moved:.1%}, explained={self.explained:.1%})"
        )


@dataclass(frozen=True)
class Deployed:
    """A backend, and the adapters that are in its graph.

    Args:
        backend: It.
        adapters: None: the bundle's own.
    """

    backend: Backend
    adapters: Adapters | None = None

    def runs(self, adapters: Adapters | None) -> bool:
        """Whether it runs with these."""
        return _id(adapters) == _id(self.adapters)


@dataclass(frozen=True)
class Trained:
    """What a training came to, before the head follows.

    Args:
        deployed: The graph with the new adapters.
        since: The adapters that it started from.
        before: Features of the images under those, (B, F).
        after: And under the new ones.
        says: The figures of `Adapted` that are known by now.
    """

    deployed: Deployed
    since: Adapters | None
    before: Array
    after: Array
    says: dict[str, Any]


@dataclass(frozen=True)
class Schedule:
    """How to train.

    Args:
        steps: How many.
        rate: AdamW's.
        seed: Of the order of the images.

    Raises:
        ValueError: One of them is out of range.
    """

    steps: int
    rate: float
    seed: int

    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 1:
            raise ValueError(f"steps is {self.steps!r}; give a whole number, at least 1")
        if not (isinstance(self.rate, (int, float)) and math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"rate is {self.rate!r}; give a finite number above 0")
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed is {self.seed!r}; give a whole number, at least 0")


def check_adaptable(bundle: Bundle, backend: Backend) -> Adaptable:
    """The backend, if this bundle's adapters can go on learning, and be deployed, on it.

    Raises:
        ValueError: They cannot; the text says why.
    """
    says = bundle.manifest.train_step
    if says is None:
        raise ValueError(
            "this bundle has no training step to adapt with; export it with train_step='last2', for example"
        )
    if says["blocks"] == "head":
        raise ValueError(
            "this bundle's training step trains a classifier only, no adapters; export it with "
            "train_step='last2' or 'all' to adapt"
        )
    if not says["places"]:
        raise ValueError(
            "the adapters of this bundle's graph cannot be exchanged in its precision; export it with "
            "precision='fp32' to adapt"
        )
    if not isinstance(backend, Adaptable):
        raise ValueError(
            f"{backend.name} runs an engine whose weights are fixed; open with backend='onnxruntime' to adapt"
        )
    return backend


def deploy(bundle: Bundle, backend: Backend, adapters: Adapters | None) -> Deployed:
    """The graph with these adapters, on a backend like this one; None: with the bundle's own.

    Raises:
        StateError: They are not this bundle's, or the backend cannot run others than that.
        BundleError: The graph has changed, or has no place for them.
    """
    graph = bundle.read(FEATURES)
    try:
        able = check_adaptable(bundle, backend)
        if adapters is not None:
            graph = _with_adapters(bundle, graph, adapters)
        return Deployed(able.with_graph(graph), adapters)
    except (StateError, BundleError):
        raise
    except ValueError as error:
        raise StateError(f"the state has adapters that this learner cannot run: {error}") from error


def check_followable(head: Head, names: Sequence[str]) -> None:
    """Raise a ``ValueError`` if a head has no prototype of a class, or cannot follow other adapters."""
    if not head.carries:
        raise ValueError(
            f"{describe(head)} was trained step by step and keeps no sums that could move along with the "
            "features; a bundle with another head can adapt"
        )
    if unknown := [name for name in dict.fromkeys(names) if name not in head.classes]:
        raise ValueError(
            f"adapt needs a prototype of each class, and there is none of {', '.join(map(repr, unknown))}; "
            "learn some of its images first"
        )


def train(
    bundle: Bundle,
    deployed: Deployed,
    batch: NDArray[np.uint8],
    rows: NDArray[np.int64],
    classifier: NDArray[np.float64],
    schedule: Schedule,
    part: Part,
    features: Callable[[Backend, NDArray[np.uint8]], Array],
) -> Trained:
    """Train the adapters on, and make the graph that has them; nothing else changes.

    Args:
        bundle: Whose step.
        deployed: The graph as it is.
        batch: Images, uint8 (B, H, W, 3).
        rows: Their classes, int64 (B,).
        classifier: Rows to start from, (C, F).
        schedule: How.
        part: Makes room for others; around every step.
        features: Runs a backend in parts.

    Raises:
        ValueError: Too few images, or the training ran away.
    """
    backend = check_adaptable(bundle, deployed.backend)
    if len(batch) < LEAST_IMAGES:
        raise ValueError(
            f"adapt needs at least {LEAST_IMAGES} images, got {len(batch)}: the head could not follow"
        )
    says = bundle.manifest.train_step
    assert says is not None
    # In the manifest's order, which is that of the step's inputs.
    own = bundle.adapters() if deployed.adapters is None else deployed.adapters.values
    values = check_adapters(says, own)
    times = 1 if deployed.adapters is None else deployed.adapters.times + 1
    inputs: NDArray[Any] = batch
    if says["input"] == INPUTS["last2"]:
        with part():
            inputs = backend.tokens(batch)
    before = features(backend, batch)
    step = TrainStep(bundle.read(TRAIN_STEP), values, classifier, threads=backend.threads)
    random = np.random.default_rng(schedule.seed)
    order, losses = np.zeros(0, np.int64), []
    for _ in range(schedule.steps):
        while len(order) < min(BATCH, len(batch)):
            order = np.concatenate([order, random.permutation(len(batch))])
        chosen, order = order[:BATCH], order[BATCH:]
        with part():
            losses.append(step.step(inputs[chosen], rows[chosen], schedule.rate))
    weight = 1 / (says["tasks"] + times)
    new = {name: value + np.float32(weight) * (step.adapters[name] - value) for name, value in values.items()}
    adapters = Adapters(new, times)
    after_deployed = Deployed(
        backend.with_graph(_with_adapters(bundle, bundle.read(FEATURES), adapters)), adapters
    )
    after = features(after_deployed.backend, batch)
    some = max(1, schedule.steps // 10)
    spread = float(((before - before.mean(axis=0)) ** 2).sum())
    return Trained(
        after_deployed,
        deployed.adapters,
        before,
        after,
        {
            "images": len(batch),
            "steps": schedule.steps,
            "first": float(np.mean(losses[:some])),
            "last": float(np.mean(losses[-some:])),
            "weight": weight,
            "moved": math.sqrt(float(((after - before) ** 2).sum()) / spread) if spread else math.nan,
        },
    )


def carried(head: Head, trained: Trained) -> tuple[Head, float]:
    """A head moved along with the features, and the share of their variance that its map explains.

    Args:
        head: A copy of its own, which is changed.
        trained: From what to what.

    Raises:
        ValueError: The map is too bad.
    """
    before, after = trained.before.astype(np.float64), trained.after.astype(np.float64)
    share = explained(before, after)
    if not share >= LEAST_EXPLAINED:
        raise ValueError(
            f"the features of the {len(before)} images moved in a way that no map explains well enough for "
            f"the head to follow ({share:.0%} of their variance, at least {LEAST_EXPLAINED:.0%} are needed); "
            "give more images, or take fewer steps or a lower rate"
        )
    head.carry(before, after)
    return head, share


def explained(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Share of the variance of features (B, F) that the map from those before explains without an image."""
    spread = float(((after - after.mean(axis=0)) ** 2).sum())
    return 1 - float((missed(before, after) ** 2).sum()) / spread if spread else math.nan


def _with_adapters(bundle: Bundle, graph: bytes, adapters: Adapters) -> bytes:
    says = bundle.manifest.train_step
    assert says is not None
    try:
        values = check_adapters(says, adapters.values)
    except ValueError as error:
        raise StateError(f"the state has adapters of another bundle: it {error}") from None
    return put_weights(graph, as_weights(values, places_of(says)), FEATURES)


def _id(adapters: Adapters | None) -> str:
    return "" if adapters is None else adapters.id
