"""Backbones: everything is read from the model, and a wrong name or file says so."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn

from everlearn import NTKCL, Backbone, FineTune, Frozen, Learner, load_backbone
from everlearn.backbones import BUNDLED, BackboneSpec, attend, feed_forward, resolve

from ..conftest import coloured, fit_all, make_learner, vit


@pytest.fixture(scope="module")
def bundled() -> Backbone:
    return load_backbone()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# The bundled backbone


def test_the_bundled_backbone_needs_no_download(bundled: Backbone) -> None:
    assert bundled.name == BUNDLED
    assert (bundled.width, bundled.depth, bundled.tokens, bundled.prefix) == (192, 12, 65, 1)
    assert (bundled.input.height, bundled.input.width, bundled.input.resize) == (64, 64, 64)
    assert bundled.mean.flatten().tolist() == bundled.std.flatten().tolist() == [0.5, 0.5, 0.5]
    features = bundled.features(noise(2, 3, 64, 64))
    assert features.shape == (2, 192)
    assert features.isfinite().all()
    assert features.dtype == torch.float32


def test_the_bundled_weights_are_half_precision_and_small() -> None:
    path = Path(str(files("everlearn.backbones") / "weights" / f"{BUNDLED}.safetensors"))
    assert path.stat().st_size < 12_000_000
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}


def test_the_bundled_weights_are_not_random_ones(bundled: Backbone) -> None:
    assert load_backbone(BUNDLED).fingerprint() == bundled.fingerprint()
    assert load_backbone(BUNDLED, weights="random").fingerprint() != bundled.fingerprint()


def test_the_bundled_backbone_knows_real_images_apart() -> None:
    from everlearn import digits

    train, test = (part.subset(range(0, len(part), 6)) for part in digits())
    learner = Learner(BUNDLED, Frozen(), device="cpu").fit(train)
    assert learner.evaluate(test) > 0.7


# Any timm model


VITS: dict[str, tuple[str, dict[str, Any], int]] = {  # name, options, number of prefix tokens
    "cls": ("vit_tiny_patch16_224", {}, 1),
    "registers": ("vit_small_patch14_reg4_dinov2", {"init_values": 0.5}, 5),
    "registers, average": ("vit_medium_patch16_reg4_gap_256", {"init_values": 0.5}, 4),
    "average": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, 0),
    "attention pooling": ("vit_base_patch16_siglip_224", {}, 0),
    "norm before": ("vit_base_patch16_clip_224", {}, 1),
    "distilled": ("deit_tiny_distilled_patch16_224", {}, 2),
    "not square": ("vit_tiny_patch16_224", {"img_size": (32, 64)}, 1),
    "DINOv3": ("vit_small_patch16_dinov3", {}, 5),
    "DINOv3, gated": ("vit_small_plus_patch16_dinov3_qkvb", {}, 5),
    "EVA-02": ("eva02_tiny_patch14_224", {}, 1),
    "EVA-02, unfused": ("eva02_base_patch14_448", {}, 1),
    "EVA-02, norms behind": ("eva02_tiny_patch14_224", {"use_post_norm": True}, 1),
    "rope by block": ("vit_small_patch16_rope_mixed_224", {}, 1),
    "rope, any size": ("vit_small_patch16_dinov3", {"dynamic_img_size": True}, 5),
    "Perception Encoder": ("vit_pe_core_tiny_patch16_384", {}, 1),
}


@pytest.mark.parametrize(("name", "options", "prefix"), VITS.values(), ids=VITS)
def test_the_parts_of_a_vit_make_the_whole(name: str, options: dict[str, Any], prefix: int) -> None:
    backbone = vit(name, **options)
    images = noise(2, 3, backbone.input.height, backbone.input.width)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in backbone.parameters():
            if (
                weights.ndim == 1
            ):  # biases, and the gains of norms and layer scale: at their start they hide much
                weights.add_(torch.randn(weights.shape, generator=generator), alpha=0.5)
        tokens = backbone.embed(images)
        assert backbone.prefix == prefix
        assert tokens.shape == (2, backbone.tokens, 48)
        for block in backbone.blocks():
            tokens = attend(block, tokens)
            tokens = tokens + feed_forward(block, tokens)
        features = backbone.pool(tokens)
        torch.testing.assert_close(features, backbone.model(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(features, backbone.features(images), rtol=1e-5, atol=1e-5)
    assert features.shape == (2, backbone.width)
    assert backbone.depth == len(list(backbone.blocks())) == 2


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_224"])
def test_prompts_have_no_position(name: str) -> None:
    """They are not turned, so that they may stand anywhere; patches are, so that they may not."""
    backbone = vit(name, init_values=0.5)
    block, at = next(backbone.blocks()), backbone.prefix
    tokens, prompts = noise(2, backbone.tokens, 48), noise(2, 3, 48)
    behind = attend(block, torch.cat([tokens, prompts], 1))
    before = attend(block, torch.cat([tokens[:, :at], prompts, tokens[:, at:]], 1), prompts_at=at)
    torch.testing.assert_close(behind[:, :at], before[:, :at])
    torch.testing.assert_close(behind[:, at:-3], before[:, at + 3 :])
    torch.testing.assert_close(behind[:, -3:], before[:, at : at + 3])
    swapped = attend(block, tokens[:, [*range(at), *reversed(range(at, backbone.tokens))]])
    assert (swapped[:, 0] - attend(block, tokens)[:, 0]).abs().max() > 1e-5


def test_size_and_normalisation_are_read_from_the_model() -> None:
    imagenet = load_backbone("resnet10t", weights="random")
    assert (imagenet.input.height, imagenet.input.width, imagenet.input.resize) == (176, 176, 201)
    torch.testing.assert_close(imagenet.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(imagenet.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))
    other = vit("vit_base_patch16_clip_224", img_size=48)
    assert (other.input.height, other.input.interpolation) == (48, "bicubic")
    assert other.mean.flatten()[0].item() == pytest.approx(0.48145466)

    pixel = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)
    expected = (torch.tensor([0, 128, 255]) / 255 - imagenet.mean.flatten()) / imagenet.std.flatten()
    normal = imagenet.normalise(pixel)
    assert normal.shape == (1, 3, 1, 1)
    torch.testing.assert_close(normal.flatten(), expected)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_a_cnn_works_on_frozen_features_and_says_what_it_cannot_do(name: str) -> None:
    backbone = load_backbone(name, weights="random")
    with pytest.raises(
        ValueError, match=rf"'{name}' .* is no plain Vision Transformer.*{BUNDLED}.*NTKCL\(\).*Frozen\(\)"
    ):
        Learner(backbone, FineTune())
    learner = fit_all(Learner(backbone, Frozen(), device="cpu"), [coloured("ab", 3), coloured("c", 3)])
    assert learner.features(coloured("ab", 1)).shape == (2, backbone.width)
    assert learner.evaluate(coloured("abc", 2, seed=1)) == 1


def test_a_vit_with_blocks_of_another_kind_is_no_plain_one() -> None:
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": 2}
    model = VisionTransformer(num_classes=0, block_fn=ParallelScalingBlock, **size)
    backbone = Backbone(model)
    assert not backbone.has_tokens
    with pytest.raises(ValueError, match=r"'VisionTransformer' .* is no plain Vision Transformer"):
        Learner(backbone, FineTune())


def test_the_backbone_is_frozen_and_stays_in_evaluation_mode() -> None:
    backbone = vit(drop_rate=0.5, drop_path_rate=0.5, attn_drop_rate=0.5)
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    images = noise(2, 3, 32, 32)
    assert torch.equal(backbone.features(images), backbone.features(images))


def test_random_weights_are_the_same_ones_every_time() -> None:
    first, before = vit().fingerprint(), torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert vit().fingerprint() == first
    assert vit(depth=3).fingerprint() != first
    assert torch.equal(torch.get_rng_state(), before)


def test_the_fingerprint_sees_one_weight() -> None:
    backbone = vit()
    before = backbone.fingerprint()
    with torch.no_grad():
        next(backbone.parameters()).view(-1)[0] += 1e-6
    assert backbone.fingerprint() != before


# Names and weights


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit_bsae_patch16_224", "did you mean one of .*'vit_base_patch16_224'"),
        ("vit_base_patch16", "did you mean one of .*'vit_base_patch16_"),
        ("everlearn_vit_tiny", f"did you mean one of .*'{BUNDLED}'"),
        ("zzz", r"timm\.list_models\(\)$"),
    ],
)
def test_an_unknown_name_comes_with_suggestions(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"no backbone is named '{name}'; take '{BUNDLED}'.*{hint}"):
        load_backbone(name)


def test_pretrained_weights_that_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    says = "cannot be made with weights='pretrained'.*pass weights='random' or the path"
    with pytest.raises(ValueError, match=rf"vit_tiny_patch16_224\.no_such_tag' {says}"):
        load_backbone("vit_tiny_patch16_224.no_such_tag")
    with pytest.raises(ValueError, match=rf"vit_small_patch16_36x1_224' {says}"):
        load_backbone("vit_small_patch16_36x1_224")

    def offline(*_: object, **__: object) -> None:
        raise FileNotFoundError("the hub cannot be reached")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=f"{says}"):
        load_backbone("resnet10t")


def test_options_that_cannot_be_written_down_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"options must be plain values .*pass Backbone\(model\)"):
        vit(act_layer=nn.ReLU)
    own = Backbone(VisionTransformer(img_size=32, depth=1, num_classes=0, act_layer=nn.ReLU))
    assert own.spec is None
    assert own.name == "VisionTransformer"


def test_local_weights_come_back_without_their_classifier(tmp_path: Path) -> None:
    size = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        trained = timm.create_model("vit_tiny_patch16_224", num_classes=7, **size)
    path = tmp_path / "mine.safetensors"
    save_file(trained.state_dict(), path)
    backbone = load_backbone("vit_tiny_patch16_224", weights=path, **size)
    assert backbone.width == 48
    assert backbone.fingerprint() != vit().fingerprint()
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        expected = trained.eval().forward_head(trained.forward_features(images), pre_logits=True)
        torch.testing.assert_close(backbone.features(images), expected, rtol=0, atol=1e-6)
    half = tmp_path / "half.safetensors"
    save_file({name: value.half() for name, value in trained.state_dict().items()}, half)
    rounded = load_backbone("vit_tiny_patch16_224", weights=str(half), **size)
    assert {value.dtype for value in rounded.model.state_dict().values()} == {torch.float32}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def fill(path: Path) -> None:
    path.write_bytes(b"\xff" * 64)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (cut, "no readable safetensors file"),
        (fill, "no readable safetensors file"),
        (Path.unlink, r"existing file \(\.safetensors, \.pth, \.pt, \.bin\)"),
    ],
)
def test_damaged_weights_are_refused(tmp_path: Path, spoil: Callable[[Path], None], says: str) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(vit().model.state_dict(), path)
    spoil(path)
    with pytest.raises(ValueError, match=says):
        load_backbone("vit_tiny_patch16_224", weights=path)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path, size = tmp_path / "weights.safetensors", {"patch_size": 8, "embed_dim": 48, "num_heads": 3}
    save_file(vit().model.state_dict(), path)
    with pytest.raises(
        ValueError, match=r"does not fit VisionTransformer: missing \['blocks\.2.*name and opt"
    ):
        load_backbone("vit_tiny_patch16_224", weights=path, img_size=32, depth=3, **size)
    with pytest.raises(ValueError, match=r"more than the model has \['blocks\.1\.attn\.proj\.bias'"):
        load_backbone("vit_tiny_patch16_224", weights=path, img_size=32, depth=1, **size)
    with pytest.raises(ValueError, match=r"missing nothing, other shapes at \['patch_embed\.proj\.weight'\]"):
        load_backbone("vit_tiny_patch16_224", weights=path, img_size=16, depth=2, **size | {"patch_size": 4})
    with pytest.raises(ValueError, match="got 'pretraind'"):
        load_backbone("vit_tiny_patch16_224", weights="pretraind")


def test_a_learner_takes_a_name_and_weights(tmp_path: Path) -> None:
    learner = Learner("resnet10t", Frozen(), weights="random", device="cpu")
    assert learner.backbone.name == "resnet10t"
    with pytest.raises(ValueError, match="no backbone is named 'resnet10x'"):
        Learner("resnet10x", Frozen())


def test_a_name_or_a_backbone_is_what_can_be_asked_for() -> None:
    assert resolve().fingerprint() == resolve(BUNDLED, "pretrained").fingerprint()
    assert resolve(BUNDLED, "random").fingerprint() == load_backbone(weights="random").fingerprint()
    assert resolve("resnet10t", "random", in_chans=3).spec == BackboneSpec(
        "resnet10t", "random", {"in_chans": 3}
    )
    made = vit()
    assert resolve(made) is made
    with pytest.raises(ValueError, match=r"existing file .*, got '/no/such/file'"):
        resolve(BUNDLED, "/no/such/file")


@pytest.mark.parametrize(
    ("weights", "options", "says"),
    [
        ("/no/such/file", {}, "so weights='/no/such/file' would change nothing"),
        (Path("w.safetensors"), {}, "so weights='w.safetensors' would"),
        ("pretrained", {}, "so weights='pretrained' would"),
        (None, {"img_size": 64}, "so img_size=64 would"),
        ("random", {"img_size": 64}, "so weights='random' and img_size=64 would"),
    ],
)
def test_weights_beside_a_backbone_that_has_its_own_are_refused(
    weights: str | Path | None, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=rf"'vit_tiny_patch16_224' is made already, {says}.*leave that out"):
        resolve(vit(), weights, **options)


def test_what_is_neither_a_name_nor_a_model_is_refused() -> None:
    for model in (nn.Linear(2, 2), nn.Sequential(vit().model)):
        with pytest.raises(
            ValueError, match=rf"a {type(model).__name__}, which is no timm model; .*Backbone\(mo"
        ):
            resolve(model)
    with pytest.raises(
        ValueError, match=r"backbone is a NoneType; give a name .*, a timm model or a Backbone"
    ):
        resolve(cast(Any, None))


# Models at hand


def trained(seed: int = 5, **options: Any) -> Any:
    """A timm model with a classifier, in training, as somebody has it who trained it."""
    size = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model("vit_tiny_patch16_224", **{**size, "num_classes": 7, **options}).train()


def features(model: Any, images: Tensor) -> Tensor:
    model = model.eval()
    with torch.no_grad():
        found: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    return found


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch.compile's own import
@pytest.mark.parametrize(
    "around", [lambda model: model, nn.DataParallel, torch.compile], ids=["", "DP", "compile"]
)
def test_a_timm_model_is_a_backbone_and_stays_as_it_is(around: Callable[[Any], Any], tmp_path: Path) -> None:
    model, images = trained(), noise(2, 3, 32, 32)
    learner = Learner(around(model), Frozen(), device="cpu").fit(coloured("ab"))
    assert model.training
    assert model.head.out_features == 7
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(learner.backbone.features(images), features(model, images), rtol=0, atol=1e-6)
    learner.save(tmp_path / "run")
    with pytest.raises(ValueError, match=r"saved with a backbone of the caller's own; pass it as backbone="):
        Learner.load(tmp_path / "run")
    again = Learner.load(tmp_path / "run", backbone=model)
    assert again.predict(coloured("ab", seed=1)) == learner.predict(coloured("ab", seed=1))
    with pytest.raises(ValueError, match="is made already, so weights='random' would change nothing"):
        Learner(model, Frozen(), weights="random")


def test_a_cnn_at_hand_is_one_too() -> None:
    model = timm.create_model("resnet10t", num_classes=3).half()
    backbone = resolve(model)
    assert backbone.width == 512
    assert backbone.features(noise(1, 3, 176, 176)).dtype == torch.float32


# Checkpoints of all kinds

SIZE = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}


def named(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights.items()}


CHECKPOINTS: dict[str, Callable[[dict[str, Tensor], dict[str, Tensor]], Any]] = {
    "plain": lambda own, other: own,
    "module.": lambda own, other: named("module.", own),
    "model.": lambda own, other: named("model.", own),
    "backbone.": lambda own, other: {**named("backbone.", own), **named("neck.", other)},
    "several": lambda own, other: named("module._orig_mod.model.", own),
    "timm": lambda own, other: {"epoch": 3, "arch": "vit", "state_dict": own, "optimizer": {"state": {}}},
    "timm with an average": lambda own, other: {"state_dict": other, "state_dict_ema": own},
    "lightning": lambda own, other: {"state_dict": named("model.", own), "hyper_parameters": {"lr": 0.1}},
    "dino": lambda own, other: {
        "student": named("module.backbone.", other),
        "teacher": named("backbone.", own),
    },
    "deit": lambda own, other: {"model": own, "model_ema": own, "scaler": {"scale": torch.tensor(1.0)}},
    "moco": lambda own, other: {
        "state_dict": {**named("module.base_encoder.", other), **named("module.momentum_encoder.", own)}
    },
    "deep": lambda own, other: {"checkpoint": {"weights": {"net": own}}},
}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".tar", ".safetensors"])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_weights_are_found_in_what_was_saved_around_them(tmp_path: Path, kind: str, suffix: str) -> None:
    model, path = trained(), tmp_path / f"weights{suffix}"
    saved = CHECKPOINTS[kind](model.state_dict(), trained(6).state_dict())
    if suffix == ".safetensors":
        if not all(isinstance(value, Tensor) for value in saved.values()):
            pytest.skip("this form has tensors only")
        save_file(saved, path)
    else:
        torch.save(saved, path)
    backbone = load_backbone("vit_tiny_patch16_224", weights=path, **SIZE)
    images = noise(2, 3, 32, 32)
    torch.testing.assert_close(backbone.features(images), features(model, images), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}], ids=str
)
def test_another_input_size_resamples_the_position_embedding_and_says_so(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    model, path = trained(**options), tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    with pytest.warns(UserWarning, match=r"trained on 4 x 4 patches, and the model has 8 x 8; its position"):
        backbone = load_backbone("vit_tiny_patch16_224", weights=path, **SIZE | {"img_size": 64}, **options)
    model.set_input_size(img_size=(64, 64))  # timm's own
    images = noise(2, 3, 64, 64)
    torch.testing.assert_close(backbone.features(images), features(model, images), rtol=0, atol=1e-5)
    odd = dict(trained(**options).state_dict())
    odd["pos_embed"] = odd["pos_embed"][:, :-3]
    torch.save(odd, path)
    with pytest.raises(ValueError, match=r"other shapes at \['pos_embed'\]"):
        load_backbone("vit_tiny_patch16_224", weights=path, **SIZE, **options)


class Evil:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "owned")


def test_nothing_is_unpickled_but_tensors_and_what_holds_them(tmp_path: Path) -> None:
    path, owned = tmp_path / "weights.pth", tmp_path / "owned"
    for saved in (
        {"state_dict": trained().state_dict(), "args": Evil(owned)},
        trained(),
    ):
        torch.save(saved, path)
        with pytest.raises(
            ValueError, match=r"holds a .*nothing but tensors, .* is unpickled.*state_dict\(\)"
        ) as caught:
            load_backbone("vit_tiny_patch16_224", weights=path, **SIZE)
        assert "weights_only=False" not in str(caught.value)
    assert not owned.exists()


@pytest.mark.filterwarnings("ignore:`torch.jit")  # by which the file is made
def test_a_torchscript_program_is_not_run(tmp_path: Path) -> None:
    script: Any = torch.jit.script(nn.Linear(2, 2))
    script.save(tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights\.pt is a TorchScript program; give what torch\.save"):
        load_backbone("vit_tiny_patch16_224", weights=tmp_path / "weights.pt", **SIZE)


@pytest.mark.parametrize(
    ("saved", "says"),
    [
        ([torch.zeros(2)], "holds a list; expected tensors by name"),
        ({"epoch": 3}, "holds no tensors by name"),
        ({"x": torch.zeros(2)}, r"missing \['blocks\.0"),
        (b"\xff" * 64, r"neither a \.safetensors file nor written by torch\.save"),
        (b"", r"neither a \.safetensors file nor"),
        (b"PK\x03\x04" + bytes(60), "is damaged"),
        (b"\x80\x02" + bytes(60), "is damaged"),
    ],
)
def test_files_without_weights_are_refused(tmp_path: Path, saved: Any, says: str) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(saved, bytes):
        path.write_bytes(saved)
    else:
        torch.save(saved, path)
    with pytest.raises(ValueError, match=says):
        load_backbone("vit_tiny_patch16_224", weights=path, **SIZE)


def test_a_learner_finds_the_weights_of_a_file_again(tmp_path: Path) -> None:
    torch.save({"state_dict": named("module.", trained().state_dict())}, tmp_path / "weights.pth")
    backbone = load_backbone("vit_tiny_patch16_224", weights=tmp_path / "weights.pth", **SIZE)
    learner = Learner(backbone, Frozen(), device="cpu").fit(coloured("ab"))
    learner.save(tmp_path / "run")
    assert Learner.load(tmp_path / "run").backbone.fingerprint() == backbone.fingerprint()


def test_a_learner_by_default_adapts_the_bundled_backbone() -> None:
    learner = Learner(device="cpu")
    assert learner.backbone.name == BUNDLED
    assert isinstance(learner.method, NTKCL)
    assert make_learner(NTKCL()).device == torch.device("cpu")
