"""Latency of our graph beside those of Hugging Face's optimum-onnx and of timm, of the same backbone.

    python examples/benchmarks/latency.py [--batch 1 16] [--repeats 60] [--threads 1]

It exports the bundled backbone (or `--backbone NAME` with random weights) three times, and runs the graphs
in ONNX Runtime on the CPU, in turns, so that what disturbs the machine disturbs all. Ours takes uint8
pixels and normalises them; the others are given floats that somebody has normalised already. Printed are
the medians of the time that passed and of the time that processors worked, which other programs disturb
less, and the median of the ratios within a round. optimum-onnx is left out where it is not
installed (`pip install optimum-onnx`).
"""

import argparse
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from everlearn import Backbone, load_backbone
from everlearn_export.onnx import to_onnx, with_preprocessing

CHECKED = 2e-3  # difference up to which graphs count as the same function


def ours(backbone: Backbone) -> bytes:
    channels = [backbone.mean.flatten().tolist(), backbone.std.flatten().tolist()]
    return to_onnx(with_preprocessing(backbone.vit, *channels), backbone.input)


def plain_timm(backbone: Backbone) -> bytes:
    from timm.utils.onnx import onnx_export  # everlearn makes sure that timm can be imported

    size = (3, backbone.input.height, backbone.input.width)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "timm.onnx"
        onnx_export(backbone.vit, str(path), batch_size=2, input_size=size, check=False)
        return path.read_bytes()


def optimum(backbone: Backbone) -> bytes:
    from optimum.exporters.onnx import export
    from optimum.exporters.onnx.model_configs import TimmDefaultOnnxConfig
    from transformers import PretrainedConfig

    config = PretrainedConfig(image_size=backbone.input.height, num_channels=3)
    vit: Any = backbone.vit
    vit.config = config
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimum.onnx"
        export(
            vit, TimmDefaultOnnxConfig(config, task="image-classification"), path, do_constant_folding=True
        )
        return path.read_bytes()


def session(graph: bytes, threads: int) -> Callable[[Any], Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    made = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = made.get_inputs()[0].name
    return lambda images: made.run(None, {name: images})[0]


def timed(graph: Callable[[Any], Any], images: Any) -> tuple[float, float]:
    """Milliseconds that passed, and that processors worked."""
    start = time.perf_counter(), time.process_time()
    graph(images)
    return (time.perf_counter() - start[0]) * 1000, (time.process_time() - start[1]) * 1000


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--backbone", help="a timm name, with random weights; the bundled one by default")
    options.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    options.add_argument("--repeats", type=int, default=60)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    backbone = load_backbone(given.backbone, weights="random") if given.backbone else load_backbone()
    backbone.eval()
    side = backbone.input.height
    pixels = np.random.default_rng(0).integers(0, 256, (max(given.batch), side, side, 3), dtype=np.uint8)
    with torch.no_grad():
        floats = backbone.normalise(torch.from_numpy(pixels)).numpy()
        expected = backbone.vit(torch.from_numpy(floats)).numpy()

    graphs, inputs = {}, {}
    for name, make, images in (
        ("ours", ours, pixels),
        ("timm's onnx_export", plain_timm, floats),
        ("optimum-onnx", optimum, floats),
    ):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                backbone.fuse_attention(False)
                data = make(backbone)
        except ImportError as error:
            print(f"left out: {name} ({error})")
            continue
        graphs[name], inputs[name] = session(data, given.threads), images
        difference = float(np.abs(graphs[name](images) - expected).max())
        nodes = len(onnx.load(io.BytesIO(data)).graph.node)
        print(f"{name}: {nodes} nodes, {len(data) / 1e6:.1f} MB, max difference to torch {difference:.1e}")
        assert difference < CHECKED * float(np.abs(expected).max()), name
    for batch in given.batch:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in graphs}
        for turn in range(given.repeats + 3):
            order = list(graphs) if turn % 2 else list(reversed(graphs))
            for name in order:
                passed = timed(graphs[name], inputs[name][:batch])
                if turn >= 3:
                    times[name].append(passed)
        own = np.array(times["ours"])
        for name in graphs:
            found = np.array(times[name])
            passed, worked = np.median(found, axis=0)
            ratios = np.median(found / own, axis=0)
            print(
                f"batch {batch:3}: {name:20} {passed:8.2f} ms ({ratios[0]:.2f} x ours), "
                f"{worked:8.2f} ms of processors ({ratios[1]:.2f} x ours)"
            )


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
