"""A training step that is an ordinary graph, run in ONNX Runtime: no training runtime is needed.

``train_step.onnx`` takes a batch, its labels, the rate, the number of the step and all that learns with
AdamW's two moments of it, and gives the loss and the new ones of all that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn_runtime.arrays import as_array
from everlearn_runtime.backends.graph import check_graph
from everlearn_runtime.errors import BundleError, MissingExtra

TRAIN_STEP = "train_step.onnx"
ADAPTERS = "adapters.safetensors"
CLASSIFIER = "classifier"
FIRST, SECOND, NEW = "first.", "second.", "new."
BLOCKS = ("head", "last2", "all")
INPUTS = {"head": "features", "last2": "tokens", "all": "images"}

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """What is fixed in a training step.

    Args:
        sharpness: factor of the classifier's cosines.
        regularisation: of the squared distance of the adapters from their shipped values.
        weight_decay: AdamW's, decoupled, on all that learns.
        betas: AdamW's.
        eps: AdamW's.
    """

    sharpness: float = 12.0
    regularisation: float = 1e-3
    weight_decay: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-7


@dataclass(frozen=True)
class StepParity:
    """How close a training step is to the same in torch.

    Args:
        steps: So many were run, one after the other.
        loss: The largest difference of a loss.
        parameters: The largest difference of a value that learns, after any step.
    """

    steps: int
    loss: float
    parameters: float


@dataclass(frozen=True)
class ShippedStep:
    """A training step and what it starts from, as a bundle has it.

    Args:
        graph: The bytes of ``train_step.onnx``.
        adapters: Their values by name, float32.
        blocks: ``"head"``, ``"last2"`` or ``"all"``: what learns beside the classifier.
        settings: What is fixed.
        tasks: How many tasks' adapters the shipped ones are the mean of.
        parity: With torch.
        places: Where each adapter stands in ``features.onnx``: the name of the weight, and whether it is
            transposed there. None of them where the graph cannot take others.
    """

    graph: bytes
    adapters: dict[str, Array]
    blocks: str
    settings: Settings
    tasks: int
    parity: StepParity
    places: dict[str, tuple[str, bool]] = field(default_factory=dict)

    def says(self) -> dict[str, Any]:
        """What stands in the manifest."""
        settings = {**asdict(self.settings), "betas": list(self.settings.betas)}
        return {
            "blocks": self.blocks,
            "input": INPUTS[self.blocks],
            "adapters": {name: list(value.shape) for name, value in self.adapters.items()},
            "settings": settings,
            "tasks": self.tasks,
            "parity": asdict(self.parity),
            "places": {name: list(place) for name, place in self.places.items()},
        }


def check_says(says: Any) -> None:
    """Raise a ValueError if this is not what :meth:`ShippedStep.says` gives."""
    fields = ("blocks", "input", "adapters", "settings", "tasks", "parity", "places")
    if not isinstance(says, dict) or set(says) != set(fields):
        raise ValueError(f"expected the fields {', '.join(fields)}")
    if says["blocks"] not in BLOCKS or says["input"] != INPUTS[says["blocks"]]:
        raise ValueError(f"blocks must be one of {', '.join(BLOCKS)}, with its own input")
    adapters, settings = says["adapters"], says["settings"]
    sound = (
        isinstance(adapters, dict)
        and all(_is_shape(shape) for shape in adapters.values())
        and isinstance(settings, dict)
        and set(settings) == set(Settings.__dataclass_fields__)
        and type(says["tasks"]) is int
        and says["tasks"] >= 1
        and isinstance(says["parity"], dict)
        and isinstance(says["places"], dict)
        and set(says["places"]) in (set(), set(adapters))
        and all(_is_place(place) for place in says["places"].values())
    )
    if not sound:
        raise ValueError("a field has the wrong type")


def check_adapters(says: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> dict[str, Array]:
    """The adapters of a bundle, if they are what its manifest says.

    Raises:
        ValueError: Others, of another shape or type, or not finite.
    """
    if set(arrays) != set(says["adapters"]):
        raise ValueError(f"has {sorted(arrays)[:3]}; the manifest names {sorted(says['adapters'])[:3]}")
    for name, shape in says["adapters"].items():
        array = arrays[name]
        if array.dtype != np.float32 or list(array.shape) != shape or not np.isfinite(array).all():
            raise ValueError(
                f"{name} is {array.dtype} {list(array.shape)}; expected finite float32 of shape {shape}"
            )
    return {name: arrays[name] for name in says["adapters"]}


class TrainStep:
    """Trains adapters and a classifier, step by step, in ONNX Runtime.

    Args:
        graph: The file ``train_step.onnx``, or its bytes.
        adapters: What to start from, float32 by name; none for a step that trains a classifier only.
        classifier: One row for each class, (C, F), by which features are told apart, such as the
            head's prototypes. Of rows longer than the features that the step makes, the first columns are
            taken: further ones are of inner blocks, which the loss does not look at.
        threads: CPU threads inside an operator; None: all cores.

    Attributes:
        steps: Number of steps made.

    Raises:
        MissingExtra: onnxruntime is not installed.
        BundleError: The graph is unreadable, needs other files, or has other inputs.
        ValueError: The classifier's rows are too short.
    """

    def __init__(
        self,
        graph: str | Path | bytes,
        adapters: Mapping[str, Array],
        classifier: NDArray[Any],
        *,
        threads: int | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtra("running a training step", "cpu") from None
        data = graph if isinstance(graph, bytes) else Path(graph).read_bytes()
        check_graph(data, TRAIN_STEP)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # A plan of all memory for each size of a batch, kept beside what the sizes before it took: of all
        # adapters' step at 8 images 40 of 270 MB, and no time is saved by it.
        options.enable_mem_pattern = False
        try:
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no base class of their own
            raise BundleError(f"{TRAIN_STEP}: ONNX Runtime cannot load this graph ({error})") from error
        self._names = [*adapters, CLASSIFIER]
        learns = [prefix + name for prefix in ("", FIRST, SECOND) for name in self._names]
        inputs = [node.name for node in session.get_inputs()]
        if inputs[1:] != ["labels", "rate", "number", *learns]:
            raise BundleError(
                f"{TRAIN_STEP}: the graph takes other inputs than the adapters; export it again"
            )
        if (count := len(session.get_outputs())) != 1 + len(learns):
            raise BundleError(
                f"{TRAIN_STEP}: the graph gives {count} values; expected a loss and {len(learns)} that it "
                "goes on with; export it again"
            )
        self._session: Any = session
        self._input = inputs[0]
        width = (session.get_inputs()[inputs.index(CLASSIFIER)].shape or [None])[-1]
        if classifier.ndim != 2 or type(width) is not int or classifier.shape[1] < width:
            raise ValueError(f"the classifier is {classifier.shape}; the step takes (classes, {width})")
        started = classifier[:, :width]
        values = [np.array(value, np.float32, order="C") for value in (*adapters.values(), started)]
        zeros = [np.zeros_like(value) for value in values]
        self._state = dict(zip(learns, [*values, *zeros, *zeros], strict=True))
        self.steps = 0

    @property
    def adapters(self) -> dict[str, Array]:
        """The adapters as they are now."""
        return {name: self._state[name] for name in self._names[:-1]}

    @property
    def classifier(self) -> Array:
        """The classifier's rows as they are now, float32 (C, F)."""
        return self._state[CLASSIFIER]

    def step(self, inputs: NDArray[Any], labels: object, rate: float) -> float:
        """Make one step.

        Args:
            inputs: What the step trains on, B of them: uint8 images (B, H, W, 3), or what the features'
                graph gives as ``tokens``, or features.
            labels: B rows of the classifier, whole numbers from 0 on.
            rate: AdamW's, above 0.

        Returns:
            The loss before the step.

        Raises:
            ValueError: Labels or a rate out of range, inputs that the graph does not take, or a result that
                is not finite; nothing has changed then.
        """
        rows = as_array(labels, "labels")
        count = len(self.classifier)
        if rows.ndim != 1 or len(rows) != len(inputs) or len(rows) == 0 or rows.dtype.kind not in "iu":
            raise ValueError(
                f"labels are {rows.dtype} of shape {rows.shape} for {len(inputs)} inputs; give one each"
            )
        if rows.min() < 0 or rows.max() >= count:
            raise ValueError(
                f"labels go from {rows.min()} to {rows.max()}; the classifier has rows 0 to {count - 1}"
            )
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"rate is {rate!r}; give a finite number above 0")
        feeds = {
            self._input: inputs,
            "labels": rows.astype(np.int64),
            "rate": np.array(rate, np.float32),
            "number": np.array(self.steps + 1, np.float32),
            **self._state,
        }
        try:
            loss, *new = self._session.run(None, feeds)
        except Exception as error:  # onnxruntime's errors have no base class of their own
            raise ValueError(f"the step failed on inputs of shape {inputs.shape}: {error}") from error
        if np.size(loss) != 1 or any(
            np.shape(value) != old.shape for value, old in zip(new, self._state.values(), strict=True)
        ):
            raise ValueError("the step gave values of other shapes than it took; export it again")
        new = [np.asarray(value, np.float32) for value in new]
        if not (np.isfinite(loss).all() and all(np.isfinite(value).all() for value in new)):
            raise ValueError(f"step {self.steps + 1} gave values that are not finite; lower rate={rate}")
        self._state = dict(zip(self._state, new, strict=True))
        self.steps += 1
        return float(np.asarray(loss).item())


def places_of(says: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """Where a manifest says that each adapter stands in the graph, see `ShippedStep`."""
    return {name: (weight, transposed) for name, (weight, transposed) in says["places"].items()}


def as_weights(adapters: Mapping[str, Array], places: Mapping[str, tuple[str, bool]]) -> dict[str, Array]:
    """Adapters by the names, and in the shapes, of the graph's weights.

    Args:
        adapters: By their own names.
        places: See `ShippedStep`.
    """
    weights = {}
    for name, (weight, transposed) in places.items():
        weights[weight] = adapters[name].T if transposed else adapters[name]
    return weights


def _is_place(place: object) -> bool:
    return (
        isinstance(place, list)
        and len(place) == 2
        and isinstance(place[0], str)
        and isinstance(place[1], bool)
    )


def _is_shape(shape: object) -> bool:
    return isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
