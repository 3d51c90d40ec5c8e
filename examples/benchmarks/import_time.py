"""Seconds that `import everlearn_runtime` adds to those of numpy and onnxruntime.

python examples/benchmarks/import_time.py
"""

import subprocess
import sys

CODE = """
import time, numpy, onnxruntime
start = time.perf_counter()
import everlearn_runtime
print(time.perf_counter() - start)
"""


def main() -> None:
    times = [float(subprocess.check_output([sys.executable, "-c", CODE])) for _ in range(7)]
    print(f"import everlearn_runtime: median {sorted(times)[3]:.3f} s on top of numpy and onnxruntime")


if __name__ == "__main__":
    main()
