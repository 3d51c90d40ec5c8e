"""The device's learner."""

from __future__ import annotations

import functools
import math
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from logging import getLogger
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.adapt import (
    RATE,
    STEPS,
    Adapted,
    Deployed,
    Schedule,
    Trained,
    carried,
    check_adaptable,
    check_followable,
    deploy,
    train,
)
from everlearn_runtime.backends import Backend, Provider, open_backend
from everlearn_runtime.bundle import Bundle
from everlearn_runtime.errors import BundleError, StateError
from everlearn_runtime.fleet import Delta, GaussianNoise, make_delta, with_noise
from everlearn_runtime.guard import Canaries, DriftWatch, Suspect, check_guard, doubtful, refusal, suspects
from everlearn_runtime.heads import Head, from_state
from everlearn_runtime.heads.checks import check_label, check_labels
from everlearn_runtime.heads.confidence import Opinion, check_false_alarm
from everlearn_runtime.images import prepare_batch
from everlearn_runtime.migration import Migrated
from everlearn_runtime.names import check_names
from everlearn_runtime.opening import StateFile, check_path
from everlearn_runtime.prediction import Learned, Prediction
from everlearn_runtime.state import RETENTION, Memory, Owner, Reader, Version
from everlearn_runtime.turns import RightOfWay, Turns

if TYPE_CHECKING:
    from typing_extensions import Self

Result = TypeVar("Result")

_log = getLogger("everlearn_runtime.edge")

# Learning runs the graph on so many images at once, and then looks whether somebody wants to predict.
PART_IMAGES = 16

FALSE_ALARM = 0.05


class EdgeLearner:
    """Predicts, and goes on learning, on a device: numpy and a graph, no training runtime.

    Open one with :meth:`open`. ``learn`` and ``forget`` change the head's statistics, exactly and at once;
    the graph stays as it is, but for its adapters after ``adapt``. Safe to share between threads: the graph
    runs for all of them side by side, the head is read and changed by one at a time, and while some predict
    the others take their time to learn. A learner belongs to the process that opened it; a forked child opens
    its own. Whatever raises leaves the state as it was. What it does is
    also told to Python's `logging`, as ``everlearn_runtime``, at the level INFO.

    Attributes:
        bundle: What it was opened from.
        migrated: What was carried over from the model before, if that happened when it was opened.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        keeper: Memory | Owner | Reader,
        false_alarm: float = FALSE_ALARM,
    ) -> None:
        self.bundle = bundle
        self.migrated: Migrated | None = None
        self._deployed = Deployed(backend)
        self._keeper = keeper
        self._false_alarm = false_alarm
        self._watch = DriftWatch()
        self._turns = Turns()
        self._way = RightOfWay()
        self._closed = False
        self._pid = os.getpid()
        # A learner that nobody closes gives its file back all the same, at the end of the process.
        self._left = weakref.finalize(self, _give_back, self._pid, self._turns, keeper)

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        *,
        state: str | Path | None = None,
        backend: str = "auto",
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
        durable: bool = False,
        read_only: bool = False,
        retention: int = RETENTION,
        migrate: bool = False,
        false_alarm: float = FALSE_ALARM,
        trust: Sequence[str | Path] | None = None,
    ) -> EdgeLearner:
        """Open a bundle, and with a state file go on where the last process stopped.

        Args:
            bundle: The bundle's folder.
            state: An SQLite file next to, not inside, the bundle; made if it is not there. None
                keeps what is learned in memory only. It goes with every bundle that has the same
                graph and head.
            backend: What runs the graph: ``"auto"``, ``"onnxruntime"`` or ``"tensorrt"``, see
                `everlearn_runtime.backends.open_backend`. What it came to says ``backend``.
            providers: ONNX Runtime execution providers, the preferred one first: names, or pairs of a
                name and its options. None: the GPU if onnxruntime-gpu has one, else the CPU.
            threads: CPU threads inside an operator; None: all cores.
            durable: Bring every call to the disk before it returns, so that even a power failure
                loses nothing; a crash of the process never does.
            read_only: Predict from a state that another process may be changing, and follow its
                changes: each call looks whether there are new ones, and reads them first. Any
                number of processes may; nothing is written.
            retention: Bytes of history that the state keeps to go back to, about; what is needed
                to open the state again comes on top.
            migrate: If the state goes with the bundle that this one replaces, carry over what the
                device has learned since; ``migrated`` says what, and how good the map is. The old state
                is kept beside, as ``FILE.before-...``, and opens with the old bundle; it still has what
                ``forget`` takes out later, and a ``purge`` of a class that it names deletes it. A process
                that dies on the way leaves the old state or the new one, and the next call finishes.
            false_alarm: The share of images of known classes that may be called unknown, or suspect when
                they are learned.
            trust: Public keys, as files or PEM text: a bundle that none of them has signed is refused. None:
                no signature is looked at.

        Raises:
            BundleError: The bundle is missing or damaged.
            TrustError: It is not signed by any key of ``trust``, or was altered after that.
            StateError: The state is damaged, in use, or goes with another graph or head.
            MissingExtra: The backend is not installed.
            ValueError: A backend or provider that is not there, or an argument out of range.
        """
        file = StateFile(state, durable, read_only, retention, migrate)
        check_false_alarm(false_alarm)
        opened = Bundle.open(bundle, trust)
        # Its head is read again, to go back to version 0, wherever the process is by then.
        opened = replace(opened, path=opened.path.absolute())
        file.check_outside(opened)
        runs = open_backend(opened, backend, providers, threads)
        keeper, migrated = file.open(opened)
        learner = cls(opened, runs, keeper, false_alarm)
        learner.migrated = migrated
        try:
            learner._in_turn(learner._redeploy)
        except BaseException:
            learner.close()
            raise
        _log.info("opened %s with state %s, on %s", bundle, state, runs.name)
        return learner

    def __repr__(self) -> str:
        place = f"EdgeLearner {str(self.bundle.path)!r}"
        try:
            head, version = self._in_turn(lambda: (repr(self._keeper.head), self._keeper.version))
        except ValueError:  # closed, or another process's
            return f"<{place}: not open here>"
        return f"<{place}: version {version}, {head[1:-1]}, on {self.backend}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a learner cannot be copied or pickled, as a state has one owner; open the bundle again in the "
            "other place, with read_only=True where the state is in use"
        )

    @property
    def backend(self) -> str:
        """What runs the graph, and on what, for people."""
        return self._deployed.backend.name

    @property
    def classes(self) -> tuple[str, ...]:
        """The names known now, in the order of first appearance."""
        return self._in_turn(lambda: self._keeper.head.classes)

    @property
    def counts(self) -> dict[str, int]:
        """Samples learned per class, the workstation's included."""
        return self._in_turn(lambda: self._keeper.use(_counts))

    @property
    def nbytes(self) -> int:
        """Bytes of the head's statistics: all that learning keeps."""
        return self._in_turn(lambda: self._keeper.head.nbytes)

    @property
    def version(self) -> int:
        """The number of the last change; 0 is the bundle's own head."""
        return self._in_turn(lambda: self._keeper.version)

    @property
    def drifted(self) -> bool:
        """Whether the images that :meth:`predict` was given lately are unlike those of known classes.

        A dirty lens, darkness or another place look like that, see `DriftWatch`; in memory only, and False as
        long as the learner is not calibrated.
        """
        return self._in_turn(lambda: self._watch.told)

    def reset_drift(self) -> None:
        """Watch for drift anew, once its cause is mended."""
        self._in_turn(self._watch.reset)

    def history(self) -> list[Version]:
        """The versions that :meth:`rollback` can go back to, oldest first.

        How far that is follows from the state's ``retention``; without a state there is none.
        """
        return self._in_turn(self._keeper.history)

    def predict(self, images: object, *, channels: str = "rgb") -> Prediction:
        """Classify images.

        Args:
            images: One or many, of any size, as ``everlearn_runtime.prepare_batch`` takes them:
                uint8 arrays as a camera gives them, PIL images, files.
            channels: The order of an array's colours: ``"rgb"``, or ``"bgr"`` as OpenCV has it.

        Raises:
            ValueError: What is no picture, or no class is known yet, or the learner is closed.
            MissingExtra: A picture has another size than the graph takes, and Pillow is missing.
            StateError: The state cannot be read any more.
        """
        self._check_open()
        batch = self._batch(images, channels)
        return self._with_features(
            lambda backend: self._way.urgent(lambda: self._features(backend, batch)), self._predict
        )

    def predict_proba(self, images: object, *, channels: str = "rgb") -> NDArray[np.float64]:
        """Probabilities (B, C) of :meth:`predict`, in the order of ``classes``, by scikit-learn's name."""
        return self.predict(images, channels=channels).probabilities

    def score(self, images: object, labels: Sequence[str], *, channels: str = "rgb") -> float:
        """The share of images, as in :meth:`predict`, whose best class is their label, in [0, 1].

        Raises:
            ValueError: As in :meth:`predict`, or another number of labels than of images.
        """
        names = check_labels(labels)
        found = self.predict(images, channels=channels).labels
        if len(names) != len(found):
            raise ValueError(f"{len(names)} labels for {len(found)} images; give one label per image")
        return sum(map(str.__eq__, found, names)) / len(names)

    def learn(
        self,
        images: object,
        labels: Sequence[str],
        *,
        channels: str = "rgb",
        guard: float | None = None,
    ) -> Learned:
        """Learn labelled images, of old and new classes alike.

        With a state file the change is in its journal when the call returns. First the head says what it
        thinks of the images of classes that it knows, as it is before the call: that is what
        ``Prediction.probabilities`` and ``known`` are calibrated by. Heads that would take long to answer,
        see `Head.answers_soon`, are not asked unless they have just predicted.

        Args:
            images: As in :meth:`predict`.
            labels: A class name for each.
            channels: As in :meth:`predict`.
            guard: By how much the share of the bundle's canaries that are right may fall, of all of
                them, and of those of the classes in this call; a number such as 0.1. With a guard the call
                is refused, too, if more of its images are suspects by their labels than chance allows.
                None: no look at the canaries, which costs a copy of the head and two answers.

        Returns:
            What was learned: the new version's number, the samples of each class, and the images that
            raise doubts.

        Raises:
            ValueError: As in :meth:`predict`, a label that is no non-empty ``str``, another
                number of labels than of images, or a guard on a bundle without canaries.
            GuardError: The accuracy on the canaries would fall by more than ``guard``, or the labels are
                doubtful.
            StateError: The state could not be written, or is read-only.
        """
        self._check_open()
        batch, names = self._labelled(images, labels, channels)
        if guard is not None:
            check_guard(guard)
            if self._canaries is None:
                raise ValueError("guard on a bundle without canaries; export it with canaries=5, for example")
        learned = self._with_features(
            lambda backend: self._in_parts(backend, batch),
            lambda deployed, features: self._learn(deployed, features, names, guard),
        )
        _log.info("version %d: learned %s", learned.number, dict(learned.counts))
        return learned

    def adapt(
        self,
        images: object,
        labels: Sequence[str],
        *,
        steps: int = STEPS,
        rate: float = RATE,
        channels: str = "rgb",
        seed: int = 0,
    ) -> Adapted:
        """Train the adapters on, on labelled images of known classes, and go on with them.

        Runs the bundle's training step, averages the result into the adapters as NTK-CL does after a task
        (each training on the device counts as one), and moves the head's sums along, by a map that is
        fitted on the same images. Learn images of new classes first. Predictions go on meanwhile; what is
        learned meanwhile is kept. It is a version like any other. What the head knew of how sure it may be
        goes, see `Prediction.calibrated`, and the bundle's canaries say nothing any more.

        Args:
            images: As in :meth:`predict`. The more the better the head can follow.
            labels: A known class for each.
            steps: Of the training, on up to 16 images each.
            rate: AdamW's.
            channels: As in :meth:`predict`.
            seed: Of the order of the images.

        Returns:
            The new version, the losses, and how good the map is.

        Raises:
            ValueError: As in :meth:`learn`; a class that is not known; the bundle has no training step of
                adapters, the backend cannot run others, or the head cannot follow; an argument out of
                range; or the training gave values that are not finite.
            StateError: The state could not be written or is read-only, or the adapters were changed by
                another thread meanwhile.
        """
        self._check_open()
        schedule = Schedule(steps, rate, seed)
        self._in_turn(self._keeper.check_writable)
        check_adaptable(self.bundle, self._deployed.backend)
        batch, names = self._labelled(images, labels, channels)
        deployed, rows, classifier = self._in_turn(lambda: self._to_train(names))
        trained = train(
            self.bundle, deployed, batch, rows, classifier, schedule, self._way.part, self._in_parts
        )
        adapted = self._in_turn(lambda: self._adapt(trained, names))
        _log.info("version %d: adapted, %s", adapted.number, adapted)
        return adapted

    def forget(self, label: str, *, purge: bool = False) -> Version:
        """Drop a class.

        Where the head keeps each class's sums apart, the class goes exactly: the head is then, but for
        rounding, one that has never seen the class. So it is with Prototypes and FeCAM, and with
        LDA, EvidenceLDA and Ridge for classes learned on a device whose bundle was exported with
        ``removable=True``. Otherwise what its samples said about all classes together stays in the
        pooled sums. The version's ``form`` says which it was: "exact" or "pooled". Either way the figures of
        how sure the learner may be stay as they are: sums over the images of all classes.

        The name and the features of its samples stay in the state's history, so that this can be
        taken back, as long as its ``retention`` says.

        Args:
            label: A known class.
            purge: Leave neither its name nor its features in any byte of the state file and its
                companion. That ends the history: the state cannot go back beyond this version, and
                old states that ``migrate`` kept beside go if they name the class. A class
                that was forgotten before but is still in the history, or in one of those, may be named too.

        Returns:
            The new version; of a purge, without the name.

        Raises:
            ValueError: No such class, or the learner is closed.
            StateError: The state could not be written, or is read-only.
        """
        name = check_label(label)
        version = self._in_turn(lambda: self._forget(name, purge))
        _log.info("version %d: %s %r", version.number, version.kind, "a class" if purge else name)
        return version

    def undo(self) -> Version:
        """Take back the last change that has not been taken back.

        A second call takes back the one before it; to take back an undo, :meth:`rollback` to the
        version before it.

        Returns:
            The new version.

        Raises:
            ValueError: Nothing is left to take back within the history, or the learner is closed.
            StateError: The state could not be read or written, or is read-only.
        """
        return _back(self._in_turn(self._keeper.undo))

    def rollback(self, to: int) -> Version:
        """Go back to an earlier version, exactly, to the bit.

        That is a change like any other: a new version, which can be taken back.

        Args:
            to: Its number, see :meth:`history`.

        Returns:
            The new version.

        Raises:
            ValueError: It is not in the history, or the learner is closed.
            StateError: The state could not be read or written, or is read-only.
            BundleError: The bundle's own head is needed, and the bundle is not there any more.
        """
        if type(to) is not int:
            raise ValueError(f"to is {to!r}; give a version's number, see history()")
        return _back(self._in_turn(lambda: self._keeper.rollback(to)))

    def backup(self, path: str | Path) -> None:
        """Copy the state, as it is now, to another file; other threads go on learning meanwhile.

        The copy opens as a state. A plain copy of the file is whole only while no learner is open.

        Args:
            path: Where to; nothing may be there yet.

        Raises:
            ValueError: Something is at the path or beside it, there is no state, or the learner is closed.
            StateError: The copy could not be written, or a purge came in between; nothing is left of it.
        """
        self._check_open()
        check_path("path", path)
        job = self._in_turn(lambda: self._keeper.backup(path))
        try:
            while not self._in_turn(job.step):
                pass
        finally:
            job.discard()

    def delta(
        self, since: int | None = None, *, min_count: int = 1, noise: GaussianNoise | None = None
    ) -> Delta:
        """What this device has learned: sums, not images, to be added to the bundle by
        `everlearn_runtime.merge`.

        Args:
            since: The version after which; None: all that the bundle does not hold yet. A delta must begin
                where the last one ended that was merged, or hold all of it, so that nothing counts twice.
            min_count: Classes with fewer new samples are left out: the mean of one image is that image's
                features. Of these, and of what was forgotten, nothing is in the sums that all classes share
                either, for which the state must have the features of what is handed in, as far as it can go
                back.
            noise: Hand in class means with noise, and no scatter; the (epsilon, delta) that this gives is in
                the delta. Of each call with the same samples the noise is another, and what two of them tell
                adds up: save one, and hand in that. Needs the features of what was learned, which the state
                has as far as it can go back.

        Raises:
            MissingExtra: Noise, and dp-accounting is not installed.
            ValueError: Nothing was learned since, the version cannot be reached or was taken back, adapters
                were trained meanwhile, there is no state, the learner is closed, or the head keeps more than
                sums.
            StateError: The state cannot be read, or is read-only.
        """
        if since is not None and (type(since) is not int or since < 0):
            raise ValueError(f"since is {since!r}; give a version's number, see history(), or None")
        if type(min_count) is not int or min_count < 1:
            raise ValueError(f"min_count is {min_count!r}; give a number of samples, at least 1")
        if noise is not None and not isinstance(noise, GaussianNoise):
            raise ValueError(f"noise is {noise!r}; give a GaussianNoise, or None")
        return self._in_turn(lambda: self._delta(since, min_count, noise))

    def close(self) -> None:
        """Give back the session and the state file; a second call does nothing, nor does a forked child's."""
        if os.getpid() == self._pid:
            self._turns.take(self._close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _canaries(self) -> Canaries | None:
        return self.bundle.canaries()

    @property
    def _head(self) -> Head:
        return self._keeper.head

    def _predict(self, deployed: Deployed, features: NDArray[np.float32]) -> Prediction | None:
        known = True

        def look(head: Head) -> Prediction | None:
            nonlocal known
            known = bool(head.classes)
            return self._look(head, features) if known and deployed.runs(self._keeper.adapters) else None

        found = self._keeper.use(look)
        if not known:
            raise ValueError("no class is known yet; learn some first")
        return found

    def _look(self, head: Head, features: NDArray[np.float32]) -> Prediction:
        scores, classes, confidence = head.scores(features), head.classes, head.confidence
        labels = [classes[column] for column in scores.argmax(axis=1).tolist()]
        if not confidence.calibrated:  # then nothing is decided by a look, which takes as long as the scores
            known, strangeness = np.empty(len(labels), dtype=np.bool_), np.empty(len(labels))
            known.fill(True)
            strangeness.fill(math.nan)
            return Prediction(labels, scores, classes, head.temperature, False, known, strangeness)
        look = head.look(features)
        self._watch.see(confidence, look)
        known = look.strangeness <= confidence.threshold(self._false_alarm)
        return Prediction(labels, scores, classes, head.temperature, True, known, look.strangeness)

    def _learn(
        self, deployed: Deployed, features: NDArray[np.float32], names: list[str], guard: float | None
    ) -> Learned | None:
        self._keeper.head.check(features, names)
        if not deployed.runs(self._keeper.adapters):
            return None
        if guard is not None and deployed.adapters is not None:
            raise ValueError(
                "guard after adapt: the bundle's canaries are features under its own adapters, and say "
                "nothing of the new ones; learn without a guard, or roll back to before it"
            )
        opinion, doubts = self._keeper.use(lambda head: self._judge(head, features, names, guard is not None))
        if guard is not None and self._canaries is not None:
            canaries, limit = self._canaries, guard
            refused = doubtful(0 if opinion is None else len(opinion.rows), doubts, self._false_alarm)
            refused = refused or self._keeper.use(
                lambda head: refusal(head, canaries, features, names, limit)
            )
            if refused is not None:
                raise refused
        version = self._keeper.learn(features, names, None if opinion is None else opinion.judgement)
        return Learned(**vars(version), suspects=doubts)

    def _to_train(self, names: list[str]) -> tuple[Deployed, NDArray[np.int64], NDArray[np.float64]]:
        """What a training starts from: the graph, rows of these classes, and all prototypes."""
        self._redeploy()
        head = self._keeper.head
        check_followable(head, names)
        rows = np.array([head.classes.index(name) for name in names], np.int64)
        return self._deployed, rows, self._keeper.use(lambda head: head.prototypes)

    def _adapt(self, trained: Trained, names: list[str]) -> Adapted:
        state = self._keeper.use(lambda head: head.state())
        if not Deployed(trained.deployed.backend, trained.since).runs(self._keeper.adapters):
            raise StateError("the adapters were changed by another call meanwhile; adapt again")
        head, share = carried(from_state(state), trained)
        assert trained.deployed.adapters is not None
        version = self._keeper.adapt(head, trained.deployed.adapters, names)
        self._deployed = trained.deployed
        self._watch.reset()
        return Adapted(**vars(version), **trained.says, explained=share)

    def _judge(
        self, head: Head, features: NDArray[np.float32], names: list[str], anyway: bool
    ) -> tuple[Opinion | None, tuple[Suspect, ...]]:
        """What the head thinks before it learns, and its doubts; nothing if it would take long to answer."""
        if not (anyway or head.answers_soon):
            return None, ()
        try:
            opinion = head.opinion(features, names)
        except ValueError:  # statistics that give no finite score, which learning more may mend
            return None, ()
        return opinion, suspects(head, opinion, self._false_alarm)

    def _delta(self, since: int | None, min_count: int, noise: GaussianNoise | None) -> Delta:
        if not isinstance(self._keeper, Owner):
            raise ValueError("a delta needs the versions of a state; open the bundle with state=...")
        keeper = self._keeper
        past = keeper.since(since, self.bundle.ledger().end(keeper.device))
        history = keeper.history()
        samples = keeper.samples(since) if min_count > 1 or noise is not None else {}
        delta = keeper.use(
            lambda head: make_delta(
                head, past, keeper.device, self.bundle.manifest, min_count, history, samples
            )
        )
        return delta if noise is None else with_noise(delta, noise, samples, self.bundle.head())

    def _forget(self, name: str, purge: bool) -> Version:
        if purge:
            return self._keeper.purge(name)
        if name not in self._keeper.head.classes:
            known = ", ".join(map(repr, self._keeper.head.classes)) or "none"
            raise ValueError(f"no class {name!r} to forget; known classes: {known}")
        return self._keeper.forget(name)

    def _close(self) -> None:
        self._closed = True
        if self._left.alive:  # the first call, or one after a call that was interrupted
            self._deployed.backend.close()
            self._keeper.close()
            self._left.detach()

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise StateError(
                f"this learner belongs to process {self._pid}, which opened it; open one of its own here"
            )
        if self._closed or not self._left.alive:  # the end of the process closes it, too
            raise ValueError("this learner is closed; open the bundle again")

    def _in_turn(self, call: Callable[[], Result]) -> Result:
        """Call something on a learner that is open, while no other thread does."""
        self._check_open()
        return self._turns.take(lambda: self._if_open(call))

    def _if_open(self, call: Callable[[], Result]) -> Result:
        self._check_open()
        return call()

    def _batch(self, images: object, channels: str) -> NDArray[np.uint8]:
        return prepare_batch(images, self.bundle.manifest.input, channels=channels)

    def _labelled(
        self, images: object, labels: Sequence[str], channels: str
    ) -> tuple[NDArray[np.uint8], list[str]]:
        batch = self._batch(images, channels)
        names = check_names(labels, lambda: self.classes)
        if len(names) != len(batch):
            raise ValueError(f"{len(names)} labels for {len(batch)} images; give one label per image")
        return batch, names

    def _with_features(
        self,
        run: Callable[[Backend], NDArray[np.float32]],
        use: Callable[[Deployed, NDArray[np.float32]], Result | None],
    ) -> Result:
        """Run the graph, without a turn, and use what it gives in one; anew if the adapters have changed.

        Args:
            run: Features of a backend.
            use: Looks whether they go with the adapters that there are, and gives None if not.
        """
        while True:
            deployed = self._deployed
            features = run(deployed.backend)
            found = self._in_turn(functools.partial(use, deployed, features))
            if found is not None:
                return found
            self._in_turn(self._redeploy)

    def _redeploy(self) -> None:
        """Let the graph have the adapters that go with the head, which another process may have changed."""
        adapters = self._keeper.use(lambda head: self._keeper.adapters)
        if not self._deployed.runs(adapters):
            # The old one is not closed: other threads may be running it.
            self._deployed = deploy(self.bundle, self._deployed.backend, adapters)

    def _in_parts(self, backend: Backend, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of many images, with room for predictions."""
        parts = []
        for start in range(0, len(batch), PART_IMAGES):
            with self._way.part():
                parts.append(self._features(backend, batch[start : start + PART_IMAGES]))
        return np.concatenate(parts)

    def _features(self, backend: Backend, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            features = backend.run(batch)
        except ValueError:
            self._check_open()  # if it was closed meanwhile, say that
            raise
        width = self.bundle.manifest.width
        if features.shape[1] != width:
            raise BundleError(
                f"the graph gives {features.shape[1]} features, the manifest says {width}; export again"
            )
        return features


def _back(version: Version) -> Version:
    _log.info("version %d: back to version %s", version.number, version.to)
    return version


def _give_back(pid: int, turns: Turns, keeper: Memory | Owner | Reader) -> None:
    if os.getpid() == pid:  # in a forked child a turn may be taken for ever
        turns.take(keeper.close)


def _counts(head: Head) -> dict[str, int]:
    return dict(zip(head.classes, map(int, head.counts), strict=True))
