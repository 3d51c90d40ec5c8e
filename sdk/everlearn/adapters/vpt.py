"""VPT-deep: prompts of its own for every block."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from everlearn.backbones import Backbone, Part, attend, feed_forward


class DeepPrompts(nn.Module):
    """Learned prompts behind the tokens of each block; calling it gives the adapted features.

    A block sees [tokens ; its prompts]; its prompts are cut off behind it. They have no position.

    Args:
        backbone: the ViT that it is for; ``ValueError`` when it is none.
        prompts: prompts of a block.
        zero_start: start at zero. Then all prompts of a block always have the same gradient and
            stay equal to each other: the block learns one prompt, counted ``prompts`` times. By
            default they start as in the paper, uniform within sqrt(6 / (3 p^2 + d)) for patches of
            p x p pixels and width d.

    Attributes:
        prompts: (depth, prompts, d).

    Source: Jia et al., "Visual Prompt Tuning", arXiv 2203.12119, section 3.2.
    """

    def __init__(self, backbone: Backbone, *, prompts: int = 5, zero_start: bool = False) -> None:
        super().__init__()
        vit = backbone.vit
        self.prompts = nn.Parameter(torch.zeros(backbone.depth, prompts, vit.embed_dim))
        if not zero_start:
            height, width = vit.patch_embed.patch_size
            limit = (6 / (3 * height * width + vit.embed_dim)) ** 0.5
            nn.init.uniform_(self.prompts, -limit, limit)

    def forward(self, backbone: Backbone, images: Tensor, parts: Sequence[Part] = ()) -> Tensor:
        """Features (B, F) of normalised images (B, 3, H, W), as by `Backbone.features`."""
        return torch.cat(backbone.gather(self.run(backbone, images, parts), parts), 1)

    def run(self, backbone: Backbone, images: Tensor, parts: Sequence[Part] = ()) -> Iterator[Tensor]:
        """Tokens behind each block without the prompts, for `Backbone.gather`."""
        tokens = backbone.embed(images)
        count, last = tokens.shape[1], backbone.depth - 1
        for index, (block, prompts) in enumerate(zip(backbone.blocks(), self.prompts, strict=True)):
            seen = torch.cat([tokens, prompts.expand(tokens.shape[0], -1, -1)], 1)
            wanted = backbone.wanted(parts) if index == last else None
            # The MLP sees each token alone, so that the prompts need not go through it.
            tokens = attend(block, seen, count if wanted is None else wanted)
            tokens = tokens + feed_forward(block, tokens)
            yield tokens
