"""Write a bundle: export, verify, and only then put it in place."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from everlearn_export.onnx import to_onnx, with_preprocessing
from everlearn_export.replace import check_replaces, fit_map, in_batches
from everlearn_export.verify import verify
from everlearn_runtime.backends.onnxruntime import OnnxRuntime
from everlearn_runtime.bundle import Bundle, Manifest, check_target, write_bundle
from everlearn_runtime.guard import Canaries
from everlearn_runtime.heads import Head
from everlearn_runtime.images import InputSpec


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
    tolerance: float = 1e-4,
    replaces: tuple[Bundle, NDArray[np.uint8], NDArray[np.uint8]] | None = None,
    canaries: Canaries | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Manifest:
    """Export a feature module and its head into a bundle that a device can open.

    Args:
        path: folder to write.
        features: module on the CPU, in evaluation mode, from normalised float32 (B, 3, H, W) to
            (B, F).
        head: what the device starts from.
        input: size and resizing of the images.
        mean, std: channel normalisation for pixels in [0, 1]; it goes into the graph.
        sections: widths of the feature sections; they add up to F.
        images: real images to verify on, uint8 (N, H, W, 3) of the input size.
        training: how the model came to be, for the manifest.
        tolerance: see `verify`.
        replaces: a bundle whose states can then be carried over to this one, and images to fit the map
            between the two on: as the old graph takes them, and the same as the new one does.
        canaries: features of held-out images, by which a device can tell whether it forgets.
        overwrite: replace a bundle that is there.
        progress: show a progress bar; by default where there is a terminal.

    Returns:
        The manifest as written.

    Raises:
        ParityError: the graph does not compute what the module does; nothing is written.
        ValueError: ``path`` is taken, the images are not of the input size, or what devices have
            learned with the old bundle does not go into this head.
    """
    check_target(Path(path), overwrite)
    input.check(images)
    if replaces is not None:
        check_replaces(replaces[0], head)
    module = with_preprocessing(features, mean, std)

    def reference(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(batch)).numpy(), np.float32)

    replaced = None
    quiet = None if progress is None else not progress  # None: quiet without a terminal
    with tqdm(total=2, unit="step", leave=False, disable=quiet) as bar:
        bar.set_description("export: torch to ONNX")
        graph = to_onnx(module, input)
        bar.update()
        bar.set_description("export: verify against torch")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "features.onnx"
            file.write_bytes(graph)
            backend = OnnxRuntime(file)
            try:
                parity = verify(reference, backend.run, images, head, sections=sections, tolerance=tolerance)
                if replaces is not None:
                    old, before, after = replaces
                    replaced = fit_map(old, head, before, in_batches(backend.run, after))
            finally:
                backend.close()
        bar.update()
    return write_bundle(
        path,
        features=graph,
        head=head,
        input=input,
        sections=sections,
        training=training,
        parity=asdict(parity),
        everlearn=version("everlearn"),
        replaces=replaced,
        canaries=canaries,
        overwrite=overwrite,
    )
