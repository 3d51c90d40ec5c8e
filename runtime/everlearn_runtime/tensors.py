"""Pictures as torch has them, channels first; torch itself is never imported here."""

from __future__ import annotations

import sys
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray


def is_tensor(image: object) -> TypeGuard[Any]:
    """Whether this is a torch tensor; where torch has not been imported, nothing is."""
    module = sys.modules.get("torch")
    tensor = getattr(module, "Tensor", None)
    return isinstance(tensor, type) and isinstance(image, tensor)


def pictures_of(images: Any) -> Any:
    """The single pictures in a tensor, one after the other.

    Args:
        images: (H, W), (1, H, W) or (3, H, W), which are one; (B, 1, H, W) or (B, 3, H, W).

    Raises:
        ValueError: Another shape.
    """
    shape = tuple(images.shape)
    if len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3)):
        return [images]
    if len(shape) == 4 and shape[1] in (1, 3):
        return images
    raise ValueError(
        f"the images are a tensor of shape {shape}; give (B, 3, H, W) or (B, 1, H, W), and one picture as "
        "(3, H, W), (1, H, W) or (H, W): with channels last as images.permute(0, 3, 1, 2)"
    )


def pixels_of(tensor: Any) -> NDArray[Any]:
    """One picture's pixels, channels last; those that ``ToTensor`` has divided by 255 as they were, uint8.

    Raises:
        ValueError: The tensor has no numbers to be read, as on the device "meta".
    """
    try:
        if hasattr(tensor, "detach"):
            tensor = tensor.detach().cpu()
            tensor = tensor.float() if tensor.is_floating_point() else tensor  # numpy has no bfloat16
        array: NDArray[Any] = tensor.numpy()
    except Exception as error:
        raise ValueError(f"the tensor cannot be read ({type(error).__name__}: {error})") from error
    if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
        array = np.rint(array * 255).astype(np.uint8)
    return array.transpose(1, 2, 0) if array.ndim == 3 else array
