"""Time the exported training step, and its memory, beside the same step in torch eager.

    python examples/benchmarks/train_step.py [--blocks last2 all] [--repeats 15] [--threads 1]

NTK-CL's one-pass form on the bundled ViT-Tiny at 64 px learns two tasks of handwritten digits and is
exported. A step is loss, gradients and AdamW's update: by ONNX Runtime, and by torch's modules, autograd
and `torch.optim.AdamW`, on the same images (for "last2" on their cached tokens) from the same start. Both
take turns in one process; times are medians. Peak memory is that of a process that makes a few steps and
nothing else; behind the sign + is how much of it came after the libraries and the step were loaded.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCHES = (2, 8, 16, 32)
RATE = 1e-3

Step = Callable[[NDArray[Any], NDArray[np.int64]], float]


def exported_step(bundle: Path, threads: int) -> Step:
    """The step by ONNX Runtime; neither torch nor onnx is imported."""
    from everlearn_runtime import Bundle, TrainStep

    opened = Bundle.open(bundle)
    step = TrainStep(bundle / "train_step.onnx", opened.adapters(), opened.head().prototypes, threads=threads)
    return lambda inputs, labels: step.step(inputs, labels, RATE)


def eager_step(run: Path, blocks: str, threads: int) -> Step:
    """The same step by torch."""
    import torch

    from everlearn import Learner
    from everlearn.trainable import trainable
    from everlearn_export.train_step import loss_of

    torch.set_num_threads(threads)
    learner = Learner.load(run, device="cpu")
    decay, settings_of = learner.training.weight_decay, learner.backbone
    made = trainable(learner.method, blocks, weight_decay=decay, tasks=len(learner.history))
    made = made.behind(settings_of.mean.flatten().tolist(), settings_of.std.flatten().tolist())
    settings, sections = made.settings, made.sections
    own = [value for value in made.tail.parameters() if value.requires_grad]
    before = [value.detach().clone() for value in own]
    rows = torch.nn.Parameter(
        torch.from_numpy(learner.head.prototypes[:, : sum(sections)].astype(np.float32))
    )
    optimizer = torch.optim.AdamW(
        [*own, rows], lr=RATE, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
    )

    def step(inputs: NDArray[Any], labels: NDArray[np.int64]) -> float:
        optimizer.zero_grad()
        moved = torch.stack([(a - b).square().sum() for a, b in zip(own, before, strict=True)]).sum()
        features = made.tail(torch.from_numpy(inputs))
        loss = loss_of(features, torch.from_numpy(labels), rows, moved, sections, settings)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return step


def peak() -> float:
    """The largest memory of this process so far, in MB (Linux)."""
    # Not getrusage: what that says starts at the size of the process that has started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def memory(arguments: argparse.Namespace) -> None:
    """In a process of its own: some steps, and the peak before and after them."""
    folder, blocks, batch = arguments.folder, arguments.blocks[0], arguments.batch
    if arguments.memory == "exported":
        step = exported_step(folder / blocks, arguments.threads)
    else:
        step = eager_step(folder / "run", blocks, arguments.threads)
    inputs, labels = np.load(folder / f"{blocks}.npy")[:batch], np.load(folder / "labels.npy")[:batch]
    idle = peak()
    for _ in range(4):
        step(inputs, labels)
    print(json.dumps([idle, peak()]))


def measured(kind: str, folder: Path, blocks: str, batch: int, threads: int) -> tuple[float, float]:
    """Peak memory, and how much of it the steps took, in MB."""
    options = [
        "--memory",
        kind,
        "--folder",
        folder,
        "--blocks",
        blocks,
        "--batch",
        batch,
        "--threads",
        threads,
    ]
    done = subprocess.run(
        [sys.executable, __file__, *map(str, options)], check=True, capture_output=True, text=True
    )
    idle, most = json.loads(done.stdout.splitlines()[-1])
    return most, most - idle


def train(folder: Path) -> None:
    """Train, and put some of the images aside."""
    from everlearn import NTKCL, ClassIncremental, Learner
    from everlearn.data import load
    from everlearn_runtime import prepare_batch

    train, test = load("digits")
    learner = Learner(method=NTKCL(depths=()), epochs=1, device="cpu")
    for task in list(ClassIncremental(train, test, classes_per_task=2, seed=0))[:2]:
        learner.fit(task.train)
        images = task.train
    learner.save(folder / "run")
    chosen = list(range(0, len(images), len(images) // max(BATCHES)))[: max(BATCHES)]
    np.save(folder / "all.npy", prepare_batch([images[index][0] for index in chosen], learner.backbone.input))
    labels = [learner.classes.index(images.labels[index]) for index in chosen]
    np.save(folder / "labels.npy", np.array(labels, np.int64))


def export(folder: Path, blocks: str) -> None:
    """Export the step, and put aside what it trains on."""
    from everlearn import Learner
    from everlearn_runtime import OnnxRuntime

    Learner.load(folder / "run", device="cpu").export(folder / blocks, train_step=blocks)
    files = {file.name: file.stat().st_size / 1e6 for file in (folder / blocks).iterdir()}
    print(f"{blocks}: " + ", ".join(f"{file} {size:.1f} MB" for file, size in sorted(files.items())))
    if blocks == "last2":
        backend = OnnxRuntime(folder / blocks / "features.onnx")
        np.save(folder / "last2.npy", backend.tokens(np.load(folder / "all.npy")))
        backend.close()


def compare(folder: Path, blocks: str, repeats: int, threads: int) -> None:
    """One table: time and memory at each batch size."""
    inputs, labels = np.load(folder / f"{blocks}.npy"), np.load(folder / "labels.npy")
    ours, torchs = exported_step(folder / blocks, threads), eager_step(folder / "run", blocks, threads)
    gaps = []
    for number in range(20):
        chosen = np.arange(8 * number, 8 * number + 8) % len(labels)
        gaps.append(abs(ours(inputs[chosen], labels[chosen]) - torchs(inputs[chosen], labels[chosen])))
    print(f"{blocks}: largest difference of a loss over 20 steps {np.max(gaps):.1e}")
    print(
        f"{'batch':>5} {'exported':>10} {'torch':>10} {'faster':>7} {'memory':>16} {'torch':>16} {'share':>6}"
    )
    for batch in BATCHES:
        times: dict[str, list[float]] = {"exported": [], "torch": []}
        for repeat in range(repeats + 2):
            for name, step in (("exported", ours), ("torch", torchs)):
                start = time.perf_counter()
                step(inputs[:batch], labels[:batch])
                if repeat >= 2:
                    times[name].append(time.perf_counter() - start)
        mine, other = (1e3 * statistics.median(taken) for taken in times.values())
        most, more = measured("exported", folder, blocks, batch, threads)
        most_torch, more_torch = measured("torch", folder, blocks, batch, threads)
        print(
            f"{batch:>5} {mine:>7.1f} ms {other:>7.1f} ms {other / mine:>6.2f}x {most:>6.0f} (+{more:>4.0f})"
            f" MB {most_torch:>6.0f} (+{more_torch:>4.0f}) MB {most / most_torch:>6.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", nargs="+", choices=["last2", "all"], default=["last2", "all"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", choices=["exported", "torch"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        memory(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder))
        for blocks in arguments.blocks:
            export(Path(folder), blocks)
            compare(Path(folder), blocks, arguments.repeats, arguments.threads)


if __name__ == "__main__":
    main()
