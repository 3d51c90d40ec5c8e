"""The device's learner."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from everlearn_runtime.backends import Backend, OnnxRuntime
from everlearn_runtime.bundle import Bundle
from everlearn_runtime.errors import BundleError
from everlearn_runtime.heads import Head
from everlearn_runtime.heads.checks import check_label, check_labels
from everlearn_runtime.store import Store

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Prediction:
    """What a learner makes of a batch.

    Args:
        labels: The best class of each image, B names.
        scores: float64 (B, C); larger is better, on the head's own scale.
        classes: The names of the columns.
    """

    labels: list[str]
    scores: NDArray[np.float64]
    classes: tuple[str, ...]


class EdgeLearner:
    """Predicts, and goes on learning, on a device: numpy and a graph, no training runtime.

    Open one with :meth:`open`. The graph stays as it is; ``learn`` and ``forget`` change the
    head's statistics, exactly and at once. Safe to share between threads: one lock, one call at a
    time. Whatever raises leaves the state as it was.
    """

    def __init__(self, bundle: Bundle, backend: Backend, head: Head, store: Store | None) -> None:
        self.bundle = bundle
        self._backend = backend
        self._head = head
        self._store = store
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        *,
        state: str | Path | None = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        durable: bool = False,
    ) -> EdgeLearner:
        """Open a bundle, and with a state file go on where the last process stopped.

        Args:
            bundle: The bundle's folder.
            state: An SQLite file next to, not inside, the bundle; made if it is not there. None
                keeps what is learned in memory only.
            providers: ONNX Runtime execution providers, the preferred one first; None: the CPU.
            threads: CPU threads inside an operator; None: all cores.
            durable: Bring every call to the disk before it returns, so that even a power failure
                loses nothing; a crash of the process never does.

        Raises:
            BundleError: The bundle is missing or damaged.
            StateError: The state is damaged, in use, or belongs to another bundle.
            MissingExtra: onnxruntime is not installed.
            ValueError: A provider that is not there, or an argument out of range.
        """
        opened = Bundle.open(bundle)
        if state is not None and Path(state).resolve().is_relative_to(opened.path.resolve()):
            raise ValueError(f"state is {state}, inside the bundle; bundles are read-only, put it next to it")
        backend = OnnxRuntime(opened.features, providers or ("CPUExecutionProvider",), threads)
        head, store = opened.head(), None
        if state is not None:
            store, head = Store.open(state, bundle=opened.id, head=head, durable=durable)
        return cls(opened, backend, head, store)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names known now, in the order of first appearance."""
        with self._open():
            return self._head.classes

    @property
    def counts(self) -> dict[str, int]:
        """Samples learned per class, the workstation's included."""
        with self._open():
            return dict(zip(self._head.classes, map(int, self._head.counts), strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of the head's statistics: all that learning keeps."""
        with self._open():
            return self._head.nbytes

    def predict(self, images: ArrayLike) -> Prediction:
        """Classify images.

        Args:
            images: uint8 (B, height, width, 3); see ``everlearn_runtime.prepare``.

        Raises:
            ValueError: Wrong shape or dtype, NaN pixels, an empty batch, no class known yet, or
                the learner is closed.
        """
        batch = self.bundle.manifest.input.check(images)
        with self._open():
            if not self._head.classes:
                raise ValueError("no class is known yet; learn some first")
            scores = self._head.scores(self._features(batch))
            classes = self._head.classes
        return Prediction([classes[column] for column in scores.argmax(axis=1)], scores, classes)

    def learn(self, images: ArrayLike, labels: Sequence[str]) -> None:
        """Learn labelled images, of old and new classes alike.

        With a state file the call is in its journal before the head changes.

        Args:
            images: uint8 (B, height, width, 3).
            labels: B class names.

        Raises:
            ValueError: As in :meth:`predict`, a label that is no non-empty ``str``, or another
                number of labels than of images.
            StateError: The state could not be written.
        """
        batch = self.bundle.manifest.input.check(images)
        names = check_labels(labels)
        if len(names) != len(batch):
            raise ValueError(f"{len(names)} labels for {len(batch)} images; give one label per image")
        with self._open():
            features = self._features(batch)
            self._head.check(features, names)
            if self._store is not None:
                self._fold_if_due(self._store)
                self._store.learn(features, names)
            self._head.update(features, names)

    def forget(self, label: str) -> None:
        """Drop a class; what its samples said about all classes together may stay, see the head.

        Args:
            label: A known class.

        Raises:
            ValueError: No such class, or the learner is closed.
            StateError: The state could not be written.
        """
        name = check_label(label)
        with self._open():
            if name not in self._head.classes:
                known = ", ".join(map(repr, self._head.classes)) or "none"
                raise ValueError(f"no class {name!r} to forget; known classes: {known}")
            if self._store is not None:
                self._fold_if_due(self._store)
                self._store.forget(name)
            self._head.remove(name)

    def close(self) -> None:
        """Give back the session and the state file; a second call does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._backend.close()
                if self._store is not None:
                    self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _open(self) -> Iterator[None]:
        """The lock, on a learner that is not closed."""
        with self._lock:
            if self._closed:
                raise ValueError("this learner is closed; open the bundle again")
            yield

    def _features(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        features = self._backend.run(batch)
        width = self.bundle.manifest.width
        if features.shape[1] != width:
            raise BundleError(
                f"the graph gives {features.shape[1]} features, the manifest says {width}; export again"
            )
        return features

    def _fold_if_due(self, store: Store) -> None:
        # Before the journal entry, not after: if folding fails, nothing has happened yet.
        if store.due:
            self._head = store.fold(self._head)
