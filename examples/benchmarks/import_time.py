"""How long imports and help take: seconds of the clock and of the processor, medians of seven runs.

python examples/benchmarks/import_time.py
"""

import os
import subprocess
import sys
import time

ADDED = """
import time, numpy, onnxruntime
start = time.perf_counter()
import everlearn_runtime
print(time.perf_counter() - start)
"""
COMMANDS = {
    "everlearn --help": ["-m", "everlearn", "--help"],
    "everlearn-device --help": ["-m", "everlearn_runtime", "--help"],
    "import everlearn": ["-c", "import everlearn"],
    "from everlearn import Learner": ["-c", "from everlearn import Learner"],
    "import torch, for comparison": ["-c", "import torch"],
    "import numpy, for comparison": ["-c", "import numpy"],
}
RUNS = 7


def main() -> None:
    added = [float(subprocess.check_output([sys.executable, "-c", ADDED])) for _ in range(RUNS)]
    print(f"import everlearn_runtime: median {median(added):.3f} s on top of numpy and onnxruntime")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):  # in turn, so that a busy moment touches all
        for name, arguments in COMMANDS.items():
            found[name].append(seconds(arguments))
    for name, runs in found.items():
        clock, processor = (median(list(column)) for column in zip(*runs, strict=True))
        print(f"{name}: {clock:.2f} s, processor {processor:.2f} s")


def seconds(arguments: list[str]) -> tuple[float, float]:
    """Seconds of the clock and of the processor that a Python process takes, with its children."""
    start, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, used


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
