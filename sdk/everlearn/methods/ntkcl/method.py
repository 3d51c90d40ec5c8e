"""NTK-CL: continual learning by the factors that bound its neural tangent kernel's error."""

import copy
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everlearn.adapters.choice import adapters_for
from everlearn.adapters.hybrid import Hybrid
from everlearn.backbones import Backbone, Depths
from everlearn.backbones.parts import Part, given
from everlearn.checks import real
from everlearn.methods.base import CosineClassifier, Method, TaskInfo
from everlearn.methods.ntkcl.form import Form
from everlearn.methods.ntkcl.hybrid import FourPasses
from everlearn.methods.ntkcl.one_pass import OnePass
from everlearn.methods.ntkcl.released import Released
from everlearn.training import Training
from everlearn_runtime.heads import Head

FORMS: dict[tuple[str, str], type[Form]] = {
    ("paper", "averaged"): OnePass,
    ("paper", "hybrid"): FourPasses,
    ("released", "hybrid"): Released,
}
"""The forms, by variant and view."""


class NTKCL(Method):
    """Adapt by small adapters, and bound forgetting by sample size, orthogonality, regularisation.

    Every adapter exists twice: ``cur`` is trained, ``pre`` is the mean of all tasks' adapters, or follows it
    slowly. The loss is ``sum of CE over the views + dissimilarity L_dis + orthogonality L_orth +
    regularisation L_reg``: L_dis is a supervised InfoNCE in which old prototypes repel; L_orth the mean
    squared part of the features in the span of the old prototypes; L_reg the squared distance of the
    weights from those before the task.

    ``view="averaged"``, the default, is ours: one pass over the backbone, on the workstation and on the
    device, seen as CLS and as the mean of the patch tokens (`everlearn.methods.ntkcl.one_pass`). It goes with
    any model: where there are no blocks of tokens between which bottlenecks would fit, in a CNN or a hybrid,
    the adapters are scales and shifts of all norms, which merge into them (`everlearn.adapters.insert_ssf`),
    and the model's pooled features are the only view.
    ``view="hybrid"`` is the paper's, at four passes: bottlenecks, prompts generated from the image's own
    tokens, and their fusion (`everlearn.methods.ntkcl.hybrid`). ``variant="released"`` is that as the
    authors' code does it, which differs in six places (`everlearn.methods.ntkcl.released`).

    Between two tasks nothing is kept for each class, so there is nothing to forget here.

    Args:
        variant: ``"paper"``, or ``"released"`` for the authors' code.
        increment: for the released variant, the new classes of every task but the first. When the
            first task has more (7, then 5 a time), the released code counts the difference as old
            classes with prototypes of zero. None: each task's own number, and no such classes.
        view: ``"averaged"`` or ``"hybrid"``, see above; the released variant is hybrid only, and
            takes it by default.
        patches: in the averaged view, False leaves CLS alone. On a backbone that pools by the mean,
            and on a CNN, there is one section anyway.
        depths: in the averaged view, further parts for the head, as in `Frozen`: behind CLS and the mean
            patch, which alone the loss looks at. By default ``"auto"``, and none without ``patches``. A model
            without tokens has none.
        ptm: in the hybrid view, put the frozen backbone's own features in front, as a third section.
        hidden: width of the bottlenecks, on a ViT; 64 in the averaged view, the paper's 16 in the hybrid one.
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
        later: how far the averaged adapters follow a task after the first, of the way to the mean of all
            tasks' adapters: 1 makes them that mean, as in the paper; 0.25 in the averaged view. What the
            head knows of earlier classes is carried along by a map that is fitted on the task's own images,
            and misses the more, the further features move and the fewer classes a task has.

    Attributes:
        cur, pre: the trained and the averaged adapters; ``cur["channel"]`` and ``cur["patch"]``
            are lists, one `Bottleneck` and one `PromptGenerator` a block, the latter in the hybrid
            view only. On a model without tokens ``cur["channel"]`` is a `Backbone.twin` with
            `ScaleShift` layers.
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
    hybrid: Hybrid
    old: Tensor
    basis: Tensor

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
        depths: Depths | None = None,
        later: float | None = None,
    ) -> None:
        super().__init__()
        if variant not in ("paper", "released"):
            raise ValueError(f"variant must be 'paper' or 'released', got {variant!r}")
        if view is None:
            view = "hybrid" if variant == "released" else "averaged"
        if view not in ("hybrid", "averaged"):
            raise ValueError(f"view must be 'hybrid' or 'averaged', got {view!r}")
        if (variant, view) not in FORMS:
            raise ValueError(
                "variant='released' has the hybrid view only, got view='averaged'; leave view out, or take "
                "variant='paper'"
            )
        if increment is not None and (isinstance(increment, bool) or increment < 1):
            raise ValueError(f"increment must be None or a whole number of at least 1, got {increment!r}")
        self.form = FORMS[variant, view]()
        self.variant = variant
        self.increment = increment
        self.view = view
        self.patches = patches
        if depths is None:
            depths = self.form.depths if patches else ()
        self.depths = given(depths)
        self.form.check(self)
        self.ptm = ptm
        self.hidden = self.form.hidden if hidden is None else hidden
        self.scale = self.form.scale if scale is None else scale
        self.sharpness = self.form.sharpness if sharpness is None else sharpness
        self.prompts = prompts
        self.dropout = dropout
        self.heads = heads
        self.dissimilarity = dissimilarity
        self.orthogonality = orthogonality
        self.regularisation = regularisation
        self.temperature = temperature
        self.rank = rank
        self.later = self.form.later if later is None else real("later", later)
        if self.later > 1:
            raise ValueError(f"later must be from 0 to 1, got {later!r}")

    def attach(self, backbone: Backbone) -> None:
        """Make both adapters, pre and cur, and the fusion behind them."""
        self.form.check_backbone(backbone)
        adapters = adapters_for(backbone, hidden=self.hidden, dropout=self.dropout, scale=self.scale)
        super().attach(backbone)
        self.cur = nn.ModuleDict({"channel": adapters})
        self.form.insert(self)
        self.pre = copy.deepcopy(self.cur, backbone.shared()).requires_grad_(False)
        self.classifier: CosineClassifier | None = None
        self.patch_classifier: CosineClassifier | None = None
        self.anchor: nn.ModuleList | None = None

    @property
    def sections(self) -> tuple[int, ...]:
        """CLS, the mean patch and the depths of the averaged view; [PTM], pre and cur of the hybrid view."""
        return self.form.sections(self)

    def head(self) -> Head:
        """Whitened cosine; in the hybrid view prototypes, section-weighted: PTM 1.0, pre 0.3, cur 0.1."""
        return self.form.head(self)

    def train(self, mode: bool = True) -> "NTKCL":
        """Switch to training; the averaged adapters stay in evaluation mode, but for the release."""
        super().train(mode)
        if hasattr(self, "pre") and self.form.steady:
            self.pre.eval()
        return self

    def begin_task(self, task: TaskInfo) -> None:
        """Make the task's classifiers; take down the weights and the old prototypes."""
        self.tasks = task.index
        self.form.begin_task(self, len(task.classes))
        self.anchor = copy.deepcopy(self._regularised(), self.backbone.shared()).requires_grad_(False)
        self.first_target = len(task.prototypes)
        self.form.remember(self, task.prototypes.to(self.backbone.mean), len(task.classes))

    def new_classifier(self, width: int, classes: int) -> CosineClassifier:
        """Make a cosine classifier for the current task."""
        return CosineClassifier(width, classes, scale=self.sharpness).to(self.backbone.mean)

    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of the views, L_dis, L_orth and L_reg, each weighted."""
        assert self.classifier is not None
        seen = self.form.see(self, images)
        with torch.autocast(images.device.type, enabled=False):  # logarithms of sums want all bits
            terms = {}
            for name, view in seen.views.items():
                classifier = (name == "patch" and self.patch_classifier) or self.classifier
                terms[f"ce_{name}"] = F.cross_entropy(classifier(_at_least_float(view)), targets)
            features = {name: _at_least_float(rows) for name, rows in seen.features.items()}
            spans = [self.form.in_old_span(features[name], self.basis) for name in seen.clear]
            dissimilarity = self.form.dissimilarity(self, features[seen.apart], targets)
            terms["dissimilarity"] = self.dissimilarity * dissimilarity
            terms["orthogonality"] = self.orthogonality * torch.stack(spans).sum()
            terms["regularisation"] = self.regularisation * self._distance()
        return terms

    def end_task(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take cur into the mean of all tasks' adapters, and drop what the task alone needed."""
        with torch.no_grad():
            pairs = zip(self.own_parameters(self.pre), self.own_parameters(self.cur), strict=True)
            for mean, value in pairs:
                mean.lerp_(value, (self.later if self.tasks else 1) / (self.tasks + 1))
        self.classifier = self.patch_classifier = self.anchor = None
        del self.old, self.basis

    def features(self, images: Tensor) -> Tensor:
        """Averaged view, or hybrid view z_m, (B, F)."""
        return self.form.features(self, images)

    def adapted_blocks(self, parts: Sequence[Part]) -> list[nn.Module]:
        """Each block with its averaged bottleneck; the hybrid view's adapters are no part of one pass."""
        if not isinstance(self.form, OnePass):
            return super().adapted_blocks(parts)
        if not self.backbone.has_tokens:
            raise ValueError(
                f"what adapts the backbone {self.backbone.name!r} is merged into its norms, and a device "
                "cannot train on it; take train_step='head', or a Vision Transformer"
            )
        return self.form.adapted_blocks(self, parts)

    def views(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give z_c, z_p and z_m of the hybrid view, (B, F) each, of normalised images; four passes."""
        if not isinstance(self.form, FourPasses):
            raise ValueError("the averaged view has no z_c, z_p and z_m; make NTKCL(view='hybrid') for those")
        return self.form.views(self, images)

    def negatives(self, count: int) -> Tensor:
        """Rows of ``old`` that join L_dis in a step of ``count`` images, int64 (K,)."""
        return self.form.negatives(self, count)

    def _regularised(self) -> nn.ModuleList:
        return nn.ModuleList([self.cur, *([self.hybrid] if hasattr(self, "hybrid") else [])])

    def _distance(self) -> Tensor:
        """Squared distance of all weights and scales (not biases, not shifts) from those before the task."""
        assert self.anchor is not None
        current = self._regularised().named_parameters()
        return torch.stack(
            [
                (value - start).square().sum()
                for (name, value), start in zip(current, self.anchor.parameters(), strict=True)
                if value.requires_grad and name.endswith(("weight", "scale"))
            ]
        ).sum()


def _at_least_float(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
