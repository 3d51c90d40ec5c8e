"""Merging what many devices have learned: deltas a second, plain and on Ray, and memory over their number.

    python examples/benchmarks/fleet.py [--deltas 250 1000 4000] [--width 192] [--ray]

Every device has taught an LDA of 20 classes ten images of five of them; all hand in files of their own. Each
merge runs in a new process, whose peak memory is what it takes beyond the process that has only imported
everlearn.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from device_learn import make_small_bundle

from everlearn_runtime import LDA, EdgeLearner, merge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deltas", type=int, nargs="+", default=[250, 1000, 4000])
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--ray", action="store_true", help="on Ray, too, with two workers")
    parser.add_argument("--one", nargs=3, metavar=("FOLDER", "DELTAS", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(Path(arguments.one[0]), int(arguments.one[1]), arguments.one[2] == "ray")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = make(folder, max(arguments.deltas), arguments.width)
        print(f"{arguments.width} features, {size / 1e3:.0f} kB a delta")
        print(f"{'deltas':>8} {'way':>6} {'seconds':>9} {'a second':>9} {'peak, MB':>9}")
        for way in ("plain", "ray") if arguments.ray else ("plain",):
            for count in arguments.deltas:
                call = [sys.executable, __file__, "--one", name, str(count), way]
                done = subprocess.run(call, check=True, capture_output=True, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"{count:8} {way:>6} {found['seconds']:9.2f} {count / found['seconds']:9.0f} "
                    f"{found['peak']:9.0f}",
                    flush=True,
                )


def make(folder: Path, deltas: int, width: int) -> int:
    """A bundle, and as many deltas of devices of its own; their size in bytes."""
    bundle = make_small_bundle(folder / "bundle", LDA(), width)
    with EdgeLearner.open(bundle, state=folder / "device.db", threads=1) as edge:
        images = np.random.default_rng(0).integers(0, 256, (50, *edge.bundle.manifest.input.shape), np.uint8)
        edge.learn(images, [edge.classes[number % 5] for number in range(50)])
        delta = edge.delta()
    for number in range(deltas):
        replace(delta, device=f"{number:016x}").save(folder / f"{number}.delta")
    return (folder / "0.delta").stat().st_size


def one(folder: Path, deltas: int, on_ray: bool) -> None:
    """Merge so many in this process."""
    if on_ray:
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    places = [folder / f"{number}.delta" for number in range(deltas)]
    out = folder / f"merged {deltas} {on_ray}"
    before, begin = peak(), time.perf_counter()
    merged = merge(folder / "bundle", places, out, ray=on_ray)
    seconds = time.perf_counter() - begin
    assert merged.deltas == deltas
    print(json.dumps({"seconds": seconds, "peak": peak() - before}))


def peak() -> float:
    """The most memory that this process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
