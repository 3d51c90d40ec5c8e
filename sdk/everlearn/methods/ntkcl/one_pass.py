"""NTK-CL's averaged view, the default: one pass over the backbone, seen two ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from torch import Tensor, nn

from everlearn.adapters.adapted import Beside
from everlearn.adapters.bottleneck import Bottleneck, beside_mlps, first_block
from everlearn.methods.ntkcl.form import Form, Seen
from everlearn_runtime.heads import LDA, Head

if TYPE_CHECKING:
    from everlearn.methods.ntkcl.method import NTKCL


class OnePass(Form):
    """Bottlenecks beside each MLP; CLS and the mean of the patch tokens are two views of one pass.

    It is ours. Each view has a classifier in training; L_dis and L_orth look at both together, and so
    does the head, under the averaged adapters.
    """

    hidden: ClassVar[int] = 64
    scale: ClassVar[float] = 1.0
    sharpness: ClassVar[float] = 12.0

    def sections(self, method: NTKCL) -> tuple[int, ...]:
        """CLS and the mean patch."""
        return method.backbone.sections(method.patches)

    def head(self, method: NTKCL) -> Head:
        """LDA."""
        return LDA()

    def begin_task(self, method: NTKCL, classes: int) -> None:
        """Make a classifier for CLS, and one for the mean patch where there is one."""
        method.classifier = method.new_classifier(method.backbone.width, classes)
        if len(method.sections) == 2:
            method.patch_classifier = method.new_classifier(method.backbone.width, classes)

    def see(self, method: NTKCL, images: Tensor) -> Seen:
        """CLS and the mean patch of the trained adapters."""
        sections = one_pass(method, images, method.cur["channel"])
        views = dict(zip(("channel", "patch"), sections.unbind(1), strict=False))
        return Seen(views, {"both": sections.flatten(1)}, apart="both", clear=("both",))

    def features(self, method: NTKCL, images: Tensor) -> Tensor:
        """CLS and the mean patch of the averaged adapters, (B, F)."""
        return one_pass(method, images, method.pre["channel"]).flatten(1)

    def adapted_blocks(self, method: NTKCL) -> list[nn.Module]:
        """Each block with its averaged bottleneck."""
        backbone, bottlenecks = method.backbone, method.pre["channel"].children()
        first = None if len(method.sections) == 2 else backbone.pooled
        return [
            Beside(
                block,
                cast(Bottleneck, bottleneck).merged().requires_grad_(True),
                first if place == backbone.depth else None,
            )
            for place, (block, bottleneck) in enumerate(zip(backbone.blocks(), bottlenecks, strict=True), 1)
        ]


def one_pass(method: NTKCL, images: Tensor, adapters: nn.Module) -> Tensor:
    """CLS and the mean patch, (B, 2, d), or CLS alone, (B, 1, d), of the branch with bottlenecks."""
    backbone, shared = method.backbone, first_block(method.backbone, images)
    if len(method.sections) == 1:
        return backbone.pool(beside_mlps(backbone, *shared, adapters, backbone.pooled))[:, None]
    return backbone.both(beside_mlps(backbone, *shared, adapters))
