"""Learner: the only training loop."""

import contextlib
import copy
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from everlearn import checkpoint as checkpoints
from everlearn import processes
from everlearn.backbones import BUNDLED, Backbone, load_backbone
from everlearn.checkpoint import Unfinished
from everlearn.data import Images, as_images, photographs
from everlearn.data.augmentation import Augmentation
from everlearn.data.loader import Batches, Normalised, plain_batches, train_batches
from everlearn.data.streams import ClassIncremental
from everlearn.evaluation.cache import FeatureStore
from everlearn.evaluation.metrics import AccuracyMatrix, accuracy
from everlearn.files import read_json, write_json
from everlearn.methods import NTKCL
from everlearn.methods.base import Method, TaskInfo
from everlearn_export.bundle import export_bundle
from everlearn_runtime.bundle import Bundle, Manifest
from everlearn_runtime.heads import Head
from everlearn_runtime.heads.classes import Classes

DEFAULT_AUGMENTATION = Augmentation()

_ATTACH, _BEGIN, _EPOCH, _SURVEY, _END = range(5)  # what a stream of random numbers is for


class Learner:
    """A backbone, a method and a head that learn one task after another.

    Args:
        backbone: a name (the bundled one, or any timm model) or a `Backbone`.
        method: what adapts the backbone; NTK-CL when none is given.
        head: what turns features into classes; the method's own when none is given.
        beside: further heads by name, which learn from the same features, to be compared.
        weights: see `load_backbone`.
        epochs, batch_size, lr, optimizer, momentum, weight_decay, carry: see `Training`; what is
            left out is the method's own.
        augmentation: what training images go through; None leaves them as the head sees them.
        seed: of initial values, batch orders, augmentation and dropout.
        device: a torch device; CUDA where there is one, otherwise the CPU. Started by ``accelerate
            launch``, each process takes a GPU of its own (see `everlearn.processes`).
        precision: ``"fp32"``, or ``"bf16"`` to train under autocast (features stay fp32).
        workers: processes that load images; the result does not depend on it.
        progress: show progress bars; by default where there is a terminal.
        reuse: features that other learners may have computed already, see `FeatureStore`.

    Attributes:
        seconds: spent in `fit` so far, also by the processes that this one goes on from; what an
            interrupt undid does not count, nor do the heads beside its own.
        trained: the largest number of parameters that a task has trained.

    Raises:
        ValueError: for settings outside their range, an unknown backbone, or a method that
            needs tokens on a backbone that has none.
    """

    def __init__(
        self,
        backbone: str | Backbone = BUNDLED,
        method: Method | None = None,
        *,
        head: Head | None = None,
        beside: Mapping[str, Head] | None = None,
        weights: str | Path = "pretrained",
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        optimizer: str | None = None,
        momentum: float | None = None,
        weight_decay: float | None = None,
        carry: bool | None = None,
        augmentation: Augmentation | None = DEFAULT_AUGMENTATION,
        seed: int = 0,
        device: str | torch.device | None = None,
        precision: str = "fp32",
        workers: int = 0,
        progress: bool | None = None,
        reuse: FeatureStore | None = None,
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be 'fp32' or 'bf16', got {precision!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
        if head is not None and not isinstance(head, Head):
            raise ValueError(
                f"head is a {type(head).__name__}, which is no head; give one of everlearn_runtime.heads, "
                "for example LDA() or, where a method has its name, everlearn_runtime.heads.FeCAM()"
            )
        self.method = NTKCL() if method is None else method
        given: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "optimizer": optimizer,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "carry": carry,
        }
        self.training = replace(
            self.method.defaults, **{name: value for name, value in given.items() if value is not None}
        )
        self.augmentation = augmentation
        self.seed = seed
        self.device = processes.join(device)
        self.precision = precision
        self.workers = workers
        self.progress = progress
        self.reuse = reuse
        self.seconds = 0.0
        self.trained = 0
        self._start = 0.0
        self.backbone = load_backbone(backbone, weights=weights) if isinstance(backbone, str) else backbone
        self.backbone.fuse_attention(self.device.type != "cpu")
        with self._seeded(_ATTACH):
            self.method.attach(self.backbone)
        self.method.to(self.device).eval()
        self.head = self.method.head() if head is None else head
        # A head of another width is told of now, not after the first task's training.
        for one in (self.head, *(beside or {}).values()):
            copy.deepcopy(one).update(np.ones((1, sum(self.method.sections))), ["probe"])
        self.beside = dict(beside or {})
        self.tasks: list[tuple[str, ...]] = []
        self.unfinished: Unfinished | None = None
        self._seen: Images | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known so far, in the order of their arrival."""
        return self.head.classes

    @processes.together()
    def fit(self, data: object, *, checkpoint: str | Path | None = None) -> "Learner":
        """Learn a task: images of any classes, new and old ones alike.

        Whatever stops it, this learner is then as it was before the call; only when writing the
        last checkpoint fails has it learned the task, and `save` can be called again.

        Args:
            data: anything that `as_images` takes.
            checkpoint: a folder to save to after every epoch. A learner loaded from it goes on
                where it was when ``fit`` is called with the same data, bit for bit on a CPU.

        Raises:
            ValueError: for data that is no data set of labelled images, or other data than
                those of the task that is to be resumed.
        """
        images = as_images(data)
        labels = hashlib.sha256(json.dumps(images.labels).encode()).hexdigest()
        if self.unfinished is not None and self.unfinished.labels != labels:
            raise ValueError(
                f"this learner stopped after epoch {self.unfinished.epochs} of a task with other images, or "
                "the same in another order; call fit with that task's data to finish it"
            )
        processes.agree(bytes.fromhex(labels), "the labels of this task")
        keep = {id(self.backbone): self.backbone, **self.backbone.shared()}  # frozen: no copy is needed
        before = *copy.deepcopy((self.method, self.head, self.beside), keep), self.unfinished
        effort, self._start = (self.seconds, self.trained), time.perf_counter() - self.seconds
        try:
            if self.unfinished is None:
                old_features = self.features(images) if self._carries() else None
                seen = Classes((*self.classes, *images.labels)).names
                self.begin_task(images.classes, seen)
            else:
                old_features, seen = self.unfinished.features, self.unfinished.seen
            position = {name: index for index, name in enumerate(images.classes)}
            targets = [position[label] for label in images.labels]
            plain = plain_batches(images, self.backbone.input, targets=targets, workers=self.workers)
            batches = Normalised(plain, self.backbone, self.device)
            if self.unfinished is None:
                with self._seeded(_SURVEY, len(self.tasks)):
                    self.method.survey(batches)
                processes.same(self.method.learned().values())
            self._train(images, targets, labels, seen, old_features, checkpoint)
            with self._seeded(_END, len(self.tasks)):
                self.method.end_task(batches)
            processes.same(self.method.learned().values())
            features = self.features(images)
            self._teach(self.head, old_features, features, images.labels)
            seconds = time.perf_counter() - self._start
            for head in self.beside.values():
                self._teach(head, old_features, features, images.labels)
        except BaseException:
            self.method, self.head, self.beside, self.unfinished = before
            self.seconds, self.trained = effort
            raise
        self.seconds = seconds
        self.tasks.append(images.classes)
        self.unfinished = None
        self._seen = images
        if checkpoint is not None:
            self.save(checkpoint)
        return self

    @processes.together()
    def run(self, stream: ClassIncremental, *, checkpoint: str | Path | None = None) -> AccuracyMatrix:
        """Learn every task of a stream, and measure all tasks seen so far after each.

        Args:
            stream: the tasks.
            checkpoint: a folder for this learner and its ``accuracy.json``. A learner loaded
                from it goes on where it was.

        Raises:
            ValueError: when tasks that this learner has finished are not those of the stream.
        """
        record = None if checkpoint is None else Path(checkpoint) / "accuracy.json"
        matrix = AccuracyMatrix()
        if self.tasks and record is not None and record.is_file():
            recorded = AccuracyMatrix.from_dict(read_json(record, "an accuracy matrix"))
            if len(recorded) <= len(self.tasks):  # otherwise of a run that this one replaced
                matrix = recorded
        for task, done in zip(stream, self.tasks, strict=False):
            if set(task.classes) != set(done):
                raise ValueError(
                    f"task {task.index + 1} of the stream has the classes {', '.join(sorted(task.classes))}, "
                    f"but this learner learned {', '.join(sorted(done))} there; give the stream it began with"
                )
        for task in stream:
            if task.index == len(self.tasks):
                self.fit(task.train, checkpoint=checkpoint)
            if task.index == len(matrix):
                if task.index < len(self.tasks) - 1:
                    raise ValueError(
                        f"this learner has finished {len(self.tasks)} tasks, but the accuracies after task "
                        f"{task.index + 1} are not on record; start again with a fresh learner"
                    )
                matrix.record(*self._accuracies(stream, task.index))
                if record is not None and processes.is_main():
                    write_json(record, matrix.to_dict())
        return matrix

    def evaluate(self, data: object) -> float:
        """Top-1 accuracy in [0, 1] on labelled images, over all classes known so far."""
        images = as_images(data)
        return accuracy(self._predict(images), images.labels)

    def predict(self, images: Sequence[Any] | NDArray[np.uint8]) -> list[str]:
        """Name the class of each image: PIL images or uint8 arrays (H, W, 3) or (H, W)."""
        return self._predict(as_images([(image, "unlabelled") for image in images]))

    @processes.together()
    def features(self, data: object) -> NDArray[np.float32]:
        """What the head sees, float32 (N, F), of anything that `as_images` takes."""
        images = as_images(data)
        if self.reuse is not None:
            known = self.reuse.look_up(images, self.method, self._compute)
            if known is not None:
                return known
        return self._compute(images)

    def _compute(self, images: Images) -> NDArray[np.float32]:
        batches = plain_batches(images, self.backbone.input, workers=self.workers, shared=True)
        self.method.eval()
        parts = [np.zeros((0, sum(self.method.sections)), np.float32)]  # a process may have no batch
        with torch.inference_mode():
            for batch, _ in self._bar(batches, "features", "batch"):
                parts.append(self.method.features(batch).cpu().numpy())
        return processes.gather(np.concatenate(parts))

    @processes.together()
    def export(self, path: str | Path, *, images: object | None = None, overwrite: bool = False) -> Manifest:
        """Write the bundle that a device opens: one static graph and the head.

        Args:
            path: folder to write.
            images: images to verify the graph on (any that `as_images` takes); by default those
                of the last task when it was learned by this object, otherwise photographs.
            overwrite: replace a bundle that is there.

        Raises:
            ParityError: when the graph's features or classes differ from torch's; nothing is
                written then.
            ValueError: when nothing has been learned yet, or ``path`` is taken.
        """
        if not self.classes:
            raise ValueError("nothing has been learned yet, so there is nothing to export; call fit first")
        sample = as_images(images) if images is not None else self._seen or photographs(64)
        spread = np.linspace(0, len(sample) - 1, min(len(sample), 64)).round().astype(int)
        (pixels,) = (
            batch.numpy()
            for batch, _ in plain_batches(sample.subset(spread.tolist()), self.backbone.input, batch_size=64)
        )
        record = self.record()
        if record["backbone"]:  # the device need not know in which folder the weights lay
            record["backbone"]["weights"] = Path(record["backbone"]["weights"]).name
        if not processes.is_main():
            processes.wait()
            return Bundle.open(path).manifest
        manifest = export_bundle(
            path,
            self.method.deployable().cpu(),
            head=self.head,
            input=self.backbone.input,
            mean=self.backbone.mean.flatten().tolist(),
            std=self.backbone.std.flatten().tolist(),
            sections=self.method.sections,
            images=pixels,
            training=record,
            overwrite=overwrite,
            progress=self.progress,
        )
        processes.wait()
        return manifest

    def record(self) -> dict[str, Any]:
        """Give how this learner was made and what it has learned, ready for JSON."""
        return {
            "backbone": asdict(self.backbone.spec) if self.backbone.spec else None,
            "method": {"name": type(self.method).__name__, "config": self.method.config()},
            "training": asdict(self.training),
            "augmentation": asdict(self.augmentation) if self.augmentation else None,
            "seed": self.seed,
            "precision": self.precision,
            "tasks": [list(classes) for classes in self.tasks],
        }

    @processes.together()
    def save(self, path: str | Path) -> None:
        """Save to a folder, as one file that replaces the last one whole."""
        if processes.is_main():
            checkpoints.save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> "Learner":
        """Load what `save` wrote.

        Args:
            path: the folder.
            options: ``backbone``, ``method`` or ``weights`` where they cannot be found again by
                what was saved; ``device``, ``workers``, ``progress`` and ``reuse`` as in the
                constructor.

        Raises:
            ValueError: when the file is missing, corrupt, from a newer format, or does not fit
                the backbone.
        """
        return checkpoints.load(cls, Path(path), **options)

    def forget(self, label: str) -> None:
        """Forget a class: its column in the head, and all that the method keeps for it alone.

        What all classes share stays, see `Head.remove` and `Method.forget`. The class may come back, and
        is then a new one.

        Raises:
            ValueError: for a class that is not known, or while a task is unfinished.
        """
        if self.unfinished is not None:
            raise ValueError(
                f"a task is unfinished, so {label!r} cannot be forgotten now; "
                "call fit with that task's data to finish it first"
            )
        self.head.remove(label)
        for head in self.beside.values():
            if label in head.classes:
                head.remove(label)
        self.method.follow(self.classes)
        if self._seen is not None:
            others = [index for index, name in enumerate(self._seen.labels) if name != label]
            self._seen = self._seen.subset(others) if others else None

    def begin_task(self, classes: tuple[str, ...], seen: tuple[str, ...] = ()) -> None:
        """Tell the method of a task; `fit` and `load` do this, seeded alike."""
        self.method.follow(self.classes)
        others = [index for index, name in enumerate(self.head.classes) if name not in classes]
        prototypes = np.zeros((0, sum(self.method.sections)))
        if others:
            prototypes = self.head.prototypes[others]
        task = TaskInfo(
            index=len(self.tasks),
            classes=classes,
            known=self.head.classes,
            seen=seen,
            prototypes=torch.from_numpy(prototypes).float(),
        )
        with self._seeded(_BEGIN, task.index):
            self.method.begin_task(task)

    def _carries(self) -> bool:
        """Whether the head has statistics that training would leave behind."""
        return self.training.carry and bool(self.tasks) and bool(self.method.trainable())

    def _teach(
        self,
        head: Head,
        old_features: NDArray[np.float32] | None,
        features: NDArray[np.float32],
        labels: Sequence[str],
    ) -> None:
        if old_features is not None:
            head.carry(old_features, features)
        self.method.teach(head, features, labels)
        head.settle()  # so that saving changes nothing, not even the last bits

    def _train(
        self,
        images: Images,
        targets: Sequence[int],
        labels: str,
        seen: tuple[str, ...],
        old_features: NDArray[np.float32] | None,
        checkpoint: str | Path | None,
    ) -> None:
        parameters = self.method.trainable()
        self.trained = max(self.trained, sum(parameter.numel() for parameter in parameters))
        if not parameters:
            return
        setting, index = self.training, len(self.tasks)
        optimizer = setting.make_optimizer(parameters)
        first = 0
        if self.unfinished is not None:
            first = self.unfinished.epochs
            for parameter, state in zip(parameters, self.unfinished.optimizer, strict=True):
                optimizer.state[parameter] = {name: value.clone() for name, value in state.items()}
        for epoch in range(first, setting.epochs):
            for group in optimizer.param_groups:
                group["lr"] = setting.rate(epoch)
            batches = train_batches(
                images,
                targets,
                self.backbone.input,
                self.augmentation,
                batch_size=setting.batch_size,
                key=(self.seed, index, epoch),
                workers=self.workers,
            )
            self.method.train()
            with self._seeded(_EPOCH, index, epoch, *processes.key()):
                name = f"task {index + 1}, epoch {epoch + 1}/{setting.epochs}"
                for batch, target in (bar := self._bar(batches, name, "step")):
                    bar.set_postfix(self._step(optimizer, batch, target), refresh=False)
            self.method.eval()
            processes.same(self.method.learned().values())
            if checkpoint is not None and epoch + 1 < setting.epochs:
                states = tuple(optimizer.state[parameter] for parameter in parameters)
                self.unfinished = Unfinished(images.classes, labels, seen, epoch + 1, states, old_features)
                self.seconds = time.perf_counter() - self._start
                self.save(checkpoint)

    def _step(self, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor) -> dict[str, str]:
        optimizer.zero_grad()
        terms = self._backward(images, targets) if len(images) else {}
        parameters = self.method.trainable()
        for parameter in parameters:
            if parameter.grad is None:  # so that every parameter has its momentum and its decay
                parameter.grad = torch.zeros_like(parameter)
        processes.mean_gradients(parameters, weight=len(images))
        optimizer.step()
        self.method.after_step()
        return {name: f"{value.item():.3g}" for name, value in terms.items()}

    def _backward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            terms = self.method.loss(images, targets)
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            values = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
            raise FloatingPointError(f"the loss is no longer finite ({values}); lower lr={self.training.lr}")
        total.backward()  # type: ignore[no-untyped-call]
        return terms

    def _predict(self, images: Images) -> list[str]:
        if not self.classes:
            raise ValueError("nothing has been learned yet, so nothing can be predicted; call fit first")
        return self.head.predict(self.features(images))

    def _accuracies(self, stream: ClassIncremental, last: int) -> tuple[list[float], list[int]]:
        """Accuracy on each task up to ``last``, and how many images that is."""
        images = stream[last].test_so_far
        right: dict[str, list[bool]] = {}
        for label, predicted in zip(images.labels, self._predict(images), strict=True):
            right.setdefault(label, []).append(label == predicted)
        tasks = [[hit for name in stream[i].classes for hit in right[name]] for i in range(last + 1)]
        return [float(np.mean(hits)) for hits in tasks], [len(hits) for hits in tasks]

    def _bar(self, batches: Batches, name: str, unit: str) -> Any:
        quiet = None if self.progress is None else not self.progress  # None: quiet without a terminal
        quiet = quiet if processes.is_main() else True
        return tqdm(
            Normalised(batches, self.backbone, self.device),
            desc=name,
            total=len(batches),
            unit=unit,
            disable=quiet,
            leave=False,
        )

    @contextlib.contextmanager
    def _seeded(self, *key: int) -> Iterator[None]:
        """Seed torch for what ``key`` names, and give the caller's random state back after it."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            seed = np.random.SeedSequence([self.seed, *key]).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(seed))
            yield
