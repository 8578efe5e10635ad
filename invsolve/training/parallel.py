"""One process or several (`torchrun`): who this one is, and what they must agree on."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from invsolve.errors import UserError


@dataclass(frozen=True)
class Team:
    """The processes of a training; alone unless started by `torchrun`.

    Attributes:
        rank: of this process; the one with rank 0 writes and speaks.
        world: how many there are.
        device: of this process.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, with gradients averaged over the processes when there are several."""
        if self.world == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids)

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over the processes."""
        if self.world == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return shared.tolist()

    def mean(self, value: float) -> float:
        """The average of a value over the processes."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(shared)
        return float(shared) / self.world

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            self.largest(0.0)

    def leave(self) -> None:
        """End the co-operation."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def rank() -> int:
    """The rank that `torchrun` gave this process; 0 when it did not start it."""
    return int(os.environ.get("RANK", "0"))


def started_together() -> bool:
    """Whether `torchrun` started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def place_of(device: str | None) -> torch.device:
    """A device by name; None takes a GPU when there is one.

    Raises:
        UserError: it cannot be used.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(name)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return place


def join(device: str | None) -> Team:
    """Meet the other processes, on a device of one's own.

    Raises:
        UserError: the device cannot be used.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if world > 1 and name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    place = place_of(name)
    if world > 1:
        if place.type == "cuda":
            torch.cuda.set_device(place)
        # Gloo for the few numbers that live on the CPU, so that agreeing on them does not stop the GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    return Team(rank(), world, place)
