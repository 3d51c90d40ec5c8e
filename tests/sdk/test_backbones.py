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

from everlearn import NTKCL, Backbone, Frozen, Learner, load_backbone
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
}


@pytest.mark.parametrize(("name", "options", "prefix"), VITS.values(), ids=VITS)
def test_the_parts_of_a_vit_make_the_whole(name: str, options: dict[str, Any], prefix: int) -> None:
    backbone = vit(name, **options)
    images = noise(2, 3, backbone.input.height, backbone.input.width)
    with torch.no_grad():
        tokens = backbone.embed(images)
        assert backbone.prefix == prefix
        assert tokens.shape == (2, backbone.tokens, 48)
        for block in backbone.blocks():
            tokens = attend(block, tokens)
            tokens = tokens + feed_forward(block, tokens)
        features = backbone.pool(tokens)
        torch.testing.assert_close(features, backbone.model(images), rtol=0, atol=1e-6)
        torch.testing.assert_close(features, backbone.features(images), rtol=0, atol=1e-6)
    assert features.shape == (2, backbone.width)
    assert backbone.depth == len(list(backbone.blocks())) == 2


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
        ValueError, match=rf"'{name}' .* is no plain Vision Transformer.*{BUNDLED}.*Frozen\(\)"
    ):
        Learner(backbone, NTKCL())
    learner = fit_all(Learner(backbone, Frozen(), device="cpu"), [coloured("ab", 3), coloured("c", 3)])
    assert learner.features(coloured("ab", 1)).shape == (2, backbone.width)
    assert learner.evaluate(coloured("abc", 2, seed=1)) == 1


def test_a_vit_with_blocks_of_another_kind_is_no_plain_one() -> None:
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": 2}
    model = VisionTransformer(num_classes=0, block_fn=ParallelScalingBlock, **size)
    with pytest.raises(ValueError, match=r"'VisionTransformer' .* is no plain Vision Transformer"):
        Learner(Backbone(model), NTKCL())


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
        (Path.unlink, "existing"),
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
    with pytest.raises(ValueError, match=r"missing nothing, other shapes at \['pos_embed'\]"):
        load_backbone("vit_tiny_patch16_224", weights=path, img_size=64, depth=2, **size)
    pickled = tmp_path / "weights.pth"
    pickled.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"existing \.safetensors file, got .*weights\.pth"):
        load_backbone("vit_tiny_patch16_224", weights=pickled)
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
    with pytest.raises(ValueError, match=r"existing \.safetensors file, got '/no/such/file'"):
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


def test_what_is_neither_a_name_nor_a_backbone_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"backbone is a VisionTransformer; give a name .* Backbone\(model\)"
    ):
        resolve(cast(Any, vit().model))
    with pytest.raises(ValueError, match="backbone is a NoneType"):
        resolve(cast(Any, None))


def test_a_learner_by_default_adapts_the_bundled_backbone() -> None:
    learner = Learner(device="cpu")
    assert learner.backbone.name == BUNDLED
    assert isinstance(learner.method, NTKCL)
    assert make_learner(NTKCL()).device == torch.device("cpu")
