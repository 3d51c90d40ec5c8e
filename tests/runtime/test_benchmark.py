"""What a bundle costs here, measured in processes of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from everlearn_runtime import LDA
from everlearn_runtime.benchmark import Case, all_cases, benchmark
from everlearn_runtime.cli import main

CPU = Case("onnxruntime", ["CPUExecutionProvider"])


def test_every_call_and_batch_has_its_row(bundle: Path) -> None:
    before = {path: path.read_bytes() for path in bundle.iterdir()}
    rows, missing = benchmark(bundle, batches=(1, 5), seconds=0.05, threads=1, cases=[CPU])
    assert missing == {}
    assert [(row.call, row.batch) for row in rows] == [
        (call, batch) for call in ("predict", "learn") for batch in (1, 5)
    ]
    for row in rows:
        assert row.backend == f"onnxruntime {onnxruntime.__version__}, CPUExecutionProvider"
        assert row.calls >= 5
        assert 0 < row.p50_ms <= row.p90_ms <= row.p99_ms
        # The median is no mean, but on the same scale.
        assert 0.001 < row.images_per_s * row.p50_ms / 1000 / row.batch < 3
        assert row.peak_mib is None or 20 < row.peak_mib < 2000
    assert {path: path.read_bytes() for path in bundle.iterdir()} == before


def test_a_head_that_knows_nothing_yet(make_bundle: Callable[..., Path]) -> None:
    rows, missing = benchmark(make_bundle("empty", LDA()), batches=[2], seconds=0.01, cases=[CPU])
    assert (len(rows), missing) == (2, {})


def test_what_does_not_run_says_why(bundle: Path) -> None:
    given = Case("onnxruntime", [("NoSuchProvider", {"a": 1})])
    rows, missing = benchmark(bundle, batches=[1], seconds=0.01, cases=[given, CPU])
    assert len(rows) == 2
    assert list(missing) == [given.name]
    assert "NoSuchProvider is not in this build" in missing[given.name]


def test_all_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    present = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: present)
    monkeypatch.setattr("everlearn_runtime.backends.gpu.LIBRARY", "libcuda-of-nobody.so.1")
    cases, missing = all_cases()
    assert cases == [CPU]
    assert "no NVIDIA driver" in missing["CUDAExecutionProvider"]
    assert "everlearn[gpu]" in missing["TensorrtExecutionProvider"]
    assert "TensorRT" in missing["tensorrt"] or "driver" in missing["tensorrt"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batches": []}, r"batches is \[\]"),
        ({"batches": [np.int64(1)]}, "batches is .*give whole numbers"),
        ({"seconds": 0}, "seconds is 0; give a time"),
        ({"seconds": float("nan")}, "seconds is nan"),
    ],
)
def test_what_cannot_be_measured(bundle: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        benchmark(bundle, **changes)


def test_from_the_command_line(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["benchmark", str(bundle), "--batch", "3", "--seconds", "0.01", "--threads", "1"]
    given += ["--backend", "onnxruntime", "--provider", "CPUExecutionProvider,use_arena=1"]
    assert main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["backend", "call", "batch"]
    assert [line.split()[3:5] for line in lines[1:]] == [["predict", "3"], ["learn", "3"]]
    assert main([*given, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["call"] for row in said["rows"]] == ["predict", "learn"]
    assert said["not_run"] == {}
    assert main(["benchmark", "nowhere"]) == 2


def test_what_was_asked_for_and_cannot_run_is_a_failure(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["benchmark", str(bundle), "--batch", "1", "--seconds", "0.01", "--json"]
    assert main([*asked, "--provider", "NoSuchProvider,library=/nowhere.so"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(
        "everlearn-device: NoSuchProvider: ONNX Runtime cannot load its library /nowhere.so"
    )
    given = Case("onnxruntime", [("NoSuchProvider", {"library": "/nowhere.so"}), "CPUExecutionProvider"])
    _, missing = benchmark(bundle, batches=[1], seconds=0.01, cases=[given])
    assert list(missing) == ["NoSuchProvider, CPUExecutionProvider"]
