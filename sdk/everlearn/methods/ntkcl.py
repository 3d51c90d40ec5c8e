"""NTK-CL: continual learning by the factors that bound its neural tangent kernel's error."""

import copy
from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everlearn.adapters.bottleneck import Bottlenecks, beside_mlps, first_block
from everlearn.adapters.hybrid import Hybrid
from everlearn.adapters.prompt import PromptGenerator, insert, strip
from everlearn.backbones import Backbone, attend, feed_forward
from everlearn.methods.base import CosineClassifier, Method, TaskInfo
from everlearn.methods.losses import batch_wide_info_nce, complement_sum, overlap, supervised_info_nce
from everlearn.training import Training
from everlearn_runtime.heads import LDA, Head, Prototypes


class NTKCL(Method):
    """Adapt by small adapters, and bound forgetting by sample size, orthogonality, regularisation.

    Every adapter exists twice: ``cur`` is trained, ``pre`` is the mean of all tasks' adapters. The
    loss is ``sum of CE over the views + dissimilarity L_dis + orthogonality L_orth + regularisation
    L_reg``: L_dis is a supervised InfoNCE in which old prototypes repel; L_orth the mean squared
    part of the features in the span of the old prototypes; L_reg the squared distance of the
    weights from those before the task. There are two forms.

    ``view="averaged"``, the default, is ours: one pass over the backbone, on the workstation and
    on the device. Bottlenecks stand beside each MLP, and the pass is seen two ways: CLS, and the
    mean of the patch tokens. Each has a classifier in training; the head sees both, under ``pre``.

    ``view="hybrid"`` is the paper's, at four passes. Each image is seen three ways: by the
    bottlenecks (the channel view z_c), by prompts generated from its own tokens (the patch view
    z_p), and by their fusion (the hybrid view z_m), which the head sees. A view's sections are
    [PTM], pre and cur.

    That is what the paper intends. The authors' released code does something else in six places,
    and ``variant="released"`` does the same, to the last digit: prompts start at zero, where only
    one of their four parameters ever learns; the fusion attends to one token, so half of it never
    learns; L_dis is `batch_wide_info_nce`, which pushes a class apart, with at most as many old
    prototypes as images, drawn anew at each step; L_orth is `complement_sum`, over ``rank``
    directions of which those beyond the old classes are whatever the SVD returns; the old classes
    are counted as ``C - increment``; and dropout is active in the averaged adapters, too. One
    thing differs: the release does not average after the last task of a fixed stream, but a
    stream without an end has no last task, so this averages after every one.

    Args:
        variant: ``"paper"``, or ``"released"`` for the authors' code.
        increment: for the released variant, the new classes of every task but the first. When the
            first task has more (7, then 5 a time), the released code counts the difference as old
            classes with prototypes of zero. None: each task's own number, and no such classes.
        view: ``"averaged"`` or ``"hybrid"``, see above; the released variant is hybrid only, and
            takes it by default.
        patches: in the averaged view, False leaves CLS alone. On a backbone that pools by the mean
            there is one section anyway.
        ptm: in the hybrid view, put the frozen backbone's own features in front, as a third section.
        hidden: width of the bottlenecks; 64 in the averaged view, the paper's 16 in the hybrid one.
        scale: constant factor of the bottlenecks' output; 1 or the paper's 0.1, likewise.
        sharpness: start of the cosine classifiers' learnable scale; 12 or the paper's 1, likewise.
            From 1, cross-entropy goes on pulling at images that are classified well, which cost
            prototypes five points on ten held-out tasks of Split Tiny-ImageNet.
        prompts: prompts in a block.
        dropout: of bottlenecks and fusion.
        heads: attention heads of the fusion.
        dissimilarity: weight of L_dis (0.2; the paper takes 0.03 on CIFAR-100).
        orthogonality: weight of L_orth.
        regularisation: weight of L_reg.
        temperature: of L_dis.
        rank: most directions of the old prototypes that L_orth keeps clear of.

    Attributes:
        cur, pre: the trained and the averaged adapters; ``cur["channel"]`` and ``cur["patch"]``
            are lists, one `Bottleneck` and one `PromptGenerator` a block, the latter in the hybrid
            view only.
        hybrid: the fusion, in the hybrid view.
        classifier: the task's own cosine classifier, None between tasks.
        patch_classifier: that of the mean patch, in the averaged view.
        anchor: copies of ``cur`` and ``hybrid`` from which L_reg measures, None between tasks.
        old: unit prototypes (K, F) of the old classes that L_dis takes, during a task.
        first_target: how many old classes the task's own are numbered behind, in the release's way.
        basis: orthonormal rows (R, F) of which L_orth keeps clear, during a task. For the released
            variant some are arbitrary; put others in their place to compare with another run.

    Source: Liu et al., "Parameter-Efficient Fine-Tuning for Continual Learning: A Neural Tangent
    Kernel Perspective", arXiv 2407.17120, sections 4 and 5.
    """

    # For small backbones; the paper's settings, for a ViT-B/16, are in `everlearn.recipes`.
    defaults: ClassVar[Training] = Training(epochs=3, batch_size=32, lr=0.02, weight_decay=5e-4)
    section_weights: ClassVar[tuple[float, ...]] = (1.0, 0.3, 0.1)

    def __init__(
        self,
        *,
        variant: str = "paper",
        increment: int | None = None,
        view: str | None = None,
        patches: bool = True,
        ptm: bool = False,
        hidden: int | None = None,
        scale: float | None = None,
        sharpness: float | None = None,
        prompts: int = 10,
        dropout: float = 0.1,
        heads: int = 8,
        dissimilarity: float = 0.2,
        orthogonality: float = 1e-4,
        regularisation: float = 1e-3,
        temperature: float = 0.1,
        rank: int = 40,
    ) -> None:
        super().__init__()
        if variant not in ("paper", "released"):
            raise ValueError(f"variant must be 'paper' or 'released', got {variant!r}")
        self.released = variant == "released"
        if view is None:
            view = "hybrid" if self.released else "averaged"
        if view not in ("hybrid", "averaged"):
            raise ValueError(f"view must be 'hybrid' or 'averaged', got {view!r}")
        if self.released and view != "hybrid":
            raise ValueError(
                "variant='released' has the hybrid view only, got view='averaged'; leave view out, or take "
                "variant='paper'"
            )
        if increment is not None and (isinstance(increment, bool) or increment < 1):
            raise ValueError(f"increment must be None or a whole number of at least 1, got {increment!r}")
        self.variant = variant
        self.increment = increment
        self.view = view
        one_pass = view == "averaged"
        self.patches = patches
        self.ptm = ptm
        self.hidden = hidden if hidden is not None else 64 if one_pass else 16
        self.scale = scale if scale is not None else 1.0 if one_pass else 0.1
        self.sharpness = sharpness if sharpness is not None else 12.0 if one_pass else 1.0
        self.prompts = prompts
        self.dropout = dropout
        self.heads = heads
        self.dissimilarity = dissimilarity
        self.orthogonality = orthogonality
        self.regularisation = regularisation
        self.temperature = temperature
        self.rank = rank

    def attach(self, backbone: Backbone) -> None:
        """Put both adapters, pre and cur, beside every block, and the fusion behind them."""
        width, blocks, tokens = backbone.vit.embed_dim, range(backbone.depth), backbone.tokens
        super().attach(backbone)
        self.cur = nn.ModuleDict()
        self.cur["channel"] = Bottlenecks(
            backbone, hidden=self.hidden, dropout=self.dropout, scale=self.scale
        )
        if self.view == "hybrid":
            self.cur["patch"] = nn.ModuleList(
                PromptGenerator(tokens, width, prompts=self.prompts, zero_start=self.released) for _ in blocks
            )
            self.hybrid = Hybrid(
                backbone.width * (len(self.sections) if self.released else 1),
                heads=self.heads,
                dropout=self.dropout,
                zero_values=not self.released,
            )
        self.pre = copy.deepcopy(self.cur).requires_grad_(False)
        self.classifier: CosineClassifier | None = None
        self.patch_classifier: CosineClassifier | None = None
        self.anchor: nn.ModuleList | None = None

    @property
    def sections(self) -> tuple[int, ...]:
        """[PTM], pre and cur of the hybrid view; CLS and the mean patch of the averaged view."""
        if self.view == "hybrid":
            return (self.backbone.width,) * (3 if self.ptm else 2)
        return (self.backbone.width,) * (2 if self.patches and self.backbone.pooled is not None else 1)

    def head(self) -> Head:
        """LDA; in the hybrid view prototypes, section-weighted: PTM 1.0, pre 0.3, cur 0.1."""
        if self.view == "averaged":
            return LDA()
        return Prototypes(self.sections, self.section_weights[-len(self.sections) :])

    def train(self, mode: bool = True) -> "NTKCL":
        """Switch to training; the averaged adapters stay in evaluation mode, but for the release."""
        super().train(mode)
        if hasattr(self, "pre") and not self.released:
            self.pre.eval()
        return self

    def begin_task(self, task: TaskInfo) -> None:
        """Make the task's classifier; take down the weights and the old prototypes."""
        like = self.backbone.mean
        self.tasks = task.index
        one_pass, count = self.view == "averaged", len(task.classes)
        width = self.backbone.width if one_pass else sum(self.sections)
        self.classifier = CosineClassifier(width, count, scale=self.sharpness).to(like)
        if one_pass and len(self.sections) == 2:
            self.patch_classifier = CosineClassifier(width, count, scale=self.sharpness).to(like)
        self.anchor = copy.deepcopy(self._regularised()).requires_grad_(False)
        prototypes = task.prototypes.to(like)
        self.first_target = len(prototypes)
        if self.released:  # a row for every class; those of this task have no prototype yet
            prototypes = F.pad(prototypes, (0, 0, 0, len(task.classes)))
        unit = F.normalize(prototypes, dim=1)
        if self.released:
            self.basis = torch.linalg.svd(unit.T).U[:, : self.rank].T
            self.old = unit[: max(len(unit) - (self.increment or len(task.classes)), 0)]
        else:
            _, singular, directions = torch.linalg.svd(unit, full_matrices=False)
            self.basis = directions[singular > 1e-6][: self.rank]
            self.old = unit

    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of the three views, L_dis, L_orth and L_reg, each weighted."""
        assert self.classifier is not None
        if self.view == "averaged":
            sections = self._one_pass(images, self.cur["channel"])
            views = dict(zip(("channel", "patch"), sections.unbind(1), strict=False))
            features = {"both": sections.flatten(1)}
        else:
            views = dict(zip(("channel", "patch", "hybrid"), self.views(images), strict=True))
            features = views
        with torch.autocast(images.device.type, enabled=False):  # logarithms of sums want all bits
            terms = {}
            for name, view in views.items():
                classifier = (name == "patch" and self.patch_classifier) or self.classifier
                terms[f"ce_{name}"] = F.cross_entropy(classifier(_at_least_float(view)), targets)
            compared = {name: _at_least_float(view) for name, view in features.items()}
            in_old_span = complement_sum if self.released else overlap
            spans = [in_old_span(view, self.basis) for name, view in compared.items() if name != "hybrid"]
            last = list(compared.values())[-1]
            terms["dissimilarity"] = self.dissimilarity * self._dissimilarity(last, targets)
            terms["orthogonality"] = self.orthogonality * torch.stack(spans).sum()
            terms["regularisation"] = self.regularisation * self._distance()
        return terms

    def end_task(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take cur into the mean of all tasks' adapters, and drop what the task alone needed."""
        with torch.no_grad():
            for mean, value in zip(self.pre.parameters(), self.cur.parameters(), strict=True):
                mean.lerp_(value, 1 / (self.tasks + 1))
        self.classifier = self.patch_classifier = self.anchor = None
        del self.old, self.basis

    def features(self, images: Tensor) -> Tensor:
        """Hybrid view z_m, or the averaged view, (B, F)."""
        if self.view == "averaged":
            return self._one_pass(images, self.pre["channel"]).flatten(1)
        return self.views(images)[2]

    def views(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give z_c, z_p and z_m, (B, F) each, of normalised images (B, 3, H, W); four passes."""
        shared = first_block(self.backbone, images)
        channel, patch = [], []
        with torch.no_grad():
            if self.ptm:
                channel += [self._channel_section(*shared, None)]
                patch += channel
            channel = [*channel, self._channel_section(*shared, self.pre["channel"])]
            patch = [*patch, self._patch_section(*shared, self.pre["patch"])]
        channel = [*channel, self._channel_section(*shared, self.cur["channel"])]
        patch = [*patch, self._patch_section(*shared, self.cur["patch"])]
        z_c, z_p = torch.cat(channel, 1), torch.cat(patch, 1)
        tokens: list[Tensor] = [torch.unflatten(view, 1, (-1, self.hybrid.width)) for view in (z_c, z_p)]
        hybrid: Tensor = self.hybrid(*tokens)
        return z_c, z_p, hybrid.flatten(1)

    def _one_pass(self, images: Tensor, adapters: nn.Module) -> Tensor:
        """CLS and the mean patch, (B, 2, d), or CLS alone, (B, 1, d), of the branch with bottlenecks."""
        shared = first_block(self.backbone, images)
        if len(self.sections) == 1:
            return self._channel_section(*shared, adapters)[:, None]
        return self.backbone.both(beside_mlps(self.backbone, *shared, adapters))

    def _channel_section(self, tokens: Tensor, after: Tensor, adapters: nn.Module | None) -> Tensor:
        """Features of the branch with bottlenecks, or with none, from what all branches share."""
        return self.backbone.pool(beside_mlps(self.backbone, tokens, after, adapters, self.backbone.pooled))

    def _patch_section(self, tokens: Tensor, after: Tensor, generators: nn.Module) -> Tensor:
        """Features of the branch with prompts, from what all branches share."""
        at, count, last = self.backbone.prefix, self.prompts, self.backbone.depth - 1
        for index, (block, generate) in enumerate(
            zip(self.backbone.blocks(), generators.children(), strict=True)
        ):
            if index == last:
                break  # its prompts meet no attention any more: they cannot reach the features
            if index == 0:  # the MLP sees each token alone, so only the prompts are new to it
                after = insert(after, feed_forward(block, generate(tokens)), at)
                continue
            tokens, old = strip(attend(block, after), count, at)
            prompts = generate(tokens) + 0.1 * old
            after = insert(tokens, old, at) + feed_forward(block, insert(tokens, prompts, at))
        if last:
            tokens = attend(block, after, self.backbone.pooled)
            if self.backbone.pooled is None:
                tokens, _ = strip(tokens, count, at)
            after = tokens + feed_forward(block, tokens)
        return self.backbone.pool(after)

    def negatives(self, count: int) -> Tensor:
        """Rows of ``old`` that join L_dis in a step of ``count`` images, int64 (K,).

        All of them; for the released variant at most ``count``, drawn from torch's global generator.
        """
        drawn = torch.randperm(len(self.old))[:count] if self.released else torch.arange(len(self.old))
        return drawn.to(self.old.device)

    def _dissimilarity(self, features: Tensor, targets: Tensor) -> Tensor:
        rows = self.negatives(len(features))
        old = self.old[rows]
        if not self.released:
            return supervised_info_nce(features, targets, old, self.temperature)
        labels = torch.cat([targets + self.first_target, rows])
        return batch_wide_info_nce(torch.cat([features, old]), labels, self.temperature)

    def _regularised(self) -> nn.ModuleList:
        return nn.ModuleList([self.cur] if self.view == "averaged" else [self.cur, self.hybrid])

    def _distance(self) -> Tensor:
        """Squared distance of all weights (not biases) from those before the task."""
        assert self.anchor is not None
        current = self._regularised().named_parameters()
        return torch.stack(
            [
                (value - start).square().sum()
                for (name, value), start in zip(current, self.anchor.parameters(), strict=True)
                if name.endswith("weight")
            ]
        ).sum()


def _at_least_float(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
