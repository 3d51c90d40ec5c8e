"""Weights from a file into a model, whatever was saved around them."""

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

# Where several sets of weights lie in a checkpoint, the averaged ones are those that are measured.
_AVERAGED = ("ema", "teacher", "momentum")
# What older versions of timm saved beside the weights, and newer ones work out.
_WORKED_OUT = ("attn_mask", "relative_position_index", "relative_coords_table", "num_batches_tracked")


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights from a file that `safetensors` or `torch.save` wrote.

    They may lie in a dict inside the file, with names that begin with ``module.``, ``model.``, ``backbone.``
    or anything else that they share; the set that fits best is taken, and of equal ones the averaged one. A
    classifier and other parts that the model has not are left out. A position embedding of another input
    size is resampled, and a ``UserWarning`` says so.

    Nothing is unpickled but tensors, numbers, text and their containers (``weights_only=True``).

    Raises:
        ValueError: for a file that is not there, cannot be read or holds other objects, and for weights
            of another model: some missing, of another shape, or more of them in a part that the model has.
    """
    own = model.state_dict()
    stored = _fitting(read_tensors(path), own, path)
    if "pos_embed" in own and "pos_embed" in stored:
        stored["pos_embed"] = _resampled(stored["pos_embed"], own["pos_embed"], model, path)
    missing = sorted(own.keys() - stored.keys())
    other_shape = sorted(name for name in own.keys() & stored.keys() if own[name].shape != stored[name].shape)
    parts = {name.split(".")[0] for name in own}
    more = sorted(
        name
        for name in stored.keys() - own.keys()
        if name.split(".")[0] in parts and not name.endswith(_WORKED_OUT)
    )
    if missing or other_shape or more:
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: missing {missing[:3] or 'nothing'}, other shapes "
            f"at {other_shape[:3] or 'no tensor'}, more than the model has {more[:3] or 'nowhere'}; check "
            "that name and options are those the weights were saved from"
        )
    model.load_state_dict({name: stored[name].to(own[name].dtype) for name in own})


def read_tensors(path: Path) -> dict[str, Any]:
    """What is in a file: tensors by name, and with `torch.save` whatever else stands beside them.

    Raises `ValueError` for a file that is not there, cannot be read, or holds objects of other kinds.
    """
    if not path.is_file():
        raise ValueError(
            "weights must be 'pretrained', 'random' or an existing file (.safetensors, .pth, .pt, .bin), "
            f"got {str(path)!r}"
        )
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is no readable safetensors file ({error}); fetch it again") from error
    with path.open("rb") as file:
        head = file.read(2)
    if not head.startswith((b"PK", b"\x80")):
        raise ValueError(f"{path} is neither a .safetensors file nor written by torch.save; fetch it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a TorchScript archive it warns before it refuses
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # for a damaged file, torch has a dozen kinds
        said = str(error)
        if kind := re.search(r"GLOBAL ([\w.]+)", said):  # not in torch's words: they advise to trust the file
            raise ValueError(
                f"{path} holds a {kind[1]}, and nothing but tensors, numbers, text and their containers is "
                "unpickled, as it could run any program; where you trust it, load it yourself and write its "
                "tensors with torch.save(model.state_dict(), path)"
            ) from error
        raise ValueError(
            f"{path} is {'a TorchScript program' if 'TorchScript' in said else 'damaged'}; give what "
            "torch.save(model.state_dict(), path) or safetensors has written"
        ) from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds a {type(found).__name__}; expected tensors by name, a state_dict")
    return dict(found)


def _fitting(found: Mapping[str, Any], own: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Of the sets of tensors in a file the one with most of these names, its common prefix taken off."""
    sets = list(_sets(found, ""))
    if not sets:
        raise ValueError(f"{path} holds no tensors by name; expected a state_dict")
    ranked = [
        (rank, prefix, tensors) for name, tensors in sets for rank, prefix in _prefixes(name, tensors, own)
    ]
    _, prefix, tensors = max(ranked, key=lambda one: one[0])
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def _sets(found: Mapping[str, Any], name: str, depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)}
    if tensors:
        yield name, tensors
    for key, value in found.items():
        if isinstance(value, Mapping) and depth < 3:
            yield from _sets(value, f"{name}.{key}", depth + 1)


def _prefixes(
    where: str, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> list[tuple[tuple[int, bool, bool, int], str]]:
    """What names have before a name of the model, and how well that suits: most names first."""
    counts: Counter[str] = Counter({"": 0})
    for name in tensors:
        words = str(name).split(".")
        for start in range(len(words)):
            if ".".join(words[start:]) in own:
                counts[".".join([*words[:start], ""])] += 1
    ranked = []
    for prefix, count in counts.items():
        averaged = any(word in f"{where}.{prefix}".lower() for word in _AVERAGED)
        ranked.append(((count, averaged, "backbone" in prefix, -len(prefix)), prefix))
    return ranked


def _resampled(stored: Tensor, own: Tensor, model: Any, path: Path) -> Tensor:
    """A position embedding (1, N, d) for as many tokens as the model has; itself, where that is no grid."""
    if stored.shape == own.shape or stored.ndim != 3 or stored.shape[2] != own.shape[2]:
        return stored
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    prefix = 0 if getattr(model, "no_embed_class", False) else int(getattr(model, "num_prefix_tokens", 0))
    side = math.isqrt(max(stored.shape[1] - prefix, 0))
    if grid is None or side < 1 or side**2 != stored.shape[1] - prefix:
        return stored
    warnings.warn(
        f"{path} was trained on {side} x {side} patches, and the model has {grid[0]} x {grid[1]}; its "
        "position embedding is resampled",
        stacklevel=4,
    )
    resampled: Tensor = resample_abs_pos_embed(stored, new_size=list(grid), num_prefix_tokens=prefix)
    return resampled
