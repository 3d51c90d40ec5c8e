"""Features that never change, computed once for all learners that look at the same images."""

import hashlib
import json
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from everlearn import processes
from everlearn.data import Images, as_images, photographs
from everlearn.files import replacing
from everlearn.learner import Learner
from everlearn.methods.base import Method

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Stored:
    """Features of some data sets, and what they cost.

    Attributes:
        parts: float32 (N, F) for each data set.
        seconds: that each took to compute.
        file: where they are kept.
    """

    parts: tuple[Features, ...]
    seconds: tuple[float, ...]
    file: Path


class FeatureStore:
    """Keeps the features of methods that learn nothing, in a folder and in memory.

    A method that keeps nothing beside its backbone (`Method.learned` is empty) gives an image the
    same features for ever, in any task and under any seed. Which of these methods give the same
    ones need not be declared: they are those that agree to the bit on a few photographs, with the
    same backbone. A `CachedLearner` reads no image then; a method that has learned something computes
    its features as without a store.

    Args:
        folder: for the files, one for each kind of features; made when there is one to write.
        data: the data sets whose images are looked up, whole or in parts (`Images.subset`).
        digest: of these data, to know them again in another process; computed when left out.
        say: is told in one line what was computed and what was reused.
    """

    def __init__(
        self,
        folder: str | Path,
        *data: Images,
        digest: str | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder = Path(folder)
        self.say = say
        self._data = data
        self._digest = digest
        self._kinds: weakref.WeakKeyDictionary[Method, str] = weakref.WeakKeyDictionary()
        self._stored: dict[str, Stored] = {}

    def covers(self, method: Method) -> bool:
        """Whether the method has learned nothing, so that its features can be kept."""
        return not method.learned()

    def look_up(
        self, images: Images, method: Method, compute: Callable[[Images], Features]
    ) -> Features | None:
        """Features of these images, or None where the store is not to be used.

        Args:
            images: of the store's data sets; with any other the answer is None.
            method: that the features are of; with one that has learned something, None.
            compute: gives its features, float32 (N, F).
        """
        if not self.covers(method):
            return None
        rows = [images.positions_in(part) for part in self._data]
        if not np.any([here >= 0 for here in rows], axis=0).all():
            return None
        parts = self._of(method, compute).parts
        found = np.empty((len(images), *parts[0].shape[1:]), np.float32)
        for part, here in zip(parts, rows, strict=True):
            found[here >= 0] = part[here[here >= 0]]
        return found

    def stored(self, method: Method) -> Stored | None:
        """What was kept for a method that has been looked up and has learned nothing; else None."""
        kind = self._kinds.get(method)
        return None if kind is None or not self.covers(method) else self._stored[kind]

    def _of(self, method: Method, compute: Callable[[Images], Features]) -> Stored:
        kind = self._kinds.get(method)
        if kind is None:
            kind = self._kind(method, compute)
            if kind in self._stored:
                self.say(f"{type(method).__name__}: features reused, they were computed before")
            else:
                self._stored[kind] = self._load(kind, method) or self._make(kind, method, compute)
            self._kinds[method] = kind
        return self._stored[kind]

    def _kind(self, method: Method, compute: Callable[[Images], Features]) -> str:
        if self._digest is None:
            self._digest = hashlib.sha256("".join(part.digest() for part in self._data).encode()).hexdigest()
        backbone = method.backbone
        facts = [self._digest, backbone.fingerprint(), asdict(backbone.input)]
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(compute(photographs(8)).tobytes())
        return digest.hexdigest()[:16]

    def _load(self, kind: str, method: Method) -> Stored | None:
        file = self._file(kind)
        if not file.is_file():
            return None
        try:
            with safe_open(file, "np") as kept:
                seconds = json.loads(kept.metadata()["seconds"])
                parts = tuple(kept.get_tensor(str(part)) for part in range(len(self._data)))
            for part, images in zip(parts, self._data, strict=True):
                if part.ndim != 2 or len(part) != len(images) or part.dtype != np.float32:
                    raise ValueError(f"{part.dtype} of shape {part.shape} for {len(images)} images")
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            self.say(f"{file} is damaged ({error}): computing its features anew")
            return None
        self.say(f"{type(method).__name__}: features reused, from {file}")
        return Stored(parts, tuple(seconds), file)

    def _make(self, kind: str, method: Method, compute: Callable[[Images], Features]) -> Stored:
        parts, seconds = [], []
        for images in self._data:
            start = time.perf_counter()
            parts.append(compute(images))
            seconds.append(time.perf_counter() - start)
        file = self._file(kind)
        tensors = {str(number): part for number, part in enumerate(parts)}
        with replacing(file) as partial:
            save_file(tensors, partial, metadata={"seconds": json.dumps(seconds)})
        count = sum(len(images) for images in self._data)
        self.say(
            f"{type(method).__name__}: features of {count:,} images computed in {sum(seconds):.0f} s, "
            f"kept in {file}"
        )
        return Stored(tuple(parts), tuple(seconds), file)

    def _file(self, kind: str) -> Path:
        return self.folder / f"{kind}.safetensors"


class CachedLearner(Learner):
    """A learner that looks its features up in a store, where they are kept there.

    Attributes:
        store: set it after the learner is made; without one every feature is computed.
    """

    store: FeatureStore | None = None

    @processes.together()
    def features(self, data: object) -> Features:
        """What the head sees, float32 (N, F), of anything that `as_images` takes."""
        images = as_images(data)
        known = None
        if self.store is not None:
            known = self.store.look_up(images, self.method, super().features)
        return super().features(images) if known is None else known
