"""How fast a bundle runs and learns here, on every backend that is there, and in how much memory.

Each backend is measured in a process of its own, so that its memory is its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from everlearn_runtime.backends.gpu import NoGpu, first_gpu, free_memory
from everlearn_runtime.backends.providers import Provider, installed_plugins, why_not
from everlearn_runtime.bundle import read_manifest
from everlearn_runtime.child import run_apart
from everlearn_runtime.edge import EdgeLearner
from everlearn_runtime.errors import MissingExtra

WARM_UP = 3  # calls that are not counted
LEAST = 5  # calls that are, however long they take
LABEL = "everlearn-benchmark"  # what is learned
_MIB = 1 << 20
_AT_MOST = 600  # seconds until a backend is given up


@dataclass(frozen=True)
class Case:
    """A way to run a bundle.

    Args:
        backend, providers: As `EdgeLearner.open` takes them.
    """

    backend: str
    providers: Sequence[Provider] | None

    @property
    def name(self) -> str:
        """For people."""
        if self.providers is None:
            return self.backend
        return ", ".join(given if isinstance(given, str) else given[0] for given in self.providers)


@dataclass(frozen=True)
class Row:
    """What one call costs.

    Args:
        backend: What ran it, in its own words.
        call: ``"predict"`` or ``"learn"``.
        batch: Images a call.
        calls: How many were measured.
        p50_ms, p90_ms, p99_ms: Of the time of a call, in milliseconds.
        images_per_s: Over all calls.
        peak_mib: Most memory that the process has had so far, in MiB; None where it is not told.
        gpu_mib: Memory of the GPU taken since before the bundle was opened, in MiB; None without one.
    """

    backend: str
    call: str
    batch: int
    calls: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_s: float
    peak_mib: float | None
    gpu_mib: float | None


def benchmark(
    bundle: str | Path,
    *,
    batches: Sequence[int] = (1, 16),
    seconds: float = 3.0,
    threads: int | None = None,
    cases: Sequence[Case] | None = None,
) -> tuple[list[Row], dict[str, str]]:
    """Measure predict and learn.

    Args:
        bundle: The bundle's folder; nothing in it or in a state changes.
        batches: Images a call.
        seconds: Time for each measurement, about.
        threads: CPU threads inside an operator; None: all cores.
        cases: What to measure; None: all that :func:`all_cases` finds.

    Returns:
        The rows, and for what did not run the reason.

    Raises:
        BundleError: There is no bundle.
        ValueError: An argument out of range.
    """
    read_manifest(bundle)
    if not batches or any(type(batch) is not int or batch < 1 for batch in batches):
        raise ValueError(f"batches is {batches!r}; give whole numbers, at least 1")
    if not 0 < seconds < 3600:
        raise ValueError(f"seconds is {seconds!r}; give a time between 0 and 3600")
    found, missing = all_cases() if cases is None else (cases, {})
    rows = []
    for case in found:
        asked = {"bundle": str(bundle), "batches": list(batches), "seconds": seconds, "threads": threads}
        try:
            answered = run_apart(_measure, {**asked, "case": asdict(case)}, timeout=_AT_MOST)
        except ValueError as error:
            missing[case.name] = str(error)
        else:
            rows += [Row(**row) for row in answered]
    return rows, missing


def all_cases() -> tuple[list[Case], dict[str, str]]:
    """The ways to run a bundle that are there, and for those that are not the reason."""
    cases, missing = [], {}
    try:
        import onnxruntime
    except ImportError:
        missing["onnxruntime"] = str(MissingExtra("running a bundle", "cpu"))
    else:
        cases.append(Case("onnxruntime", ["CPUExecutionProvider"]))
        for name in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
            if name not in onnxruntime.get_available_providers():
                missing[name] = 'not in this build of onnxruntime: pip install "everlearn[gpu]"'
            elif reason := why_not(onnxruntime, name):
                missing[name] = reason
            else:
                cases.append(Case("onnxruntime", [name]))
        cases += [Case("onnxruntime", [name]) for name in installed_plugins()]
    try:
        from everlearn_runtime.backends.tensorrt import library

        library.load()
        first_gpu()
    except (MissingExtra, NoGpu, ValueError) as error:
        missing["tensorrt"] = str(error)
    else:
        cases.append(Case("tensorrt", None))
    return cases, missing


def measure(
    bundle: str, case: Case, batches: Sequence[int], seconds: float, threads: int | None
) -> list[Row]:
    """Measure one backend in this process; a learner in memory learns, no state is touched."""
    before = _free()
    rows = []
    with EdgeLearner.open(bundle, backend=case.backend, providers=case.providers, threads=threads) as learner:
        spec = learner.bundle.manifest.input
        size = (max(batches), spec.height, spec.width, 3)
        images = np.random.default_rng(0).integers(0, 256, size=size, dtype=np.uint8)
        if not learner.classes:
            learner.learn(images[:1], [LABEL])

        def predict(batch: int) -> Callable[[], object]:
            return lambda: learner.predict(images[:batch])

        def learn(batch: int) -> Callable[[], object]:
            return lambda: learner.learn(images[:batch], [LABEL] * batch)

        for name, call in (("predict", predict), ("learn", learn)):
            for batch in batches:
                times = np.array(_times(call(batch), seconds))
                p50, p90, p99 = (float(value) for value in np.percentile(times * 1000, (50, 90, 99)))
                after = _free()
                taken = None if before is None or after is None else (before - after) / _MIB
                speed = batch * len(times) / float(times.sum())
                rows.append(
                    Row(learner.backend, name, batch, len(times), p50, p90, p99, speed, _peak(), taken)
                )
    return rows


def _times(call: Callable[[], object], seconds: float) -> list[float]:
    for _ in range(WARM_UP):
        call()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < LEAST or time.perf_counter() < until:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def _peak() -> float | None:
    """Most memory of this process, in MiB."""
    # Not getrusage, which on Linux starts from the memory of the process that started this one.
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def _free() -> int | None:
    try:
        return free_memory()
    except NoGpu:
        return None


def _measure(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """:func:`measure`, in the child."""
    providers = asked["case"]["providers"]
    if providers is not None:
        providers = [given if isinstance(given, str) else tuple(given) for given in providers]
    case = Case(asked.pop("case")["backend"], providers)
    return [asdict(row) for row in measure(case=case, **asked)]
