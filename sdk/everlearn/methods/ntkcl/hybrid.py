"""NTK-CL's hybrid view, the paper's: bottlenecks, prompts and their fusion, at four passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from everlearn.adapters.bottleneck import beside_mlps, first_block
from everlearn.adapters.hybrid import Hybrid
from everlearn.adapters.prompt import PromptGenerator, insert, strip
from everlearn.backbones import Backbone, attend, feed_forward
from everlearn.methods.ntkcl.form import Form, Seen
from everlearn_runtime.heads import Head, Prototypes

if TYPE_CHECKING:
    from everlearn.methods.ntkcl.method import NTKCL

SECTION_WEIGHTS = (1.0, 0.3, 0.1)  # PTM, pre, cur


class FourPasses(Form):
    """Three views of each image, whose sections are [PTM], pre and cur.

    The channel view z_c is that of the bottlenecks, the patch view z_p that of prompts generated from
    the image's own tokens, the hybrid view z_m their fusion, which the head sees. One classifier is
    for all three; L_dis holds z_m apart, L_orth keeps z_c and z_p clear.

    Attributes:
        zero_start: whether the prompt generators start at zero.
        one_token: whether the fusion takes a whole view as one token, and its values start at random.
    """

    hidden: ClassVar[int] = 16
    scale: ClassVar[float] = 0.1
    sharpness: ClassVar[float] = 1.0
    zero_start: ClassVar[bool] = False
    one_token: ClassVar[bool] = False

    def check(self, method: NTKCL) -> None:
        """Refuse depths: there are a view's sections to fuse, and nothing stands behind them."""
        if method.depths:
            raise ValueError(
                f"the hybrid view has no depths, got {method.depths!r}; leave them out, or take "
                "view='averaged'"
            )

    def check_backbone(self, backbone: Backbone) -> None:
        """Refuse a model without tokens, of which prompts are made."""
        backbone.require_tokens()

    def insert(self, method: NTKCL) -> None:
        """Put a prompt generator beside every block, and the fusion behind them."""
        backbone = method.backbone
        width, tokens = backbone.vit.embed_dim, backbone.tokens
        method.cur["patch"] = nn.ModuleList(
            PromptGenerator(tokens, width, prompts=method.prompts, zero_start=self.zero_start)
            for _ in range(backbone.depth)
        )
        method.hybrid = Hybrid(
            backbone.width * (len(method.sections) if self.one_token else 1),
            heads=method.heads,
            dropout=method.dropout,
            zero_values=not self.one_token,
        )

    def sections(self, method: NTKCL) -> tuple[int, ...]:
        """[PTM], pre and cur."""
        return (method.backbone.width,) * (3 if method.ptm else 2)

    def head(self, method: NTKCL) -> Head:
        """Prototypes, section-weighted."""
        return Prototypes(method.sections, SECTION_WEIGHTS[-len(method.sections) :])

    def begin_task(self, method: NTKCL, classes: int) -> None:
        """Make the classifier of all views."""
        method.classifier = method.new_classifier(sum(method.sections), classes)

    def see(self, method: NTKCL, images: Tensor) -> Seen:
        """All three views."""
        views = dict(zip(("channel", "patch", "hybrid"), method.views(images), strict=True))
        return Seen(views, views, apart="hybrid", clear=("channel", "patch"))

    def features(self, method: NTKCL, images: Tensor) -> Tensor:
        """The hybrid view z_m, (B, F)."""
        return method.views(images)[2]

    def views(self, method: NTKCL, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z_c, z_p and z_m, (B, F) each."""
        shared = first_block(method.backbone, images)
        channel, patch = [], []
        with torch.no_grad():
            if method.ptm:
                channel += [channel_section(method, *shared, None)]
                patch += channel
            channel = [*channel, channel_section(method, *shared, method.pre["channel"])]
            patch = [*patch, patch_section(method, *shared, method.pre["patch"])]
        channel = [*channel, channel_section(method, *shared, method.cur["channel"])]
        patch = [*patch, patch_section(method, *shared, method.cur["patch"])]
        z_c, z_p = torch.cat(channel, 1), torch.cat(patch, 1)
        tokens: list[Tensor] = [torch.unflatten(view, 1, (-1, method.hybrid.width)) for view in (z_c, z_p)]
        hybrid: Tensor = method.hybrid(*tokens)
        return z_c, z_p, hybrid.flatten(1)


def channel_section(method: NTKCL, tokens: Tensor, after: Tensor, adapters: nn.Module | None) -> Tensor:
    """Features of the branch with bottlenecks, or with none, from what all branches share."""
    backbone = method.backbone
    return backbone.gather(beside_mlps(backbone, tokens, after, adapters, backbone.pooled))[0]


def patch_section(method: NTKCL, tokens: Tensor, after: Tensor, generators: nn.Module) -> Tensor:
    """Features of the branch with prompts, from what all branches share."""
    backbone, count = method.backbone, method.prompts
    at, last = backbone.prefix, backbone.depth - 1
    for index, (block, generate) in enumerate(zip(backbone.blocks(), generators.children(), strict=True)):
        if index == last:
            break  # its prompts meet no attention any more: they cannot reach the features
        if index == 0:  # the MLP sees each token alone, so only the prompts are new to it
            after = insert(after, feed_forward(block, generate(tokens)), at)
            continue
        tokens, old = strip(attend(block, after, prompts_at=at), count, at)
        prompts = generate(tokens) + 0.1 * old
        after = insert(tokens, old, at) + feed_forward(block, insert(tokens, prompts, at))
    if last:
        tokens = attend(block, after, backbone.pooled, prompts_at=at)
        if backbone.pooled is None:
            tokens, _ = strip(tokens, count, at)
        after = tokens + feed_forward(block, tokens)
    return backbone.pool(after)
