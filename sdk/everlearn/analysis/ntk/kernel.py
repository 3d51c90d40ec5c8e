"""The empirical neural tangent kernel of a method's adapters, in bounded memory."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from everlearn.methods.base import Features, Method

Gradients = dict[str, Tensor]


def ntk(
    method: Method,
    a: Tensor,
    b: Tensor | None = None,
    *,
    parameters: Sequence[str] | Callable[[str], bool] | None = None,
    readouts: int | Tensor | None = None,
    seed: int = 0,
    chunk: int = 16,
    memory: int = 2**28,
    progress: bool | None = False,
) -> NDArray[np.float64]:
    """Kernel between images, of what a method's features do when its adapters move.

    A kernel belongs to a function with one output, and features have F outputs. So the features f
    are read out along unit vectors u_k, and the kernel is the mean over these readouts,
    ``Phi(x, x') = 1/K sum_k <grad (u_k . f)(x), grad (u_k . f)(x')>``:

    - ``readouts=None``: exact over all outputs, ``1/F tr(J(x) J(x')^T)``; F backward passes an image.
    - ``readouts=K``: K random orthonormal directions drawn with ``seed``; K passes an image. An
      unbiased estimate of the exact one, still positive semi-definite, and exact at K = F.
    - a tensor (K, F): exactly these, such as the rows of a classifier.

    Gradients have the precision of the parameters, their products are summed in float64.

    Args:
        method: an attached method; it is looked at in evaluation mode, and left as it was.
        a: normalised images (A, 3, H, W), as `Method.features` takes them.
        b: normalised images (B, 3, H, W); ``a`` itself when left out.
        parameters: names of parameters, or a function that says of a name whether to take it. By
            default those of `adapters`: all that the features depend on, trained at the moment or not.
        readouts: see above.
        seed: of random readouts.
        chunk: images in a pass; more is faster and takes more memory for activations.
        memory: bytes of gradients to hold at once. When all do not fit, passes are made again
            instead. Neither this nor ``chunk`` changes the result beyond rounding.
        progress: show a progress bar; None shows it where there is a terminal.

    Returns:
        Float64 (A, B), symmetric to the bit when ``b`` is left out.

    Raises:
        ValueError: when there is nothing to differentiate by, or an argument is out of range.

    Source: Jacot et al., "Neural Tangent Kernel", NeurIPS 2018; arXiv 2407.17120. On
    one kernel for many outputs, Mohamadi et al., "A Fast, Well-Founded Approximation to the Empirical
    Neural Tangent Kernel", ICML 2023.
    """
    for argument, value in (("chunk", chunk), ("memory", memory)):
        if value < 1:
            raise ValueError(f"{argument} is {value}; expected a whole number of at least 1")
    for argument, images in (("a", a), ("b", a if b is None else b)):
        if images.ndim != 4 or not len(images):
            raise ValueError(
                f"{argument} has shape {tuple(images.shape)}; expected normalised images (N, 3, H, W), N >= 1"
            )
    training = method.training
    method.eval()
    try:
        names = _chosen(method, a, parameters)
        directions = _directions(method, a, readouts, seed)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels know no vmap
            return _kernel(method, names, directions, a, b, chunk, memory, progress)
    finally:
        method.train(training)


def adapters(method: Method, images: Tensor) -> tuple[str, ...]:
    """Name the parameters beside the backbone that the features depend on.

    Also those that are not trained at the moment, such as the averaged adapters behind
    NTK-CL's averaged view; not those that only the loss uses.

    Args:
        method: an attached method.
        images: normalised images (N, 3, H, W); the first one is looked at.
    """
    values = {
        name: value.detach().clone().requires_grad_()
        for name, value in method.named_parameters()
        if not name.startswith("backbone.")
    }
    if not values:
        return ()
    with torch.enable_grad():
        features = _call(method, values, images[:1]).sum()
        if not features.requires_grad:
            return ()
        found = torch.autograd.grad(features, list(values.values()), allow_unused=True)
    return tuple(name for name, gradient in zip(values, found, strict=True) if gradient is not None)


def _call(method: Method, values: Gradients, images: Tensor) -> Tensor:
    named = {f"method.{name}": value for name, value in values.items()}
    features: Tensor = functional_call(Features(method), named, (images,))
    return features


def _chosen(
    method: Method, images: Tensor, parameters: Sequence[str] | Callable[[str], bool] | None
) -> tuple[str, ...]:
    known = [name for name, _ in method.named_parameters()]
    if parameters is None:
        names = adapters(method, images)
    elif callable(parameters):
        names = tuple(name for name in known if parameters(name))
    else:
        names = tuple(parameters)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(
            f"{type(method).__name__} has no parameter {unknown[0]!r}; "
            "take names from method.named_parameters()"
        )
    if not names:
        raise ValueError(
            f"{type(method).__name__} has no parameter that this kernel could be of: none was chosen, or its "
            "features depend on none; for a head on frozen features the kernel is features @ features.T"
        )
    return names


def _directions(method: Method, images: Tensor, readouts: int | Tensor | None, seed: int) -> Tensor:
    """Readouts (K, F) on the images' device."""
    with torch.no_grad():
        probe = method.features(images[:1])
    width = probe.shape[1]
    if isinstance(readouts, Tensor):
        if readouts.ndim != 2 or readouts.shape[1] != width or not len(readouts):
            raise ValueError(f"readouts have shape {tuple(readouts.shape)}; expected (K, {width}), K >= 1")
        return readouts.detach().to(probe)
    if readouts is None:
        return torch.eye(width).to(probe)
    if not 1 <= readouts <= width:
        raise ValueError(f"readouts is {readouts}; expected 1 to {width}, the width of the features, or None")
    normal = np.random.default_rng(seed).standard_normal((width, readouts))
    basis, triangle = np.linalg.qr(normal)
    return torch.from_numpy((basis * np.sign(np.diag(triangle))).T.copy()).to(probe)


def _kernel(
    method: Method,
    names: tuple[str, ...],
    directions: Tensor,
    a: Tensor,
    b: Tensor | None,
    chunk: int,
    memory: int,
    progress: bool | None,
) -> NDArray[np.float64]:
    values = {name: method.get_parameter(name).detach() for name in names}
    rows = max(memory // sum(value.nbytes for value in values.values()), 1)
    images = len(a) if b is None else max(len(a), len(b))
    sides = 1 if b is None and rows >= images else 2
    group = min(len(directions), max(rows // (sides * images), 1))
    block = max(min(images, rows // (sides * group)), 1)
    lefts = list(_starts(len(a), block))
    rights = lefts if b is None else list(_starts(len(b), block))
    other = a if b is None else b
    passes = len(lefts) * (len(lefts) + 1) // 2 if b is None else len(lefts) * (1 + len(rights))
    kernel = np.zeros((len(a), len(other)))
    quiet = None if progress is None else not progress
    with tqdm(
        total=passes * -(-len(directions) // group), desc="kernel", unit="block", disable=quiet, leave=False
    ) as bar:
        for part in torch.split(directions, group):

            def gradients(images: Tensor, part: Tensor = part) -> Gradients:
                bar.update()
                return _gradients(method, values, images, part, chunk)

            for number, left in enumerate(lefts):
                rows_left = gradients(a[left])
                for right in rights[number:] if b is None else rights:
                    same = b is None and right == left
                    rows_right = rows_left if same else gradients(other[right])
                    kernel[left, right] += _products(rows_left, rows_right)
    kernel /= len(directions)
    if b is None:
        for number, left in enumerate(lefts):
            for right in rights[number + 1 :]:
                kernel[right, left] = kernel[left, right].T
        kernel = (kernel + kernel.T) / 2
    return kernel


def _starts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _gradients(
    method: Method, values: Gradients, images: Tensor, directions: Tensor, chunk: int
) -> Gradients:
    """Gradients of each image's readouts, (N, K, p) for each parameter of size p."""

    def of_one(image: Tensor) -> Gradients:
        pull = vjp(lambda given: _call(method, given, image[None])[0], values)[1]
        pulled: Gradients = vmap(lambda direction: pull(direction)[0])(directions)
        return pulled

    parts = [vmap(of_one)(part) for part in torch.split(images, chunk)]
    return {name: torch.cat([part[name].flatten(2) for part in parts]) for name in values}


def _products(left: Gradients, right: Gradients) -> NDArray[np.float64]:
    """Inner products (A, B), summed over parameters and readouts."""
    total = sum(left[name].flatten(1).double() @ right[name].flatten(1).double().T for name in left)
    assert isinstance(total, Tensor)
    products: NDArray[np.float64] = total.cpu().numpy()
    return products
