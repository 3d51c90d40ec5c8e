"""Several processes that train one learner: whatever knows of them is here.

``accelerate launch`` (or ``torchrun``) starts one program several times, one process a GPU. Each
takes its share of every step's batch, and of the images whose features the head learns from;
gradients are averaged and features handed round, so that all hold the same learner at any time.
The first, the main process, alone writes files and prints. Without a launcher there is one
process, and nothing here does anything.

All processes have to call the same methods of the learner, in the same order, with the same data.
"""

import atexit
import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from everlearn.errors import ElsewhereError
from everlearn_runtime.errors import MissingExtra

Item = TypeVar("Item")

_depth = 0  # how many `together` blocks this process is in


def join(device: str | torch.device | None = None) -> torch.device:
    """Join the processes that were launched with this one, if any, and give this one's device.

    Args:
        device: None takes CUDA where there is one, otherwise the CPU. With several processes
            each has a GPU of its own, unless the device has a number (``"cuda:1"``).

    Raises:
        ValueError: for a device that cannot be used here.
        MissingExtra: when there are several processes but no accelerate.
    """
    chosen = _parsed(device)
    if _launched() and not _joined():
        if not find_spec("accelerate"):
            raise MissingExtra("training with several processes", "train")
        # Only here: one process needs no accelerate. It knows which kind of device talks through
        # which backend; all that follows is torch's own.
        from accelerate import PartialState

        state = PartialState(cpu=chosen.type == "cpu")
        atexit.register(_leave)
        if chosen.type == state.device.type and chosen.index is None:
            chosen = torch.device(state.device)
    _check(chosen)
    if _launched() and not _joined():
        raise ValueError(f"several processes cannot train on {str(chosen)!r}; take 'cuda' or 'cpu'")
    return chosen


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """Which one of them this is, from 0."""
    if _joined():
        return dist.get_rank()
    return int(os.environ["RANK"]) if _launched() else 0  # what goes wrong before is said once, too


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def key() -> tuple[int, ...]:
    """What to seed with beside the rest, where every process should draw other numbers.

    Nothing in the main process, so that one process draws what it would draw without this.
    """
    return () if is_main() else (rank(),)


def share(items: Sequence[Item]) -> Sequence[Item]:
    """Give this process's part: all parts one after the other, by rank, are all items."""
    if count() == 1:
        return items
    return items[_start(len(items), rank()) : _start(len(items), rank() + 1)]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Let all processes leave this block the same way, at the same time.

    When one raises, so do all: those that have no error of their own an `ElsewhereError` that
    quotes the first that has. They learn of it when they meet it next, in any function here that
    exchanges something. So none waits for ever for one that has stopped, as long as that one can
    still say so.
    """
    global _depth
    _depth += 1
    try:
        yield
        wait()
    except ElsewhereError:
        raise  # everyone knows
    except BaseException as error:
        if _depth == 1 and count() > 1:
            with contextlib.suppress(RuntimeError):  # the connection may be what failed
                _tell(error)
        raise
    finally:
        _depth -= 1


def wait() -> None:
    """Wait until all processes are here, well; `ElsewhereError` when one is not."""
    if count() > 1:
        _tell(None)


def agree(value: bytes, what: str) -> None:
    """Check that all processes have the same: ``ValueError``, that names ``what``, in one that has not."""
    if count() == 1:
        return
    wait()
    main = torch.tensor(list(value), dtype=torch.uint8, device=_wire())
    dist.broadcast(main, 0)
    if bytes(main.tolist()) != value:
        raise ValueError(
            f"{what} are not those of the main process; every process has to be given the same, in the "
            "same order: seed whatever draws or shuffles them"
        )


def mean_gradients(parameters: Sequence[nn.Parameter], weight: float) -> None:
    """Replace every gradient by its mean over the processes, as one vector.

    Not DistributedDataParallel: it averages what goes through a module's ``forward``, and methods
    have a ``loss`` with as many passes as they like, and parameters that a step may leave out.

    Args:
        parameters: all of which have a gradient; the same in every process.
        weight: of this process in the mean, the number of its images.
    """
    if count() == 1:
        return
    wait()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    mine = parameters_to_vector(gradients)
    total = torch.cat([mine * weight, mine.new_tensor([weight])]).to(_wire())
    dist.all_reduce(total)
    vector_to_parameters((total[:-1] / total[-1]).to(mine.device), gradients)


def gather(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the rows of all processes, (sum of all N, F), by rank, from each one's (N, F)."""
    if count() == 1:
        return rows
    wait()
    sizes = torch.zeros(count(), dtype=torch.int64, device=_wire())
    sizes[rank()] = len(rows)
    dist.all_reduce(sizes)
    parts = []
    for source, size in enumerate(sizes.tolist()):
        part = torch.from_numpy(rows) if source == rank() else torch.empty(size, rows.shape[1])
        part = part.to(_wire())
        dist.broadcast(part, source)
        parts.append(part.cpu().numpy())
    return np.concatenate(parts)


def same(tensors: Iterable[Tensor]) -> None:
    """Put the main process's values into the tensors of all.

    They would be the same anyway, but for kernels that round differently each time, and for what
    a method works out from its share of the images, such as running means.
    """
    if count() == 1:
        return
    wait()
    for tensor in tensors:
        value = tensor.detach().to(_wire()).contiguous()
        dist.broadcast(value, 0)
        tensor.detach().copy_(value)


@contextlib.contextmanager
def main_prints() -> Iterator[None]:
    """Throw away what other processes than the main one print in this block."""
    if is_main():
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _tell(error: BaseException | None) -> None:
    """Say whether this process has failed, hear it of the others, and raise if one of them has."""
    said = f"process {rank()} stopped: {type(error).__name__}: {error}".encode() if error else b""
    lengths = torch.zeros(count(), dtype=torch.int64, device=_wire())
    lengths[rank()] = len(said)
    dist.all_reduce(lengths)
    for source, length in enumerate(lengths.tolist()):
        if length:
            heard = torch.empty(length, dtype=torch.uint8, device=_wire())
            if source == rank():
                heard = torch.tensor(list(said), dtype=torch.uint8, device=_wire())
            dist.broadcast(heard, source)
            if error is None:
                raise ElsewhereError(bytes(heard.tolist()).decode())
            return


def _start(size: int, part: int) -> int:
    """Where a part begins; the first ones have one item more where they are not equal."""
    return part * (size // count()) + min(part, size % count())


def _launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and {"RANK", "LOCAL_RANK"} <= os.environ.keys()


def _wire() -> torch.device:
    """Where a tensor has to be to travel."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _leave() -> None:
    if _joined():
        dist.destroy_process_group()


def _parsed(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise _unusable(device, error) from error


def _check(device: torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter by a torch built without CUDA
        raise _unusable(device, error) from error


def _unusable(device: str | torch.device, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0]
    return ValueError(f"device={str(device)!r} cannot be used here ({reason}); leave it out, or take 'cpu'")
