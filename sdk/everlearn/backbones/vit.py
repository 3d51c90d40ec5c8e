"""The halves of a ViT's block, for what stands between them."""

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn


def attend(block: Block, tokens: Tensor, first: int | None = None) -> Tensor:
    """First half of a block: the tokens after attention and its residual connection.

    Args:
        block: of a ViT.
        tokens: (B, N, d).
        first: how many of the tokens are wanted, from the front; all of them attend. None: all.

    Returns:
        (B, N, d), or (B, first, d).
    """
    attention, wanted = block.attn, tokens[:, :first]
    normal = block.norm1(tokens)
    if first is None:
        mixed = attention(normal)
    elif _is_plain(attention):
        mixed = _attention_of(attention, normal, first)
    else:
        mixed = attention(normal)[:, :first]
    return cast(Tensor, wanted + block.drop_path1(block.ls1(mixed)))


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


def feed_forward(block: Block, tokens: Tensor) -> Tensor:
    """Second half of a block without its residual connection: MLP(LN2 tokens)."""
    return cast(Tensor, block.drop_path2(block.ls2(block.mlp(block.norm2(tokens)))))
