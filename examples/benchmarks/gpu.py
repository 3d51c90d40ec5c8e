"""Parity and speed on a GPU: torch eager and compiled, ONNX Runtime's CUDA and TensorRT providers, TensorRT.

    python examples/benchmarks/gpu.py [--batch 1 16] [--repeats 50] [--backbone NAME] [--build-for SM86]

It exports the bundled backbone in 32, 16 and 8 bits (calibrated on crops of scikit-learn's photographs)
and runs each form in everything that is there. Parity is the lowest cosine between features and those of
torch in 32 bits on the CPU, over 64 crops. Where there is no GPU it runs what a CPU can, and says of all
the rest why it did not run; `--build-for` then has TensorRT-RTX at least build the engines.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from everlearn import LDA, Backbone, load_backbone
from everlearn_export.onnx import to_onnx, with_preprocessing
from everlearn_export.precision import lower
from everlearn_runtime import Bundle, MissingExtra, OnnxRuntime, write_bundle
from everlearn_runtime.backends.tensorrt import build_engine, open_engine

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
FORMS = ("fp32", "fp16", "int8")
CROPS = 64


def crops(side: int) -> NDArray[np.uint8]:
    """Random parts of photographs, uint8 (N, side, side, 3)."""
    rng, found = np.random.default_rng(0), []
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    for index in range(CROPS):
        picture = photographs[index % len(photographs)]
        size = int(rng.integers(side, min(picture.size)))
        left, top = (int(rng.integers(0, edge - size + 1)) for edge in picture.size)
        found.append(picture.crop((left, top, left + size, top + size)).resize((side, side)))
    return np.stack([np.asarray(crop) for crop in found])


def bundles(backbone: Backbone, images: NDArray[np.uint8], folder: Path) -> dict[str, Bundle]:
    """A bundle of each precision, with an empty head."""
    channels = [backbone.mean.flatten().tolist(), backbone.std.flatten().tolist()]
    exact = to_onnx(with_preprocessing(backbone.vit, *channels), backbone.input)
    for form in FORMS:
        graph = exact if form == "fp32" else lower(exact, form, "tensorrt", images)
        write_bundle(
            folder / form,
            features=graph,
            head=LDA(),
            input=backbone.input,
            sections=[backbone.vit.num_features],
            training={},
            parity={"precision": form, "target": "tensorrt"},
            everlearn=metadata.version("everlearn"),
        )
    return {form: Bundle.open(folder / form) for form in FORMS}


def with_torch(backbone: Backbone, device: str, half: bool, compiled: bool) -> Run:
    """The model in torch, normalisation included."""
    channels = [backbone.mean.flatten().tolist(), backbone.std.flatten().tolist()]
    model: Any = with_preprocessing(backbone.vit, *channels).to(device)
    if compiled:
        # Tuning every product for a few ms of model takes minutes, and was hardly ever faster than cuBLAS.
        model = torch.compile(model, mode="reduce-overhead" if device == "cuda" else None)

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode(), torch.autocast(device, torch.float16, enabled=half):
            features: torch.Tensor = model(torch.from_numpy(images).to(device))
        return np.asarray(features.float().cpu().numpy())

    return run


def ways(backbone: Backbone, made: dict[str, Bundle]) -> Iterator[tuple[str, Callable[[], Run]]]:
    """A name, and what makes the way to run it; that raises where it is not there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precisions = {"fp32": False, "fp16": True} if device == "cuda" else {"fp32": False}
    for form, half in precisions.items():
        yield f"torch eager, {device}, {form}", lambda half=half: with_torch(backbone, device, half, False)  # type: ignore[misc]
    for provider in ("CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"):
        for form, bundle in made.items():
            yield (
                f"onnxruntime, {provider}, {form}",
                lambda bundle=bundle, provider=provider: OnnxRuntime(bundle.features, [provider]).run,  # type: ignore[misc]
            )
    for form, bundle in made.items():
        yield f"TensorRT engine, {form}", lambda bundle=bundle: open_engine(bundle).run  # type: ignore[misc]
    for form, half in precisions.items():  # last, for it takes longest to begin
        yield f"torch compiled, {device}, {form}", lambda half=half: with_torch(backbone, device, half, True)  # type: ignore[misc]


def lowest_cosine(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    a, b = found.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / norms).min())


def milliseconds(run: Run, images: NDArray[np.uint8], repeats: int) -> float:
    times = []
    for turn in range(repeats + 5):
        start = time.perf_counter()
        run(images)
        if turn >= 5:
            times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    options.add_argument("--repeats", type=int, default=50)
    options.add_argument("--backbone", help="a timm name, with its weights; the bundled one by default")
    options.add_argument("--build-for", metavar="SM86", help="build engines without that GPU")
    given = options.parse_args()
    backbone = load_backbone(given.backbone) if given.backbone else load_backbone()
    backbone.eval().fuse_attention(False)
    images = crops(backbone.input.height)
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = bundles(backbone, images, Path(folder))
        expected = with_torch(backbone, "cpu", False, False)(images)
        for name, make in ways(backbone, made):
            try:
                run = make()
                cosine = lowest_cosine(run(images), expected)
            except (ValueError, MissingExtra, RuntimeError) as error:
                skipped[name] = str(error).splitlines()[0]
                continue
            times = [milliseconds(run, images[:batch], given.repeats) for batch in given.batch]
            costs = ", ".join(f"{t:.2f} ms at {b}" for t, b in zip(times, given.batch, strict=True))
            print(f"{name:52} cosine {cosine:.6f}  {costs}", flush=True)
        if given.build_for:
            for form, bundle in made.items():
                start = time.perf_counter()
                built = build_engine(
                    bundle, batches=given.batch, sm=given.build_for, cache=Path(folder) / "engines"
                )
                took = time.perf_counter() - start
                print(
                    f"built, never run: {form} for {built.key.gpu}, {built.nbytes / 1e6:.1f} MB, {took:.1f} s"
                )
    for name, reason in skipped.items():
        print(f"could not run: {name}: {reason}")


if __name__ == "__main__":
    main()
