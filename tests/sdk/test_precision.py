"""In which precision is trained: bf16 where the hardware has it, and a word where it has not."""

import platform
import warnings
from typing import Any

import pytest
import torch

from everlearn import precision
from everlearn.precision import SlowPrecisionWarning, has_bf16, resolve

CPU = torch.device("cpu")


def cpu_with(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    found = dict.fromkeys(("avx2", "avx512_f", "neon", *flags), True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", "bf16", "sve_bf16"])
def test_bf16_where_the_cpu_has_it(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, flag)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve("auto", CPU) == "bf16"
        assert resolve("bf16", CPU) == "bf16"
        assert resolve("fp32", CPU) == "fp32"


def test_without_it_auto_is_fp32_and_bf16_comes_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch)
    assert resolve("auto", CPU) == "fp32"
    assert resolve("fp32", CPU) == "fp32"
    with pytest.warns(
        SlowPrecisionWarning, match="this CPU has no bfloat16 instructions.*take 'fp32', or 'auto'"
    ):
        assert resolve("bf16", CPU) == "bf16"


@pytest.mark.parametrize("supported", ["", "_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_a_torch_without_a_public_list_is_asked_too(supported: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == supported)
    assert has_bf16(CPU) is bool(supported)


@pytest.mark.parametrize("supported", [True, False])
def test_on_arm_it_asks_onednn(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported, raising=False)
    assert has_bf16(CPU) is supported


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_is_asked_without_what_it_emulates(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Selected:
        def __init__(self, device: torch.device) -> None:
            asked.append(device)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return supported or including_emulation

    monkeypatch.setattr(torch.cuda, "device", Selected)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    gpu = torch.device("cuda", 1)
    assert resolve("auto", gpu) == ("bf16" if supported else "fp32")
    assert asked == [gpu]
    if not supported:
        with pytest.warns(SlowPrecisionWarning, match=r"this device \(cuda:1\) has no bfloat16"):
            resolve("bf16", gpu)


def test_what_is_not_known_of_a_device_is_not_guessed() -> None:
    assert resolve("auto", torch.device("meta")) == "fp32"


def test_this_machines_own_answer_is_a_yes_or_a_no() -> None:
    assert has_bf16(CPU) in (True, False)
    assert resolve("auto", CPU) in ("bf16", "fp32")


@pytest.mark.parametrize("name", ["fp16", "", None, "BF16"])
def test_another_name_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match=f"precision must be 'fp32', 'bf16' or 'auto', got {name!r}"):
        precision.resolve(name, CPU)
