"""In which precision to train: bfloat16 where the hardware calculates in it, float32 elsewhere."""

import platform
import warnings

import torch

from everlearn.choices import PRECISIONS


class SlowPrecisionWarning(UserWarning):
    """The precision that was asked for is slower on this hardware than float32."""


def resolve(precision: str, device: torch.device) -> str:
    """Give the precision to train in, ``"fp32"`` or ``"bf16"``.

    Args:
        precision: ``"fp32"``; ``"bf16"``, which is float32 weights and bfloat16 products (autocast);
            or ``"auto"``, which is bf16 where the device has instructions for it and fp32 elsewhere.
        device: that trains.

    Raises:
        ValueError: for another name.

    Warns:
        SlowPrecisionWarning: when bf16 was asked for and the device has no instructions for it.
            PyTorch then imitates them: the results are the same, but it takes several times as
            long as fp32.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be 'fp32', 'bf16' or 'auto', got {precision!r}")
    if precision == "fp32":
        return precision
    fast = has_bf16(device)
    if precision == "auto":
        return "bf16" if fast else "fp32"
    if not fast:
        what = "CPU" if device.type == "cpu" else f"device ({device})"
        warnings.warn(
            f"this {what} has no bfloat16 instructions, so precision='bf16' will be several times slower "
            "than 'fp32'; take 'fp32', or 'auto', which takes bf16 only where it is fast",
            SlowPrecisionWarning,
            stacklevel=3,
        )
    return precision


def has_bf16(device: torch.device) -> bool:
    """Say whether a device calculates in bfloat16 by instructions of its own.

    That is AVX512_BF16 or AMX on x86, BF16 on Arm, and CUDA from compute capability 8.0 on. Of
    other devices nothing is known, and no is the answer.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    # Older versions of torch know it, but have no public name for it. What oneDNN supports includes,
    # on x86, what it imitates.
    if platform.machine() == "aarch64":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
