"""LoRA in PEFT's format: what peft has written is read to the same figures, and the other way round."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from everlearn import FineTune, Frozen, Learner
from everlearn.adapters import LoRA, insert_lora, load_peft, merge, save_peft
from everlearn.adapters.lora import Shift

from ..conftest import coloured, make_learner, vit

MADE = Path(__file__).parents[1] / "data" / "peft"
"""By peft 0.21, see the README there: ranks, an alpha of one layer's own, rank-stabilised."""


def images() -> Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def shaken(adapters: list[LoRA]) -> None:
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for adapter in adapters:
            adapter.up.copy_(0.1 * torch.randn(adapter.up.shape, generator=chance))


def test_what_peft_wrote_gives_what_peft_gave() -> None:
    backbone, plain = vit().twin(), vit().features(images())
    adapters = load_peft(backbone, MADE)
    assert [len(adapter.down[0]) for adapter in adapters] == [2, 2, 1, 2, 2, 1]
    assert [adapter.scale for adapter in adapters] == pytest.approx(
        [3 / 2**0.5] * 2 + [3] + [8 / 2**0.5, 3 / 2**0.5, 3]
    )
    wanted = load_file(MADE / "features.safetensors")["features"]
    assert (wanted - plain).abs().max() > 0.01
    torch.testing.assert_close(backbone.features(images()), wanted, rtol=0, atol=1e-5)
    merge(backbone)
    torch.testing.assert_close(backbone.features(images()), wanted, rtol=0, atol=1e-5)
    learner = Learner(backbone, Frozen(), device="cpu").fit(coloured("ab"))
    assert learner.evaluate(coloured("ab", seed=1)) == 1


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    backbone = vit().twin()
    shaken(insert_lora(backbone, rank=3, scale=0.7))
    shaken(insert_lora(backbone, layers=("fc1",), rank=2, scale=2.0))
    save_peft(backbone, tmp_path / "adapter")
    again = vit().twin()
    adapters = load_peft(again, tmp_path / "adapter")
    assert [len(adapter.down[0]) for adapter in adapters] == [6, 2, 6, 2]  # query and value together
    torch.testing.assert_close(again.features(images()), backbone.features(images()), rtol=0, atol=1e-5)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    learner = make_learner(FineTune(rank=2), epochs=1).fit(coloured("ab"))
    assert isinstance(learner.method, FineTune)
    save_peft(learner.method.twin, tmp_path / "trained")
    trained = learner.backbone.twin()
    load_peft(trained, tmp_path / "trained")
    wanted = learner.method.twin.features(images())
    torch.testing.assert_close(merge(trained).features(images()), wanted, rtol=0, atol=1e-4)  # type: ignore[operator]


def test_there_has_to_be_a_lora_to_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no LoRA in this backbone; PEFT's format is for LoRA only"):
        save_peft(vit(), tmp_path / "none")
    backbone = vit().twin()
    insert_lora(backbone)
    backbone.vit.blocks[0].mlp.fc1 = Shift(backbone.vit.blocks[0].mlp.fc1)
    with pytest.raises(ValueError, match="there is a Shift in this backbone"):
        save_peft(backbone, tmp_path / "none")
    assert not any(tmp_path.iterdir())


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MADE, tmp_path / "adapter"))


def config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def weights(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return changed


A = "base_model.model.blocks.0.attn.qkv.lora_A.weight"
WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (shutil.rmtree, r"no PEFT adapter is at .*; expected adapter_config\.json and"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "existing file"),
    "damaged": (lambda folder: (folder / "adapter_config.json").write_text("{"), "is damaged or not a PEFT"),  # type: ignore[dict-item]
    "prompt": (config(peft_type="PROMPT_TUNING"), "of the kind 'PROMPT_TUNING'; only 'LORA' is read"),
    "DoRA": (config(use_dora=True), r"has use_dora=True, .*merge it with peft \(merge_and_unload\)"),
    "bias": (config(bias="all"), "has bias='all'"),
    "pissa": (config(init_lora_weights="pissa_niter_4"), "'pissa_niter_4', which moves the base model's"),
    "alpha": (config(lora_alpha="8"), "has lora_alpha='8' for blocks.0.attn.qkv; expected a number"),
    "half": (weights(lambda tensors: tensors.pop(A)), "does not go with this backbone"),
    "other layer": (
        weights(lambda tensors: tensors.update({A.replace("blocks.0", "blocks.9"): tensors.pop(A)})),
        r"does not go with this backbone: \['base_model\.model\.blocks\.9",
    ),
    "a norm, too": (
        weights(lambda tensors: tensors.update({"base_model.model.norm.weight": torch.ones(48)})),
        r"\['base_model\.model\.norm\.weight'\]",
    ),
    "other width": (weights(lambda tensors: tensors.update({A: torch.ones(2, 7)})), r"factors \(2, 7\) and"),
    "convolution": (
        weights(
            lambda tensors: tensors.update(
                {
                    "base_model.model.patch_embed.proj.lora_A.weight": torch.ones(2, 3, 8, 8),
                    "base_model.model.patch_embed.proj.lora_B.weight": torch.ones(48, 2, 1, 1),
                }
            )
        ),
        "LoRA for patch_embed.proj, a Conv2d and no Linear; merge it with peft",
    ),
}


@pytest.mark.parametrize(("spoil", "says"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    adapter: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(adapter)
    backbone = vit()
    before = backbone.fingerprint()
    with pytest.raises(ValueError, match=says):
        load_peft(backbone, adapter)
    assert backbone.fingerprint() == before
    assert not any(isinstance(module, LoRA) for module in backbone.modules())


def test_a_classifier_beside_it_and_names_from_deeper_in_a_model_do_no_harm(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    deeper = {
        name.replace(".model.blocks", ".model.backbone.blocks"): value for name, value in tensors.items()
    }
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(deeper | {"base_model.model.head.weight": torch.ones(7, 48)}, adapter / "adapter_model.bin")
    one, other = vit().twin(), vit().twin()
    load_peft(one, adapter)
    load_peft(other, MADE)
    assert torch.equal(one.features(images()), other.features(images()))


# Beside peft itself

TARGETS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 8, "target_modules": ["qkv"]},
    {"r": 3, "lora_alpha": 5, "target_modules": ["qkv", "fc1", "fc2"], "use_rslora": True},
    {
        "r": 2,
        "target_modules": ["fc1", "fc2"],
        "rank_pattern": {r"blocks\.1\.mlp\.fc1": 5},
        "alpha_pattern": {"fc2": 1},
    },
]


@pytest.mark.parametrize("options", TARGETS, ids=str)
def test_merged_it_is_what_peft_merges(tmp_path: Path, options: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = peft.get_peft_model(vit().model, peft.LoraConfig(**options)).eval()
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(0.1 * torch.randn(value.shape, generator=chance))
    model.save_pretrained(tmp_path)
    backbone = vit()
    load_peft(backbone, tmp_path)
    torch.testing.assert_close(backbone.features(images()), model(images()), rtol=0, atol=1e-5)
    wanted = model.merge_and_unload().state_dict()
    found = merge(backbone).model.state_dict()  # type: ignore[union-attr]
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layers", [("query", "value"), ("key",), ("query", "proj", "fc1", "fc2")])
def test_peft_computes_the_same_with_what_is_written(tmp_path: Path, layers: tuple[str, ...]) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    backbone = vit().twin()
    shaken(insert_lora(backbone, layers=layers, rank=3, scale=0.7))
    save_peft(backbone, tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(vit().model, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(model(images()), backbone.features(images()), rtol=0, atol=1e-5)
