"""Write a bundle: export, verify, and only then put it in place."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from everlearn_export.layers import worst_layers
from everlearn_export.onnx import to_onnx, with_preprocessing
from everlearn_export.parity import LIMITS, Limits, ParityError, verify
from everlearn_export.places import Places, kept, with_places
from everlearn_export.precision import check_precision, lower
from everlearn_export.replace import check_replaces, fit_map, in_batches
from everlearn_export.step_parity import StepParityError, make_step
from everlearn_export.train_step import Trainable
from everlearn_runtime.backends.onnxruntime import TOKENS, OnnxRuntime
from everlearn_runtime.bundle import Bundle, check_target, write_bundle
from everlearn_runtime.guard import Canaries
from everlearn_runtime.heads import Head
from everlearn_runtime.images import InputSpec
from everlearn_runtime.manifest import Manifest
from everlearn_runtime.version import __version__

SAMPLE = 8
"""Images on which layers are compared."""


@dataclass(frozen=True)
class HeldOut:
    """Labelled images that nothing was learned from.

    Args:
        images: uint8 (N, H, W, 3) of the input size.
        labels: N names of classes that the head knows.
        canaries: positions of those whose features go into the bundle, by which a device can tell whether it
            forgets.
    """

    images: NDArray[np.uint8]
    labels: Sequence[str]
    canaries: Sequence[int] = ()

    def judged_by(
        self, head: Head, run: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    ) -> Canaries | None:
        """Calibrate a head by what a graph makes of the images; the canaries, if there are any."""
        features = in_batches(run, self.images)
        head.calibrate(features, self.labels)
        if not self.canaries:
            return None
        chosen = list(self.canaries)
        return Canaries(features[chosen], tuple(self.labels[index] for index in chosen))


def export_bundle(
    path: str | Path,
    features: nn.Module,
    *,
    head: Head,
    input: InputSpec,
    mean: Sequence[float],
    std: Sequence[float],
    sections: Sequence[int],
    images: NDArray[np.uint8],
    training: dict[str, Any],
    precision: str = "fp32",
    target: str = "cpu",
    labels: Sequence[str] | None = None,
    tolerance: float | None = None,
    replaces: tuple[Bundle, NDArray[np.uint8], NDArray[np.uint8]] | None = None,
    held_out: HeldOut | None = None,
    trainable: Trainable | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Manifest:
    """Export a feature module and its head into a bundle that a device can open.

    Args:
        path: folder to write.
        features: module on the CPU, in evaluation mode, from normalised float32 (B, 3, H, W) to
            (B, F).
        head: what the device starts from. In another precision than 32 bits its statistics follow: the
            map from the model's features to the graph's is fitted on the images (`Head.carry`).
        input: size and resizing of the images.
        mean, std: channel normalisation for pixels in [0, 1]; it goes into the graph.
        sections: widths of the feature sections; they add up to F.
        images: real images to verify on, uint8 (N, H, W, 3) of the input size.
        training: how the model came to be, for the manifest.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``, see `everlearn_export.precision`.
        target: where an int8 graph will run: ``"cpu"`` or ``"tensorrt"``.
        labels: the classes of the images, where they are known: the gate then counts what a lower
            precision costs in accuracy, too.
        tolerance: `Limits.within` this in place of the precision's own limits.
        replaces: a bundle whose states can then be carried over to this one, and images to fit the map
            between the two on: as the old graph takes them, and the same as the new one does.
        held_out: images that nothing was learned from: the head judges them, by the graph's own features, and
            some go into the bundle as canaries.
        trainable: what goes on learning on the device; its training step is then exported, too, behind a gate
            of its own.
        overwrite: replace a bundle that is there.
        progress: show a progress bar; by default where there is a terminal.

    Returns:
        The manifest as written.

    Raises:
        ParityError: the graph does not compute what the module does, or its training step does not train as
            torch does; nothing is written. In a lower precision the worst layers are named.
        ValueError: ``path`` is taken, there is no such precision or tolerance, the images are not of the
            input size, the module gives NaN, or what devices have learned with the old bundle does not go
            into this head.
    """
    check_target(Path(path), overwrite)
    check_precision(precision, target)
    limits = LIMITS[precision] if tolerance is None else Limits.within(tolerance)
    input.check(images)
    if replaces is not None:
        check_replaces(replaces[0], head)
    module = with_preprocessing(features, mean, std)

    def reference(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            values = np.asarray(module(torch.from_numpy(batch)).numpy(), np.float32)
        if not np.isfinite(values).all():
            raise ValueError(
                "the model itself gives NaN or infinite features for these images, so that no graph can be "
                "compared with it; no bundle was written"
            )
        return values

    source, outputs = module, ["features"]
    if trainable is not None and trainable.whole is not None:
        source = with_preprocessing(trainable.whole, mean, std)
        outputs += [TOKENS] * (trainable.blocks == "last2")
    replaced = step = None
    quiet = None if progress is None else not progress  # None: quiet without a terminal
    with tqdm(total=2 + (trainable is not None), unit="step", leave=False, disable=quiet) as bar:
        bar.set_description("export: torch to ONNX")
        places: Places = {}
        if trainable is None or trainable.whole is None:
            exact = to_onnx(source, input, outputs)
        else:
            exact, places = with_places(lambda: to_onnx(source, input, outputs), trainable.deployed)
        expected = None if precision == "fp32" else in_batches(reference, images)
        graph = lower(exact, precision, target, images, [weight for weight, _ in places.values()])
        if places and trainable is not None:
            graph, places = kept(graph, places, trainable.adapters)
        bar.update()
        bar.set_description("export: verify against torch")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "features.onnx"
            file.write_bytes(graph)
            backend = OnnxRuntime(file)

            def exported(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
                try:
                    return backend.run(batch)
                except ValueError as error:  # of 16 bits a value can be too large
                    raise ParityError(f"{error}; no bundle was written") from error

            try:
                own = copy.deepcopy(head)
                if expected is not None:
                    own.carry(expected, in_batches(exported, images))
                parity = verify(
                    reference,
                    exported,
                    images,
                    head,
                    own=own,
                    labels=labels,
                    sections=sections,
                    limits=limits,
                )
                canaries = None if held_out is None else held_out.judged_by(own, exported)
                if replaces is not None:
                    old, before, after = replaces
                    replaced = fit_map(old, own, before, in_batches(exported, after))
                if trainable is not None:
                    bar.update()
                    bar.set_description("export: training step")
                    known = own.predict(in_batches(exported, images)) if labels is None else labels
                    step = make_step(trainable.behind(mean, std), own, backend, images, known)
                    step = replace(step, places=places)
            except StepParityError:
                raise
            except ParityError as error:
                if precision == "fp32":
                    raise
                worst = worst_layers(exact, graph, images[:SAMPLE])
                raise ParityError(
                    f"{error}; in {precision} most is lost at {', '.join(worst)} (of the values' size); "
                    "take a higher precision, or images like those of the device"
                ) from None
            finally:
                backend.close()
        bar.update()
    return write_bundle(
        path,
        features=graph,
        head=own,
        input=input,
        sections=sections,
        training=training,
        parity={**asdict(parity), "precision": precision, "target": target},
        everlearn=__version__,
        replaces=replaced,
        canaries=canaries,
        step=step,
        overwrite=overwrite,
    )
