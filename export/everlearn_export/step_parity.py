"""The training step's own gate: it leaves the workstation only if it trains as torch does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from everlearn_export.parity import ParityError
from everlearn_export.train_step import Trainable, loss_of, to_step
from everlearn_runtime.backends.onnxruntime import OnnxRuntime
from everlearn_runtime.heads import Head
from everlearn_runtime.train_step import INPUTS, ShippedStep, StepParity, TrainStep

STEPS = 5
BATCH = 8
RATE = 1e-3
LARGEST_LOSS = 1e-4
"""Largest difference of a loss that passes, relative to it where it is above 1."""
LARGEST_MOVE = 0.1
"""And of a value that learns, of what AdamW can have moved it: steps follow the gradient's sign, even where
that is hardly more than rounding."""


class StepParityError(ParityError):
    """The exported training step does not train as torch does."""


def make_step(
    trainable: Trainable,
    head: Head,
    backend: OnnxRuntime,
    images: NDArray[np.uint8],
    labels: Sequence[str],
) -> ShippedStep:
    """Export a training step and let it through the gate.

    Args:
        trainable: from `Trainable.behind`.
        head: its prototypes are the classifier's first rows.
        backend: the exported graph, which gives what is trained on.
        images: uint8 (N, H, W, 3); some are enough.
        labels: their classes, N names that the head knows.

    Raises:
        StepParityError: as `verify_step`.
    """
    chosen = images[: STEPS * BATCH]
    inputs: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.generic]]] = {
        "images": lambda given: given,
        "tokens": backend.tokens,
        "features": backend.run,
    }
    given = inputs[INPUTS[trainable.blocks]](chosen)
    graph = to_step(trainable, torch.from_numpy(given[:1]))
    rows = np.array([head.classes.index(name) for name in labels[: len(chosen)]])
    parity = verify_step(graph, trainable, given, rows, head.prototypes)
    return ShippedStep(
        graph, trainable.adapters, trainable.blocks, trainable.settings, trainable.tasks, parity
    )


def verify_step(
    graph: bytes,
    trainable: Trainable,
    inputs: NDArray[np.generic],
    labels: NDArray[np.int64],
    classifier: NDArray[np.float64],
    *,
    steps: int = STEPS,
    batch: int = BATCH,
    rate: float = RATE,
) -> StepParity:
    """Train by the graph and, with torch's autograd and AdamW, by the module; compare after every step.

    Args:
        graph: the training step.
        trainable: from `Trainable.behind`: what the graph was made from.
        inputs: real ones (N, ...), used in turns.
        labels: their classes, int64 (N,), rows of the classifier.
        classifier: rows to start from, (C, F); of longer ones the first F columns.
        steps, batch, rate: of the training.

    Raises:
        StepParityError: they differ by too much, or a value is not finite.
    """
    settings = trainable.settings
    own = [value for value in trainable.tail.parameters() if value.requires_grad]
    before = [value.detach().clone() for value in own]
    sections = trainable.sections
    rows = nn.Parameter(torch.from_numpy(np.array(classifier[:, : sum(sections)], np.float32)))
    optimizer = torch.optim.AdamW(
        [*own, rows], lr=rate, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
    )
    trained = TrainStep(graph, trainable.adapters, classifier, threads=torch.get_num_threads())
    loss_gap = gap = 0.0
    try:
        for step in range(steps):
            chosen = np.arange(step * batch, (step + 1) * batch) % len(inputs)
            optimizer.zero_grad()
            moves = ((a - b).square().sum() for a, b in zip(own, before, strict=True))
            moved = torch.stack([torch.zeros(()), *moves]).sum()
            features = trainable.tail(torch.from_numpy(inputs[chosen]))
            loss = loss_of(features, torch.from_numpy(labels[chosen]), rows, moved, sections, settings)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            try:
                found = trained.step(inputs[chosen], labels[chosen], rate)
            except ValueError as error:
                raise StepParityError(
                    f"the exported training step does not run: {error}; no bundle was written"
                ) from error
            loss_gap = max(loss_gap, abs(found - loss.item()) / max(1.0, abs(loss.item())))
            pairs = zip([*trained.adapters.values(), trained.classifier], [*own, rows], strict=True)
            gap = max(gap, *(float(np.abs(a - b.detach().numpy()).max()) for a, b in pairs))
    finally:
        with torch.no_grad():
            for value, start in zip(own, before, strict=True):
                value.copy_(start)
                value.grad = None
    if not (loss_gap <= LARGEST_LOSS and gap <= LARGEST_MOVE * steps * rate):
        raise StepParityError(
            f"the exported training step does not train as torch does: over {steps} steps losses differ by "
            f"{loss_gap:.2g} (allowed {LARGEST_LOSS:.2g}), parameters by {gap:.2g} (allowed "
            f"{LARGEST_MOVE * steps * rate:.2g}); no bundle was written"
        )
    return StepParity(steps, loss_gap, gap)
