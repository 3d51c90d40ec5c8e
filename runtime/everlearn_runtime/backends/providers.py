"""ONNX Runtime's execution providers: built in, or libraries of their own ("plugins")."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from everlearn_runtime.backends.gpu import NoGpu, first_gpu

Provider: TypeAlias = str | tuple[str, Mapping[str, Any]]

# What the packages of plugins are called: onnxruntime_ep_openvino, onnxruntime_ep_nv_tensorrt_rtx.
_PACKAGES = "onnxruntime_ep_"
# Options of a plugin that are ours: its library, where no package brings it, and which of its devices.
LIBRARY, DEVICE = "library", "device"
_NEEDS_GPU = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}
_BRINGS = {
    "CUDAExecutionProvider": 'pip install "onnxruntime-gpu[cuda,cudnn]"',
    "TensorrtExecutionProvider": 'pip install "onnxruntime-gpu[cuda,cudnn]" tensorrt',
}


def pairs(providers: object) -> dict[str, dict[str, Any]]:
    """Names and options of execution providers, in their order.

    Raises:
        ValueError: Neither names nor pairs, or one of them twice.
    """
    if isinstance(providers, str) or not isinstance(providers, Sequence) or not providers:
        raise ValueError(f"providers is {providers!r}; give a list, for example ['CPUExecutionProvider']")
    found = {}
    for given in providers:
        name, options = given if isinstance(given, (tuple, list)) and len(given) == 2 else (given, {})
        if not isinstance(name, str) or not isinstance(options, Mapping):
            raise ValueError(
                f"providers holds {given!r}; give names, or pairs of a name and its options, for example "
                "('CUDAExecutionProvider', {'device_id': 0})"
            )
        if name in found:
            raise ValueError(f"providers has {name} twice; give it once, with all its options")
        found[name] = dict(options)
    return found


def plugin_devices(onnxruntime: Any, name: str, options: Mapping[str, Any]) -> list[Any] | None:
    """The device that a plugin's provider runs on, as the one entry of a list.

    A plugin is there if the program has registered its library, if an installed package whose name
    starts with ``onnxruntime_ep_`` brings it, or if the options name its ``"library"``, a path. Of
    several devices the first is taken, or number ``"device"``.

    Args:
        onnxruntime: The module.
        name: Of the provider.
        options: Of the provider.

    Returns:
        None: There is no such plugin.

    Raises:
        ValueError: Its library cannot be loaded, or it finds no device here.
    """
    if not hasattr(onnxruntime, "get_ep_devices"):  # before 1.22
        return None
    devices = _devices(onnxruntime, name)
    library = options.get(LIBRARY) or installed_plugins().get(name)
    if not devices and library is None:
        return None
    if not devices:
        try:
            onnxruntime.register_execution_provider_library(name, str(library))
        except Exception as error:  # onnxruntime's errors have no base class of their own
            raise ValueError(f"{name}: ONNX Runtime cannot load its library {library} ({error})") from error
        devices = _devices(onnxruntime, name)
    if not devices:
        raise ValueError(f"{name}: its library {library} is loaded and finds no device here that it runs on")
    number = options.get(DEVICE, 0)
    if not str(number).isdecimal() or int(number) >= len(devices):
        raise ValueError(f"{name}: device is {number!r}; it has {len(devices)}, numbered from 0")
    return [devices[int(number)]]


def preload(onnxruntime: Any, names: Iterable[str]) -> None:
    """Load what providers of a GPU need from NVIDIA's Python packages, which no loader looks into."""
    needed = [_NEEDS_GPU[name] for name in names if name in _NEEDS_GPU]
    if needed and importlib.util.find_spec("nvidia") and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    if "tensorrt" in needed and importlib.util.find_spec("tensorrt"):
        importlib.import_module("tensorrt")


def why_not(onnxruntime: Any, name: str) -> str | None:
    """Why a provider of a GPU cannot be used here; None if nothing speaks against it.

    ONNX Runtime itself says so only in its log. What is missing is found by loading the provider's
    library as it would.
    """
    if name not in _NEEDS_GPU:
        return None
    reasons = []
    try:
        first_gpu()
    except NoGpu as error:
        reasons.append(str(error))
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        for library in ("shared", _NEEDS_GPU[name]):
            path = folder / f"libonnxruntime_providers_{library}.so"
            if path.exists():
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        reasons.append(f"a library is missing ({error}): {_BRINGS[name]}")
    return "; ".join(reasons) or None


def _devices(onnxruntime: Any, name: str) -> list[Any]:
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]


def installed_plugins() -> dict[str, str]:
    """The providers that installed packages bring, and the library of each."""
    found: dict[str, str] = {}
    for module in pkgutil.iter_modules():
        if module.name.startswith(_PACKAGES):
            package = importlib.import_module(module.name)
            found |= {str(name): str(package.get_library_path()) for name in package.get_ep_names()}
    return found
