"""Is there an NVIDIA GPU, and which? Asked of the driver itself, so that nothing else need be installed."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# Attributes of a device, see CUdevice_attribute in the driver's API.
_MAJOR, _MINOR = 75, 76


class NoGpu(ValueError):  # noqa: N818 - says what is wrong
    """There is no GPU that can be used; the text says why."""


@dataclass(frozen=True)
class Gpu:
    """What an engine is built for.

    Args:
        name: As the driver has it.
        capability: Major and minor compute capability, for example (8, 7).
    """

    name: str
    capability: tuple[int, int]

    @property
    def sm(self) -> str:
        """The capability as NVIDIA's tools spell it, for example ``"SM87"``."""
        return "SM{}{}".format(*self.capability)


def free_memory() -> int:
    """Bytes that nobody has taken on the first GPU; on a Jetson, of the memory that it shares.

    Takes hold of the GPU, for as long as the process lives.

    Raises:
        NoGpu: No driver, or no GPU.
    """
    first_gpu()
    driver = ctypes.CDLL(LIBRARY)
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    failed = (
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
        or driver.cuCtxSetCurrent(context)
        or driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    )
    if failed:
        raise NoGpu(f"the NVIDIA driver does not tell how much memory is left (error {failed})")
    return free.value


def first_gpu() -> Gpu:
    """The GPU that CUDA takes first; ``CUDA_VISIBLE_DEVICES`` says which that is.

    Raises:
        NoGpu: No driver, or no GPU.
    """
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NoGpu(f"no NVIDIA driver here ({error})") from None
    if status := driver.cuInit(0):
        raise NoGpu(f"the NVIDIA driver finds no GPU (cuInit gives {status})")
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    failed = (
        driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    )
    if failed:
        raise NoGpu(f"the NVIDIA driver does not tell about its first GPU (error {failed})")
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value))
