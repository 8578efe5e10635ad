"""One volume shared by several processes (`torchrun`): each has a slab of neighbouring slices and talks to those beside it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from invsolve.contracts.through_plane import AlongRows
from invsolve.engine.processes import SingleProcess, T
from invsolve.engine.run import Run
from invsolve.errors import Unsuited, UserError
from invsolve.numerics.linalg import inner


class Slabs(SingleProcess):
    """The processes of a started `torch.distributed` group, each with its slab of every volume.

    What goes between them goes through the CPU (gloo): one slice a difference, one number an inner product.
    """

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.leads = self.rank == 0

    def bounds(self, rows: int) -> list[int]:
        """Where the slabs of a volume of so many slices begin, and its end.

        Raises:
            UserError: fewer slices than processes.
        """
        if rows < self.world:
            raise UserError(f"a volume of {rows} slices cannot be shared by {self.world} processes: start fewer")
        return [rank * rows // self.world for rank in range(self.world + 1)]

    def through_plane(self) -> AlongRows:
        return AlongSlabs(self.rank, self.world)

    def share(self, rows: int) -> slice:
        bounds = self.bounds(rows)
        return slice(bounds[self.rank], bounds[self.rank + 1])

    def gather(self, part: Tensor, rows: int) -> Tensor:
        if not self.leads:
            dist.send(_plain(part), 0)
            return part
        bounds = self.bounds(rows)
        parts = [part]
        for rank in range(1, self.world):
            like = part.new_empty(bounds[rank + 1] - bounds[rank], *part.shape[1:], device="cpu")
            received = _plain(like)
            dist.recv(received, rank)
            parts.append(_as(received, part).to(part.device))
        return torch.cat(parts)

    def any(self, flag: bool) -> bool:
        shared = torch.tensor(int(flag))
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared)

    def same(self, value: T) -> T:
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]


class AlongSlabs(AlongRows):
    """`AlongRows` of a slab: the slices at its borders come from the neighbours, inner products are summed over all.

    Every process must call each method equally often.

    Args:
        rank, world: this process and how many there are; slabs are in the order of the ranks.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def inner(self, a: Tensor, b: Tensor) -> Tensor:
        # In double precision, so that the number of slabs changes the last digits only.
        total = inner(a, b).sum(0, keepdim=True, dtype=torch.float64).cpu()
        dist.all_reduce(total)
        return total.to(a.device, a.real.dtype)

    def _has_following(self) -> bool:
        return self.rank + 1 < self.world

    def _following(self, x: Tensor) -> Tensor | None:
        return self._exchange(x[:1], self.rank - 1, self.rank + 1)

    def _preceding(self, d: Tensor) -> Tensor | None:
        return self._exchange(d[-1:], self.rank + 1, self.rank - 1)

    def _exchange(self, border: Tensor, to: int, source: int) -> Tensor | None:
        """Send a slice to one neighbour and receive that of the other, where they exist."""
        requests, received = [], None
        sent = _plain(border)
        if 0 <= to < self.world:
            requests.append(dist.isend(sent, to))
        if 0 <= source < self.world:
            received = torch.empty_like(sent)
            requests.append(dist.irecv(received, source))
        for request in requests:
            if request is not None:
                request.wait()
        return None if received is None else _as(received, border).to(border.device)


def _plain(tensor: Tensor) -> Tensor:
    """A tensor as gloo can send it: on the CPU, contiguous, as bytes."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)


def _as(received: Tensor, like: Tensor) -> Tensor:
    """Bytes as a tensor of the type of `like` and its shape beyond the rows."""
    return received.view(like.dtype).view(-1, *like.shape[1:])


class NullSink:
    """A sink for processes that do not write."""

    def is_done(self, item: int) -> bool:
        return False

    def write(self, item: int, arrays: Mapping[str, Tensor], facts: Mapping[str, float]) -> None:
        raise AssertionError("only the leading process writes")


def share_volumes(run: Run) -> None:
    """Let the processes that `torchrun` started share each volume of a run.

    Raises:
        UserError: the strategy does not couple slices, so there is nothing to share.
    """
    if not run.couples_items:
        name = run.strategy.name or type(run.strategy).__name__
        raise Unsuited(
            f"several processes share a volume, but strategy {name!r} reconstructs items one by one: start it without "
            "torchrun, or take a strategy that couples slices",
            lambda other: bool(getattr(other, "couples_items", False)),
        )
    if run.options.planes != 1:
        raise UserError("planes=3 needs the whole volume in one process: start it without torchrun, or with planes=1")
    noise = run.measurement.noise
    if noise is not None and noise.differs_within(run.measurement.y[:1].ndim):
        # What the slices are divided by is the norm of all of them, which one process does not see.
        raise UserError(
            "noise that differs by entry and by slice needs the whole volume in one process: start it without torchrun"
        )
    processes = Slabs()
    for volume in run.volumes:
        processes.bounds(len(volume))
    run.processes = processes
