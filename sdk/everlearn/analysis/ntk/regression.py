"""Continual learning as kernel regression: task after task, each anchored at the one before.

With a kernel over the images of all tasks, everything that ridge regression with L2 to the
previous parameters will do is known without training. Points are rows of the kernel, and
``tasks[i]`` says to which task point i belongs, from 0 in the order of learning; points of task
-1 are looked at only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Regression:
    """What sequential kernel regression learned; N points, T tasks, C outputs.

    Attributes:
        functions: float64 (T + 1, N, C), the function on all points before the first task and
            after each.
        own: float64 (N, C), the residual that a task leaves on its own points; 0 for points of
            no task.
        interference: float64 (N, C), what later tasks added on a task's points.
    """

    functions: Floats
    own: Floats
    interference: Floats

    @property
    def residuals(self) -> Floats:
        """Targets less the last function, (N, C), by the residual identity: own - interference."""
        return self.own - self.interference


def regress(
    kernel: ArrayLike,
    tasks: Sequence[int] | NDArray[np.integer],
    targets: ArrayLike,
    regularisation: float | Sequence[float],
    start: ArrayLike | None = None,
) -> Regression:
    """Learn the tasks one after another, in closed form.

    Task t is least squares with the penalty ``lambda |theta - theta_{t-1}|^2``, which gives
    ``f_t(x) = f_{t-1}(x) + Phi(x, X_t) (Phi_tt + lambda I)^-1 (Y_t - f_{t-1}(X_t))``. Write ``d_t``
    for the difference in the last bracket. The residual on task t after all tasks is then
    ``lambda (Phi_tt + lambda I)^-1 d_t - sum_{k > t} Phi_tk (Phi_kk + lambda I)^-1 d_k``. The first
    term is what the task leaves of its own, the sum is the interference of later tasks.

    Args:
        kernel: (N, N), symmetric and positive semi-definite.
        tasks: N task numbers; 0 to T - 1 must all occur, and -1 may.
        targets: (N, C); rows of task -1 are not used.
        regularisation: lambda > 0, one for all or one for each task.
        start: (N, C), the function before the first task; zero when left out.

    Raises:
        ValueError: when shapes do not fit, numbers are not finite, or lambda is not above 0.

    Source: arXiv 2407.17120, the analysis of its NTK dynamics.

    >>> first, second = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]
    >>> [regress(k, [0, 1], [[1], [-1]], 1.0).interference[0].tolist() for k in (first, second)]
    [[0.0], [-0.75]]
    """
    matrix, numbers = check_kernel(kernel, tasks)
    wanted = check_targets(targets, len(matrix))
    count = int(numbers.max()) + 1
    ridges = check_regularisation(regularisation, count)
    function = np.zeros_like(wanted) if start is None else check_targets(start, len(matrix), "start").copy()
    if function.shape != wanted.shape:
        raise ValueError(f"start has shape {function.shape}, targets {wanted.shape}; expected the same")
    functions, own, interference = [function.copy()], np.zeros_like(wanted), np.zeros_like(wanted)
    for task, ridge in enumerate(ridges):
        here, earlier = numbers == task, (numbers >= 0) & (numbers < task)
        block = matrix[np.ix_(here, here)] + ridge * np.eye(here.sum())
        coefficients = np.linalg.solve(block, wanted[here] - function[here])
        change = matrix[:, here] @ coefficients
        own[here] = ridge * coefficients
        interference[earlier] += change[earlier]
        function = function + change
        functions.append(function)
    return Regression(np.stack(functions), own, interference)


def block_norms(kernel: ArrayLike, tasks: Sequence[int] | NDArray[np.integer]) -> Floats:
    """Root mean squared kernel entry between each two tasks, (T, T).

    On the diagonal, pairs of an image with itself are left out where a task has two images
    or more: they say nothing of other images, and would weigh more the fewer images there are.
    """
    matrix, numbers = check_kernel(kernel, tasks)
    count = int(numbers.max()) + 1
    norms = np.empty((count, count))
    for one in range(count):
        for other in range(count):
            squares = matrix[np.ix_(numbers == one, numbers == other)] ** 2
            if one == other and len(squares) > 1:
                squares = squares[~np.eye(len(squares), dtype=bool)]
            norms[one, other] = np.sqrt(squares.mean())
    return norms


def orthogonality(kernel: ArrayLike, tasks: Sequence[int] | NDArray[np.integer]) -> Floats:
    """How far apart the gradients of two tasks lie: (T, T), 0 the same directions, 1 orthogonal.

    It is ``1 - |Phi_tk|^2 / (|Phi_tt| |Phi_kk|)`` with the norms of `block_norms`, cut to [0, 1]:
    one less the cosine between the second moments of the two tasks' gradients, as their images
    estimate it. Natural images of any kind share much of their gradients, so real tasks lie near
    0. To see the rest, subtract the row and column means of the kernel first.

    >>> orthogonality(np.diag([1.0, 2.0]), [0, 1]).round(2).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    norms = block_norms(kernel, tasks)
    scale = np.sqrt(np.outer(np.diag(norms), np.diag(norms)))
    with np.errstate(invalid="ignore", divide="ignore"):
        alignment = np.where(norms > 0, (norms / scale) ** 2, 0.0)
    np.fill_diagonal(alignment, 1.0)
    apart: Floats = 1 - np.clip(alignment, 0, 1)
    return apart


def check_kernel(
    kernel: ArrayLike, tasks: Sequence[int] | NDArray[np.integer]
) -> tuple[Floats, NDArray[np.int64]]:
    """Give both as arrays; ``ValueError`` when they are no kernel over all points and no tasks."""
    matrix, numbers = np.asarray(kernel, dtype=np.float64), np.asarray(tasks)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"the kernel has shape {matrix.shape}; expected (N, N), N >= 1")
    if not np.isfinite(matrix).all() or not np.allclose(matrix, matrix.T, atol=1e-8 * np.abs(matrix).max()):
        raise ValueError("the kernel is not symmetric or not finite; expected that of points with themselves")
    if numbers.shape != (len(matrix),) or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"tasks are {numbers.dtype} {numbers.shape}; expected {len(matrix)} whole numbers, one a point"
        )
    if numbers.max() < 0:
        raise ValueError("all points are of task -1; expected at least one task")
    if set(numbers.tolist()) - {-1} != set(range(int(numbers.max()) + 1)):
        raise ValueError(
            f"tasks are {sorted(set(numbers.tolist()))}; expected all of 0 to T - 1 (and -1 for no task)"
        )
    return matrix, numbers.astype(np.int64)


def check_targets(targets: ArrayLike, points: int, name: str = "targets") -> Floats:
    """Give targets as float64 (N, C); ``ValueError`` when they are not."""
    values = np.asarray(targets, dtype=np.float64)
    if values.ndim != 2 or len(values) != points or not np.isfinite(values).all():
        raise ValueError(f"{name} have shape {values.shape}; expected finite numbers ({points}, C)")
    return values


def check_regularisation(regularisation: float | Sequence[float], tasks: int) -> Floats:
    """Give one lambda for each task, (T,); ``ValueError`` when they are not finite and above 0."""
    ridges = np.asarray(regularisation, dtype=np.float64)
    if ridges.shape not in ((), (tasks,)) or not (np.isfinite(ridges) & (ridges > 0)).all():
        raise ValueError(
            f"regularisation is {regularisation}; expected a finite number above 0, or one for each of "
            f"{tasks} tasks"
        )
    return np.broadcast_to(ridges, (tasks,))
