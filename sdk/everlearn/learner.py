"""Learner: the only training loop."""

import contextlib
import copy
import hashlib
import json
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from everlearn import checkpoint as checkpoints
from everlearn import exporting, log, methods, processes
from everlearn import precision as precisions
from everlearn.backbones import load_backbone, resolve
from everlearn.checkpoint import Lesson, State, Unfinished
from everlearn.checks import whole
from everlearn.choices import BUNDLED, choose_head
from everlearn.data import (
    Augmentation,
    ClassIncremental,
    DomainIncremental,
    Images,
    any_images,
    as_images,
)
from everlearn.data.loader import Loader, Targets
from everlearn.evaluation.domains import measure_domains
from everlearn.evaluation.metrics import AccuracyMatrix, accuracy
from everlearn.evaluation.runner import measure
from everlearn.methods.base import Method, TaskInfo
from everlearn.methods.choice import choose_method
from everlearn.progress import Pace, track
from everlearn.tables import duration
from everlearn_runtime.heads import Classes, Head, from_state
from everlearn_runtime.heads.checks import check_label
from everlearn_runtime.heads.registry import own_kind
from everlearn_runtime.manifest import Manifest
from everlearn_runtime.words import plural, some

DEFAULT_AUGMENTATION = Augmentation()

_log = getLogger("everlearn.learner")

_ATTACH, _BEGIN, _EPOCH, _SURVEY, _END = range(5)  # what a stream of random numbers is for

_owners: weakref.WeakKeyDictionary[Method | Head, "weakref.ref[Learner]"] = weakref.WeakKeyDictionary()


class Learner:
    """A backbone, a method and a head that learn one task after another.

    Args:
        backbone: a name (the bundled one, or any timm model), a timm model, or a `Backbone`.
        method: what adapts the backbone, or its name; NTK-CL when none is given. It is this learner's alone.
        head: what turns features into classes, or its name among `HEADS`; the method's own when none is
            given. Likewise.
        weights: of a backbone given by name, see `load_backbone`; the pretrained ones when left out.
        epochs, batch_size, lr, optimizer, momentum, weight_decay, carry: see `Training`; what is
            left out is the method's own.
        augmentation: what training images go through; None leaves them as the head sees them.
        seed: of initial values, batch orders, augmentation and dropout.
        device: a torch device; CUDA where there is one, otherwise the CPU. Started by ``accelerate
            launch``, each process takes a GPU of its own (see `everlearn.processes`).
        precision: ``"fp32"``, or ``"bf16"`` to train under autocast (features stay fp32), or
            ``"auto"``, which is bf16 where the device has instructions for it.
        workers: processes that load images; the result does not depend on it.
        progress: True shows progress, as bars on a terminal and as a line every ten seconds elsewhere; None,
            the default, shows bars where there is a terminal; False shows nothing.

    Attributes:
        history: the tasks learned, see `Lesson`.
        unfinished: the task that an interrupt has left behind, or None.
        listeners: functions that are called with the figures of every epoch and every task, see
            `everlearn.log.Row`; with ``checkpoint=`` the same rows are in the folder's ``log.csv``.

    What it does is also told to Python's `logging`, as ``everlearn``, at the level INFO.

    Raises:
        ValueError: for settings outside their range, an unknown backbone, a method that needs
            tokens on a backbone that has none, or a method or head that another learner has.
    """

    def __init__(
        self,
        backbone: str | nn.Module = BUNDLED,
        method: Method | str | None = None,
        *,
        head: Head | str | None = None,
        weights: str | Path | None = None,
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
    ) -> None:
        self.seed = whole("seed", seed, least=0)
        head = choose_head(head, self.seed)
        self.method = choose_method(method)
        _check_free(self.method, "method")
        if head is not None:
            _check_free(head, "head")
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
        self.device = processes.join(device)
        self.precision = precisions.resolve(precision, self.device)
        self.workers = whole("workers", workers, least=0)
        self.progress = progress
        self.backbone = resolve(backbone, weights)
        self.backbone.fuse_attention(self.device.type != "cpu")
        with self._seeded(_ATTACH):
            self.method.attach(self.backbone)
        self.method.to(self.device).eval()
        self.head = self.method.head() if head is None else head
        own_kind(type(self.head))  # a head that cannot be saved is told of now
        # A head of another width is told of now, not after the first task's training.
        copy.deepcopy(self.head).update(np.ones((1, sum(self.method.sections))), ["probe"])
        self.history: list[Lesson] = []
        self.unfinished: Unfinished | None = None
        self.listeners: list[log.Listener] = []
        self._seen: Images | None = None
        for own in (self.method, self.head):
            _owners[own] = weakref.ref(self)

    def __repr__(self) -> str:
        made = f"{self.backbone.name}, {type(self.method).__name__}, {type(self.head).__name__}"
        said = "nothing learned"
        if self.history:
            last = self.history[-1]
            said = (
                f"{plural(len(self.history), 'task')}, {plural(len(self.classes), 'class')}; the last of "
                f"{plural(last.images, 'image')} of {some(last.classes)}, "
                f"{plural(last.parameters, 'parameter')} trained, {duration(last.seconds)}"
            )
        half = "" if self.unfinished is None else f"; a task unfinished after epoch {self.unfinished.epochs}"
        return f"<Learner({made}) on {self.device}: {said}{half}>"

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes known so far, in the order of their arrival."""
        return self.head.classes

    @property
    def tasks(self) -> list[tuple[str, ...]]:
        """The classes of each task learned."""
        return [lesson.classes for lesson in self.history]

    @property
    def started(self) -> bool:
        """Whether a task has been learned, or begun."""
        return bool(self.history) or self.unfinished is not None

    @property
    def carries(self) -> bool:
        """Whether the head has statistics that training would leave behind, and is to take them along."""
        return self.training.carry and bool(self.history) and bool(self.method.trainable())

    @processes.together()
    def fit(self, data: object, labels: object = None, *, checkpoint: str | Path | None = None) -> "Learner":
        """Learn a task: images of any classes, new and old ones alike.

        Gives this learner, whose ``repr`` and ``history[-1]`` say what was learned.

        Whatever stops it, this learner is then as it was before the call; only when writing the
        last checkpoint fails has it learned the task, and `save` can be called again.

        Args:
            data: anything that `as_images` takes: a data set, a loader, a path; or images, with
            labels: one for each image, where the data has none.
            checkpoint: a folder to save to after every epoch. A learner loaded from it goes on
                where it was when ``fit`` is called with the same data, bit for bit on a CPU.

        Raises:
            ValueError: for data that is no data set of labelled images, or other data than
                those of the task that is to be resumed.
        """
        images = as_images(data, labels)
        processes.agree(
            hashlib.sha256(json.dumps(images.labels).encode()).digest(), "the labels of this task"
        )
        # To know the images again; a task that cannot be stopped between two epochs need not read them.
        stops = checkpoint is not None and self.training.epochs > 1 and self.method.trainable()
        digest = images.fingerprint() if stops or self.unfinished is not None else ""
        if self.unfinished is not None and self.unfinished.digest != digest:
            raise ValueError(
                f"this learner stopped after epoch {self.unfinished.epochs} of a task with other images, or "
                "the same in another order; call fit with that task's data to finish it"
            )
        if checkpoint is not None and not self.started and processes.is_main():
            log.clear(checkpoint)
        with self._all_or_nothing():
            lesson = self._learn(images, digest, checkpoint)
        self.history.append(lesson)
        self._seen = images
        if checkpoint is not None:
            self.save(checkpoint)
        figures = {"images": lesson.images, "classes": len(lesson.classes), "seconds": lesson.seconds}
        self.tell({"task": len(self.history), **figures}, checkpoint)
        return self

    def tell(self, row: log.Row, folder: str | Path | None = None) -> None:
        """Give figures to the listeners, to `logging` and, with a folder, to its ``log.csv``."""
        if processes.is_main():
            _log.info("%s", ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
            if folder is not None:
                log.add(folder, row)
            for listener in self.listeners:
                listener(row)

    def forget(self, label: str) -> "Learner":
        """Take a class out of the head, and out of all that the method keeps for each class.

        A class that comes back later begins anew. What its images have taught the adapters, or a
        statistic that all classes share (see the head's ``remove``), stays.

        Raises:
            ValueError: no such class, or a task is unfinished.
        """
        if self.unfinished is not None:
            raise ValueError(
                f"a task is unfinished, so {label!r} cannot be forgotten now; call fit with that task's data "
                "first"
            )
        label = check_label(label)
        with self._all_or_nothing():
            self.head.remove(label)
            self.head.settle()
            self.method.follow(self.head.classes)
        if self._seen is not None:
            others = [index for index, name in enumerate(self._seen.labels) if name != label]
            self._seen = self._seen.subset(others) if others else None
        return self

    def run(
        self,
        stream: ClassIncremental | DomainIncremental,
        *,
        checkpoint: str | Path | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> AccuracyMatrix:
        """Learn every task of a stream and measure after each.

        Args:
            stream: of classes (see `measure`: all tasks seen so far are measured) or of domains (see
                `measure_domains`: all are).
            checkpoint: a folder for the learner and its figures, from which a run goes on; of classes.
            say: is told in one line how far it is after each task, for example ``print``.

        Raises:
            ValueError: as `measure` and `measure_domains`; a checkpoint for a stream of domains.
        """
        if isinstance(stream, DomainIncremental):
            if checkpoint is not None:
                raise ValueError("a stream of domains has no checkpoint; leave it out, and save the learner")
            return measure_domains(self, stream, say=say)
        return measure(self, stream, folder=checkpoint, after_task=say).accuracy

    def evaluate(self, data: object, labels: object = None) -> float:
        """Top-1 accuracy in [0, 1] on labelled images, over all classes known so far.

        Data and labels are as in `fit`; of a folder with train/ and test/ the latter is taken.

        Images of a class that was never learned count as wrong, and a ``UserWarning`` names them.
        """
        images = as_images(data, labels, part="test")
        predicted = self._predict(images)
        if unknown := images.unknown_to(self.classes):
            some = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            warnings.warn(
                f"{len(unknown)} of {len(images.classes)} classes were never learned, and their images count "
                f"as wrong: {some}; leave them out with Images.of_classes, or check the names",
                stacklevel=2,
            )
        return accuracy(predicted, images.labels)

    def score(self, data: object, labels: object = None) -> float:
        """`evaluate` by scikit-learn's name."""
        return self.evaluate(data, labels)

    def predict_proba(self, images: object, *, channels: str = "rgb") -> NDArray[np.float64]:
        """How probable each class is for each image, float64 (N, C), each row adding up to 1.

        Args:
            images, channels: as in `predict`. Columns are in the order of ``classes``.

        The percentages keep what they say once the head is calibrated, see `Learner.export`.
        """
        self._check_learned()
        return self.head.probabilities(
            self.head.scores(self.features(any_images(images, channels=channels)[0]))
        )

    def predict(self, images: object, *, channels: str = "rgb") -> list[str]:
        """Name the class of each image.

        Args:
            images: one picture or many, of any size, see `everlearn.data.any_images`: PIL images, paths,
                arrays (H, W), (H, W, 3) or (B, H, W, 3), torch tensors (3, H, W) or (B, 3, H, W), a list of
                such, or a data set, whose labels are left out. One gives a list of one name.
            channels: the order in arrays, ``"rgb"`` or ``"bgr"`` (OpenCV).
        """
        return self._predict(any_images(images, channels=channels)[0])

    @processes.together()
    def features(self, data: object) -> NDArray[np.float32]:
        """What the head sees, float32 (N, F), of anything that `predict` takes."""
        loader = self._loader(any_images(data)[0])
        self.method.eval()
        parts = [np.zeros((0, sum(self.method.sections)), np.float32)]  # a process may have no batch
        with torch.inference_mode():
            for batch, _ in self._bar(loader.in_order(shared=True), "features", "batch"):
                parts.append(self.method.features(batch).cpu().numpy())
        return processes.gather(np.concatenate(parts))

    def teach(
        self,
        head: Head,
        before: NDArray[np.float32] | None,
        features: NDArray[np.float32],
        labels: Sequence[str],
    ) -> None:
        """Let a head learn a task that has just been trained, as `fit` does with the learner's own.

        Args:
            head: any.
            before: features (N, F) of the task's images before training, to carry along what the
                head knows; None leaves it as it is.
            features: of the same images now.
            labels: theirs.
        """
        if before is not None:
            head.carry(before, features)
        self.method.teach(head, features, labels)
        head.settle()  # so that saving changes nothing, not even the last bits

    @processes.together()
    def export(
        self,
        path: str | Path,
        *,
        images: object | None = None,
        precision: str = "fp32",
        target: str = "cpu",
        replaces: str | Path | None = None,
        tolerance: float | None = None,
        removable: bool = False,
        calibration: object | None = None,
        canaries: int = 0,
        train_step: str | None = None,
        overwrite: bool = False,
    ) -> Manifest:
        """Write the bundle that a device opens: one static graph and the head.

        Args:
            path: folder to write.
            images: images to verify the graph on, with labels or without (any that `predict` takes); by
                default those of the last task when it was learned by this object, otherwise photographs. A
                lower precision takes up to 512 of them, the more and the more like the device's the better:
                its scales are found on them, the head's statistics follow, and where all their classes are
                known the loss of accuracy is held to a limit.
            precision: of the graph. ``"fp16"``, half the size, is for GPUs. ``"int8"`` is a quarter, and
                about twice as fast on CPUs with the instructions for it; there an image's features
                depend a little on those it shares a call with.
            target: where an int8 graph will run, for no form suits both: ``"cpu"`` or ``"tensorrt"``.
            replaces: the bundle that devices have now. The map from its features to the new ones' is then
                fitted on the same images, up to 512 of them, the more the better, and put into the
                bundle: ``EdgeLearner.open(path, state=..., migrate=True)`` carries over what a device
                has learned. How good the map is stands in the manifest's ``replaces``. Both heads
                must be of one kind: `Prototypes`, `LDA`, `WhitenedCosine`, `BalancedRidge` or `Ridge`.
            tolerance: how far the graph's features may differ from torch's, relative to their size;
                None: as far as the precision lets expect, see `everlearn_export.LIMITS`.
            removable: let the device forget exactly what it has learned itself (`EdgeLearner.forget`):
                its head keeps the sums of each class that is new there apart. With LDA, EvidenceLDA and
                Ridge that takes 4 d (d + 1) + 8 bytes for each such class in the device's head, 2.4 MB
                at d = 768 features or random projections; others do so anyway, or cannot. Classes
                known now go exactly only if this learner's head was made with ``removable=True``.
            calibration: labelled images that nothing was learned from, neither by ``fit`` nor to choose
                settings, 200 or more of classes known by now, of which up to 2,048 are taken. By
                them the device can say how sure it is, and what is unknown, from its first prediction
                on; without them it can once it has judged 200 images of its own. Images of the last
                task would not do: what was trained on them is surer of them than of others.
            canaries: so many of these images of each class go, as features, into the bundle, which
                takes 4 bytes a feature: with them the device can refuse to learn what would make it forget
                (``EdgeLearner.learn(guard=...)``).
            train_step: put a training step into the bundle, too, which runs in plain ONNX Runtime
                (`everlearn_runtime.TrainStep`): ``"head"`` trains a classifier on features, ``"last2"``
                the adapters of the last two blocks on the tokens that the graph then also gives, ``"all"``
                all adapters on images. Cross-entropy and L2 to the shipped values, by AdamW, in 32 bits. The
                bundle grows by the weights of these blocks.
            overwrite: replace a bundle that is there.

        Raises:
            ParityError: when the graph's features or classes differ from torch's; nothing is
                written then.
            BundleError: when ``replaces`` is no bundle.
            ValueError: when nothing has been learned yet, ``path`` is taken, there is no such precision or
                nothing that it could be applied to, the method has no adapters that a ``train_step`` could
                train, the head is of a kind that cannot be ``removable``, there is no image to calibrate
                by, or what devices have learned with the old bundle does not go into this head.
        """
        manifest = exporting.export(
            self,
            Path(path),
            seen=self._seen if images is None else images,
            precision=precision,
            target=target,
            replaces=replaces,
            tolerance=tolerance,
            removable=removable,
            calibration=calibration,
            canaries=canaries,
            train_step=train_step,
            overwrite=overwrite,
        )
        _log.info("exported %s", path)
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
            state = State(
                settings=self.record(),
                fingerprint=self.backbone.fingerprint(),
                method=self.method.learned(),
                rows=self.method.classes.names,
                head=self.head.state(),
                history=tuple(self.history),
                unfinished=self.unfinished,
            )
            checkpoints.write(state, Path(path))

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        backbone: nn.Module | None = None,
        method: Method | None = None,
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
        workers: int = 0,
        progress: bool | None = None,
        **others: Any,
    ) -> "Learner":
        """Load what `save` wrote.

        Args:
            path: the folder.
            backbone, method, weights: where they cannot be found again by what was saved.
            device, workers, progress: as in the constructor.
            others: are refused: a saved learner has its settings.

        Raises:
            ValueError: when the file is missing, corrupt, of another format, or does not fit the
                backbone.
        """
        if others:
            raise ValueError(
                f"a saved learner keeps its settings, so {', '.join(others)} cannot be given; only backbone, "
                "method, weights, device, workers and progress can"
            )
        state = checkpoints.read(Path(path))
        settings = state.settings
        if backbone is None:
            spec = settings["backbone"]
            if spec is None:
                raise ValueError(
                    f"{path} was saved with a backbone of the caller's own; pass it as backbone="
                )
            backbone = load_backbone(spec["name"], weights=weights or spec["weights"], **spec["options"])
        else:
            backbone = resolve(backbone, weights)
        if backbone.fingerprint() != state.fingerprint:
            raise ValueError(
                f"the backbone's weights are not those that {path} was trained on; "
                "pass the same ones, as weights= or as backbone="
            )
        if method is None:
            name = settings["method"]["name"]
            if name not in methods.__all__:
                raise ValueError(
                    f"{path} was saved with a method of the caller's own, {name}; pass an instance as method="
                )
            kind = getattr(methods, name)
            method = kind(**kind.completed(settings["method"]["config"]))
        learner = cls(
            backbone,
            method,
            head=from_state(state.head),
            **settings["training"],
            augmentation=_augmentation(settings["augmentation"]),
            seed=settings["seed"],
            precision=settings["precision"],
            device=device,
            workers=workers,
            progress=progress,
        )
        learner.history = list(state.history)
        learner.unfinished = state.unfinished
        if state.unfinished is not None:
            learner.begin_task(state.unfinished.classes, state.unfinished.seen)
        learner.method.restore(state.method, state.rows)
        made = json.loads(json.dumps(method.config()))
        kept = method.completed(settings["method"]["config"])
        if made != kept:
            raise ValueError(
                f"{path} was saved with a method of the arguments {_arguments(kept)}, and this one has "
                f"{_arguments(made)}; pass one with the same"
            )
        return learner

    # One task, from images to a head that has learned it

    def _learn(self, images: Images, digest: str, checkpoint: str | Path | None) -> Lesson:
        begun = self.unfinished
        start = time.perf_counter() - (begun.seconds if begun else 0.0)
        loader = self._loader(images)
        targets = images.targets
        batches = loader.in_order(targets)
        if begun is None:
            begun = Unfinished(
                classes=images.classes,
                seen=Classes([*self.head.classes, *images.labels]).names,
                digest=digest,
                features=self.features(images) if self.carries else None,
            )
            self.begin_task(begun.classes, begun.seen)
            with self._seeded(_SURVEY, len(self.history)):
                self.method.survey(batches)
            processes.same(self.method.learned().values())
        parameters = sum(parameter.numel() for parameter in self.method.trainable())
        for so_far in self._train(loader, targets, begun, checkpoint):
            if checkpoint is not None:
                self.unfinished = replace(so_far, seconds=time.perf_counter() - start)
                self.save(checkpoint)
        with self._seeded(_END, len(self.history)):
            self.method.end_task(batches)
        processes.same(self.method.learned().values())
        self.teach(self.head, begun.features, self.features(images), images.labels)
        self.method.follow(self.head.classes)
        self.unfinished = None
        return Lesson(images.classes, len(images), parameters, time.perf_counter() - start)

    def begin_task(self, classes: tuple[str, ...], seen: tuple[str, ...] = ()) -> None:
        """Tell the method of a task; `fit` and `load` do this, seeded alike."""
        others = [index for index, name in enumerate(self.head.classes) if name not in classes]
        prototypes = np.zeros((0, sum(self.method.sections)))
        if others:
            prototypes = self.head.prototypes[others]
        task = TaskInfo(
            index=len(self.history),
            classes=classes,
            known=self.head.classes,
            prototypes=torch.from_numpy(prototypes).float(),
            seen=seen,
        )
        self.method.follow(self.head.classes)
        with self._seeded(_BEGIN, task.index):
            self.method.begin_task(task)

    def _train(
        self, loader: Loader, targets: Targets, begun: Unfinished, folder: str | Path | None
    ) -> Iterator[Unfinished]:
        """Train epoch by epoch; gives the task as far as it is, after each epoch but the last."""
        parameters, setting, index = self.method.trainable(), self.training, len(self.history)
        if not parameters:
            return
        optimizer = setting.make_optimizer(parameters)
        for parameter, state in zip(parameters, begun.optimizer, strict=begun.epochs > 0):
            # Adam counts its steps on the CPU.
            moved = {name: value.to(self.device) if value.dim() else value for name, value in state.items()}
            optimizer.state[parameter] = {name: value.clone() for name, value in moved.items()}
        pace: Pace | None = None
        for epoch in range(begun.epochs, setting.epochs):
            start, sums, seen = time.perf_counter(), dict[str, float](), 0
            for group in optimizer.param_groups:
                group["lr"] = setting.rate(epoch)
            key = (self.seed, index, epoch)
            batches = loader.shuffled(targets, self.augmentation, batch_size=setting.batch_size, key=key)
            pace = pace or Pace(len(batches) * setting.epochs, done=len(batches) * epoch)
            self.method.train()
            with self._seeded(_EPOCH, index, epoch, *processes.key()):
                name = f"task {index + 1}, epoch {epoch + 1}/{setting.epochs}"
                for batch, target in (bar := self._bar(batches, name, "step", pace)):
                    terms = self._step(optimizer, batch, target)
                    sums = {key: sums.get(key, 0.0) + len(batch) * value for key, value in terms.items()}
                    seen += len(batch)
                    bar.set_postfix({key: f"{value:.3g}" for key, value in terms.items()}, refresh=False)
            self.method.eval()
            processes.same(self.method.learned().values())
            means = {key: value / seen for key, value in sums.items()}
            figures = {"lr": setting.rate(epoch), "seconds": time.perf_counter() - start}
            place = {"task": index + 1, "epoch": epoch + 1}
            self.tell({**place, **figures, "loss": sum(means.values()), **means}, folder)
            if epoch + 1 < setting.epochs:
                states = tuple(optimizer.state[parameter] for parameter in parameters)
                yield replace(begun, epochs=epoch + 1, optimizer=states)

    def _step(self, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor) -> dict[str, float]:
        optimizer.zero_grad()
        terms = self._backward(images, targets) if len(images) else {}
        parameters = self.method.trainable()
        for parameter in parameters:
            if parameter.grad is None:  # so that every parameter has its momentum and its decay
                parameter.grad = torch.zeros_like(parameter)
        processes.mean_gradients(parameters, weight=len(images))
        optimizer.step()
        self.method.after_step()
        return {name: value.item() for name, value in terms.items()}

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
        self._check_learned()
        return self.head.predict(self.features(images))

    def _check_learned(self) -> None:
        if not self.classes:
            raise ValueError("nothing has been learned yet, so nothing can be predicted; call fit first")

    def _loader(self, images: Images) -> Loader:
        return Loader(images, self.backbone, self.device, workers=self.workers)

    def _bar(self, batches: Any, name: str, unit: str, pace: Pace | None = None) -> Any:
        return track(batches, name, unit, show=self.progress if processes.is_main() else False, pace=pace)

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Put method, head and task back as they were when something raises.

        They stay the same objects, so that whoever holds them sees what the learner sees.
        """
        before = copy.deepcopy(self.method, self.method.shared()), copy.deepcopy(self.head)
        unfinished = self.unfinished
        try:
            yield
        except BaseException:
            for own, copied in zip((self.method, self.head), before, strict=True):
                own.__dict__ = copied.__dict__
            self.unfinished = unfinished
            raise

    @contextlib.contextmanager
    def _seeded(self, *key: int) -> Iterator[None]:
        """Seed torch for what ``key`` names, and give the caller's random state back after it."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            seed = np.random.SeedSequence([self.seed, *key]).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(seed))
            yield


def _check_free(part: Method | Head, what: str) -> None:
    owner = _owners.get(part)
    if owner is not None and owner() is not None:
        name = type(part).__name__
        raise ValueError(f"this {name} is the {what} of another learner; give each learner one of its own")


def _arguments(config: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in config.items())


def _augmentation(stored: dict[str, Any] | None) -> Augmentation | None:
    if stored is None:
        return None
    # JSON has no tuples, and with lists it would not equal the one that was saved.
    return Augmentation(tuple(stored["scale"]), tuple(stored["ratio"]), stored["flip"])
