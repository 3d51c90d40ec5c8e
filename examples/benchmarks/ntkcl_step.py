"""Time a training step of NTK-CL beside the plain form: four whole passes, one after the other.

    python examples/benchmarks/ntkcl_step.py [--batch 32] [--repeats 7] [--threads 1]

It takes the bundled ViT-Tiny at 64 px with 50 old classes and prints, for each form, the median
of repeats that take turns, and how many times the first form's time that is. A step is the loss
and its gradients; the optimizer is the same for all and left out. "ours" computes the gradients of
the first form; the one-pass form (the default view) is another loss, shown beside it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from everlearn import NTKCL, load_backbone
from everlearn.adapters.prompt import insert, strip
from everlearn.methods.base import TaskInfo

OLD, NEW = 50, 10


class FourPasses(NTKCL):
    """The same method without any sharing: a pass over all blocks for each branch, an SVD a step."""

    def views(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z_c, z_p and z_m, as `NTKCL.views`."""
        before = [self.backbone.features(images)] if self.ptm else []
        channel = [*before, *(self._channel_pass(images, part["channel"]) for part in (self.pre, self.cur))]
        patch = [*before, *(self._patch_pass(images, part["patch"]) for part in (self.pre, self.cur))]
        z_c, z_p = torch.cat(channel, 1), torch.cat(patch, 1)
        fused: Tensor = self.hybrid(
            *(view.reshape(len(images), -1, self.hybrid.width) for view in (z_c, z_p))
        )
        return z_c, z_p, fused.flatten(1)

    def loss(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The same terms, after the SVD that the released code makes in each forward pass."""
        torch.linalg.svd(self.old.T, full_matrices=False)
        return super().loss(images, targets)

    def _channel_pass(self, images: Tensor, adapters: nn.Module) -> Tensor:
        x = self.backbone.embed(images)
        for block, adapter in zip(self.backbone.blocks(), adapters.children(), strict=True):
            h = x + block.ls1(block.attn(block.norm1(x)))
            x = h + block.ls2(block.mlp(block.norm2(h))) + adapter(h)
        return self.backbone.pool(x)

    def _patch_pass(self, images: Tensor, generators: nn.Module) -> Tensor:
        x, at, count = self.backbone.embed(images), self.backbone.prefix, self.prompts
        old: Tensor | None = None
        for block, generate in zip(self.backbone.blocks(), generators.children(), strict=True):
            h = x + block.ls1(block.attn(block.norm1(x)))
            if old is None:
                old = h.new_zeros(len(h), count, h.shape[2])
                prompts = generate(h)
            else:
                h, old = strip(h, count, at)
                prompts = generate(h) + 0.1 * old
            x = insert(h, old, at) + block.ls2(block.mlp(block.norm2(insert(h, prompts, at))))
        return self.backbone.pool(strip(x, count, at)[0])


def method(kind: type[NTKCL], view: str = "hybrid") -> NTKCL:
    torch.manual_seed(0)
    backbone = load_backbone()
    backbone.fuse_attention(False)
    made = kind(view=view)
    made.attach(backbone)
    prototypes = torch.randn(OLD, sum(made.sections))
    made.begin_task(
        TaskInfo(1, tuple(map(str, range(NEW))), tuple(f"old {i}" for i in range(OLD)), prototypes)
    )
    made.train()
    return made


def step(made: NTKCL, images: Tensor, targets: Tensor, bf16: bool = False) -> Callable[[], None]:
    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            terms = made.loss(images, targets)
        made.zero_grad()
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a training step of NTK-CL.")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images, targets = torch.randn(options.batch, 3, 64, 64), torch.arange(options.batch) % NEW

    everywhere = method(FourPasses)
    everywhere.pre.requires_grad_(True)
    ours = method(NTKCL)
    one_pass = method(NTKCL, "averaged")
    forms: dict[str, Any] = {
        "four passes, gradients through all": step(everywhere, images, targets),
        "four passes, none through the averaged": step(method(FourPasses), images, targets),
        "four passes, none through the averaged, bf16": step(method(FourPasses), images, targets, bf16=True),
        "ours": step(ours, images, targets),
        "ours, bf16": step(ours, images, targets, bf16=True),
        "the one-pass form": step(one_pass, images, targets),
        "the one-pass form, bf16": step(one_pass, images, targets, bf16=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for run in forms.values():
        run()
    for _ in range(options.repeats):
        for name, run in forms.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    first = statistics.median(seconds["four passes, gradients through all"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:<46} {median:7.3f} s  {first / median:5.2f} times as fast")


if __name__ == "__main__":
    main()
