"""LoRA in the file format of Hugging Face's PEFT, read and written without it."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from everlearn.adapters.lora import LoRA
from everlearn.backbones import Backbone
from everlearn.backbones.weights import read_tensors
from everlearn.files import read_json, replacing, write_json

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<path>.+)\.lora_(?P<factor>[AB])(\.\w+)?\.weight")
# What makes another computation of the same two factors, and the values that do not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "bias": ("none", None),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "use_bdlora": (None,),
    "use_qalora": (False, None),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "megatron_config": (None,),
}
# Initial values that move the base model's own weights, which are then not those of its file.
_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_BY_PEFT = "merge it with peft (merge_and_unload), and give the model's state_dict as weights="


def load_peft(backbone: Backbone, path: str | Path) -> list[LoRA]:
    """Put the LoRA of a PEFT adapter around a backbone's layers.

    What `peft` computes with it, this computes, to rounding; `merge` makes plain layers of it:

        backbone = load_backbone("vit_base_patch16_224.augreg_in21k")
        load_peft(backbone, "adapter/")
        learner = Learner(merge(backbone))

    A classifier that was saved beside it (``modules_to_save``) is left out.

    Args:
        backbone: of the model that the adapter was trained on; it is changed, see `Backbone.twin`.
        path: the folder that ``save_pretrained`` wrote: ``adapter_config.json``, and
            ``adapter_model.safetensors`` or ``.bin`` (read with ``weights_only=True``).

    Returns:
        Those that were put in, in the order of the model's layers.

    Raises:
        ValueError: for a folder without them, an adapter of another kind (DoRA, trained biases, layers that
            are no `nn.Linear`), and one of another model; the backbone is then as it was.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"no PEFT adapter is at {folder}; expected {CONFIG} and {WEIGHTS[0]} there")
    config = read_json(folder / CONFIG, "a PEFT adapter")
    _check_kind(config, folder)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), folder / WEIGHTS[0])
    layers = {
        name: module
        for name, module in backbone.model.named_modules()
        if name and next(module.parameters(recurse=False), None) is not None
    }
    found = _factors(read_tensors(file), layers, file)
    adapters = {name: _adapter(layers[name], name, pair, config, file) for name, pair in found.items()}
    for name, adapter in adapters.items():
        backbone.model.set_submodule(name, adapter)
    return list(adapters.values())


def save_peft(backbone: Backbone, path: str | Path) -> None:
    """Write the LoRA inside a backbone as a PEFT adapter, for ``PeftModel.from_pretrained``.

    A `LoRA` around parts of a layer, such as query and value of a ViT's ``qkv``, becomes one around all of
    it whose rank is the sum of theirs: the same update. The base model there is the timm model.

    Args:
        backbone: with LoRA in it, such as ``learner.method.twin`` of `FineTune`.
        path: the folder to write ``adapter_config.json`` and ``adapter_model.safetensors`` into.

    Raises:
        ValueError: when there is no LoRA in it, or an adapter of another kind.
    """
    adapters = {name: one for name, one in backbone.model.named_modules() if isinstance(one, LoRA)}
    others = [one for one in backbone.model.modules() if hasattr(one, "merged") and not isinstance(one, LoRA)]
    if others or not adapters:
        raise ValueError(
            f"there is {'a ' + type(others[0]).__name__ if others else 'no LoRA'} in this backbone; PEFT's "
            "format is for LoRA only: give a backbone that insert_lora has put some into"
        )
    tensors: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    for name, adapter in adapters.items():
        down, up = (factor.detach().cpu().contiguous() for factor in adapter.factors())
        tensors[f"{_PREFIX}{name}.lora_A.weight"], tensors[f"{_PREFIX}{name}.lora_B.weight"] = down, up
        ranks[name], alphas[name] = len(down), _whole(adapter.scale * len(down))
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": backbone.name,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "modules_to_save": None,
        "target_modules": sorted(adapters),
        "rank_pattern": {re.escape(name): one for name, one in ranks.items() if one != rank},
        "alpha_pattern": {re.escape(name): one for name, one in alphas.items() if one != alpha},
    }
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS[0]) as file:
        save_file(tensors, file, metadata={"format": "pt"})
    write_json(folder / CONFIG, config)


def _whole(number: float) -> float:
    return int(number) if float(number).is_integer() else number


def _check_kind(config: Mapping[str, Any], folder: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"{folder} is an adapter of the kind {config.get('peft_type')!r}; only 'LORA' is read"
        )
    for name, plain in _PLAIN.items():
        if config.get(name) not in plain:
            raise ValueError(f"{folder} has {name}={config[name]!r}, which LoRA here has not; {_BY_PEFT}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVES_BASE):
        raise ValueError(
            f"{folder} has init_lora_weights={start!r}, which moves the base model's weights; {_BY_PEFT}"
        )


def _factors(
    tensors: Mapping[str, Any], layers: Mapping[str, nn.Module], file: Path
) -> dict[str, dict[str, Tensor]]:
    """A and B of each layer, by the layer's name, in the order of the layers."""
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, value in tensors.items():
        match = _FACTOR.fullmatch(key)
        name = _layer((match["path"] if match else key.rpartition(".")[0]).removeprefix(_PREFIX), layers)
        if match and name is not None:
            found.setdefault(name, {})[match["factor"]] = value
        elif match or name is not None or "lora_" in key:  # else a part that the backbone has not
            unknown.append(key)
    half = [name for name, pair in found.items() if pair.keys() != {"A", "B"}]
    if unknown or half or not found:
        raise ValueError(
            f"{file} does not go with this backbone: {sorted(unknown)[:3] or half[:3] or 'nothing'} of "
            f"{len(tensors)} tensors is no pair of lora_A and lora_B for one of its layers; give the model "
            "that it was trained on"
        )
    return {name: found[name] for name in layers if name in found}


def _layer(path: str, layers: Mapping[str, nn.Module]) -> str | None:
    """The backbone's name of a layer, which may have lain deeper in the model that was trained."""
    words = path.split(".")
    return next((name for start in range(len(words)) if (name := ".".join(words[start:])) in layers), None)


def _adapter(
    layer: nn.Module, name: str, pair: Mapping[str, Tensor], config: Mapping[str, Any], file: Path
) -> LoRA:
    down, up = pair["A"], pair["B"]
    if type(layer) is not nn.Linear:
        raise ValueError(f"{file} has LoRA for {name}, a {type(layer).__name__} and no Linear; {_BY_PEFT}")
    rank = len(down)
    if down.shape != (rank, layer.in_features) or up.shape != (layer.out_features, rank):
        raise ValueError(
            f"{file} has factors {tuple(down.shape)} and {tuple(up.shape)} for {name}, a layer of "
            f"{layer.in_features} to {layer.out_features}; give the model that it was trained on"
        )
    alpha = _of_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha"))
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool):
        raise ValueError(f"{file.parent / CONFIG} has lora_alpha={alpha!r} for {name}; expected a number")
    adapter = LoRA(layer, rank=rank, scale=alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    with torch.no_grad():
        adapter.down[0].copy_(down)
        adapter.up[0].copy_(up)
    return adapter


def _of_pattern(patterns: Mapping[str, Any] | None, name: str, usual: Any) -> Any:
    """The value for a layer; patterns are regular expressions for the end of its name, as in peft."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return usual


__all__ = ["load_peft", "save_peft"]
