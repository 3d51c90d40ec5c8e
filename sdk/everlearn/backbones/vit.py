"""The halves of a ViT's block, for what stands between them: of timm's ViT, and of its Eva.

``Eva`` is what timm makes EVA, EVA-02, DINOv3, the Perception Encoder and the ViTs with rotary position
embeddings of.
"""

from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

ViT: TypeAlias = VisionTransformer | Eva
"""A model of tokens whose blocks all have the two halves."""

AnyBlock: TypeAlias = Block | EvaBlock | EvaBlockPostNorm


def is_vit(model: nn.Module) -> bool:
    """Whether a model is a `ViT`: all of its blocks are of a kind that has the halves."""
    if isinstance(model, Eva):
        return all(type(block) in (EvaBlock, EvaBlockPostNorm) for block in model.blocks)
    return isinstance(model, VisionTransformer) and all(type(block) is Block for block in model.blocks)


def make_blocks_whole(model: Eva) -> None:
    """Let each block of an Eva stand for itself, in place; what the model computes stays the same.

    Every block gets the rotary embedding that the model would hand it, as a buffer ``rope`` that is not
    saved, (N, 2 h) or (heads, N, 2 h) for the N patches. And its attention calls ``qkv`` as a layer, and adds
    the biases behind it, where otherwise it would only read the layer's weights.
    """
    height, width = model.patch_embed.img_size
    with torch.no_grad():
        _, rope = model._pos_embed(model.patch_embed(torch.zeros(1, model.in_chans, height, width)))
    for number, block in enumerate(model.blocks):
        own = rope[number] if rope is not None and model.rope_mixed else rope
        block.register_buffer("rope", own, persistent=False)
        block.attn.qkv_bias_separate = True


def fuse_qkv(attention: nn.Module) -> None:
    """Make one layer ``qkv`` of an attention's three, in place; what it computes stays the same.

    Raises:
        ValueError: where keys and values are of fewer heads than queries.
    """
    if getattr(attention, "qkv", None) is not None:
        return
    layers = [cast(nn.Linear, attention.get_submodule(name)) for name in ("q_proj", "k_proj", "v_proj")]
    if len({layer.out_features for layer in layers}) > 1:
        widths = ", ".join(str(layer.out_features) for layer in layers)
        raise ValueError(
            f"queries, keys and values are {widths} wide, and this needs them alike; choose a backbone "
            "without grouped queries"
        )
    weights: list[Tensor] = [layer.weight for layer in layers]
    biases: list[Tensor] = [
        layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers
    ]
    joined = nn.Linear(layers[0].in_features, 3 * layers[0].out_features).requires_grad_(False).to(biases[0])
    joined.weight.copy_(torch.cat(weights))
    joined.bias.copy_(torch.cat(biases))
    for name in ("q_proj", "k_proj", "v_proj"):
        setattr(attention, name, None)
    attention.__dict__.pop("qkv", None)  # as a plain None it would hide the module
    attention.qkv = joined


def attend(
    block: AnyBlock, tokens: Tensor, first: int | None = None, *, prompts_at: int | None = None
) -> Tensor:
    """First half of a block: the tokens after attention and its residual connection.

    Args:
        block: of a ViT.
        tokens: (B, N, d); where there are more than the model's own, some are prompts, without a position.
        first: how many of the tokens are wanted, from the front; all of them attend. None: all.
        prompts_at: where the prompts begin; None: behind the model's own tokens.

    Returns:
        (B, N, d), or (B, first, d).
    """
    attention, wanted = block.attn, tokens[:, :first]
    normal = tokens if isinstance(block, EvaBlockPostNorm) else block.norm1(tokens)
    if first is not None and _is_plain(attention):
        mixed = _attention_of(attention, normal, first)
    else:
        mixed = attention(normal, **_position(block, tokens, prompts_at))
        mixed = mixed if first is None else mixed[:, :first]
    return cast(Tensor, wanted + block.drop_path1(_scaled(block, mixed, 1)))


def _scaled(block: AnyBlock, half: Tensor, number: int) -> Tensor:
    """What a block makes of one of its halves before it is added: layer scale, or a norm behind it."""
    if isinstance(block, Block):
        return cast(Tensor, getattr(block, f"ls{number}")(half))
    if isinstance(block, EvaBlockPostNorm):
        return cast(Tensor, getattr(block, f"norm{number}")(half))
    gain: Tensor | None = getattr(block, f"gamma_{number}")
    return half if gain is None else gain * half


def _position(block: AnyBlock, tokens: Tensor, prompts_at: int | None = None) -> dict[str, Tensor]:
    """What a block has to be given beside tokens (B, N, d): its rotary embedding, if there is any.

    Prompts, see `attend`, are not turned: they have sine 0 and cosine 1.
    """
    rope: Tensor | None = getattr(block, "rope", None)
    if rope is None:
        return {}
    prefix: int = block.attn.num_prefix_tokens
    prompts = tokens.shape[1] - prefix - rope.shape[-2]
    if prompts:
        none = rope.new_zeros(*rope.shape[:-2], prompts, rope.shape[-1] // 2)
        at = rope.shape[-2] if prompts_at is None else prompts_at - prefix
        rope = torch.cat([rope[..., :at, :], torch.cat([none, none + 1], -1), rope[..., at:, :]], -2)
    return {"rope": rope}


def _is_plain(attention: nn.Module) -> bool:
    extras = (getattr(attention, "norm", None), getattr(attention, "gate", None))
    return (
        type(attention) is Attention
        and type(attention.qkv) is nn.Linear
        and all(extra is None or isinstance(extra, nn.Identity) for extra in extras)
    )


def _attention_of(attention: Attention, tokens: Tensor, first: int) -> Tensor:
    """What timm's ``Attention`` gives for the first tokens, without the queries of the others."""
    width, heads = attention.num_heads * attention.head_dim, attention.num_heads
    qkv: nn.Linear = attention.qkv
    biases = (None, None) if qkv.bias is None else (qkv.bias[:width], qkv.bias[width:])
    query = F.linear(tokens[:, :first], qkv.weight[:width], biases[0])
    key, value = F.linear(tokens, qkv.weight[width:], biases[1]).chunk(2, dim=-1)
    q, k, v = (torch.unflatten(part, 2, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    q, k = attention.q_norm(q), attention.k_norm(k)
    if attention.fused_attn:
        mixed = F.scaled_dot_product_attention(q, k, v)
    else:
        mixed = (q * attention.scale @ k.transpose(2, 3)).softmax(-1) @ v
    return cast(Tensor, attention.proj(mixed.transpose(1, 2).flatten(2)))


def feed_forward(block: AnyBlock, tokens: Tensor) -> Tensor:
    """Second half of a block without its residual connection: MLP(LN2 tokens), in most of them."""
    normal = tokens if isinstance(block, EvaBlockPostNorm) else block.norm2(tokens)
    return cast(Tensor, block.drop_path2(_scaled(block, block.mlp(normal), 2)))


def through(block: AnyBlock, tokens: Tensor) -> Tensor:
    """Tokens (B, N, d) behind a block."""
    return cast(Tensor, block(tokens, **_position(block, tokens)))
