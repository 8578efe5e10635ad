"""Policies: fixed orders of acquisition, and those that follow what the particles do not agree on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from invsolve.contracts.acquisition import Knowledge, Policy
from invsolve.errors import UserError, suggestion

_GOLDEN = (math.sqrt(5) - 1) / 2


def _in_order(order: Sequence[int] | Tensor, knowledge: Knowledge, count: int) -> list[int]:
    """The first groups of an order that were not acquired."""
    numbers = order.tolist() if isinstance(order, Tensor) else list(order)
    return [g for g in dict.fromkeys(numbers) if not knowledge.acquired[g]][:count]


@dataclass(frozen=True)
class Random(Policy):
    """All groups alike, in an order drawn once from the seed."""

    name: ClassVar[str] = "random"

    def ask(self, knowledge: Knowledge, count: int) -> Sequence[int]:
        generator = torch.Generator().manual_seed(knowledge.seed)
        return _in_order(torch.randperm(knowledge.groups, generator=generator), knowledge, count)


@dataclass(frozen=True)
class VariableDensity(Policy):
    """Drawn from the seed, denser at the middle group: weight (1 - |distance|)^power, distance 1 at the ends (Lustig 2007)."""

    name: ClassVar[str] = "variable-density"
    power: float = 3.0

    def ask(self, knowledge: Knowledge, count: int) -> Sequence[int]:
        groups = knowledge.groups
        distance = (torch.arange(groups, dtype=torch.float64) - groups // 2).abs() / (groups // 2 + 1)
        generator = torch.Generator().manual_seed(knowledge.seed)
        # Efraimidis and Spirakis 2006: drawing without replacement by weight is sorting by -log(u) / weight.
        keys = -torch.rand(groups, generator=generator, dtype=torch.float64).log() / (1 - distance) ** self.power
        return _in_order(keys.argsort(), knowledge, count)


@dataclass(frozen=True)
class CentreOut(Policy):
    """From the middle group outwards, to the left and to the right by turns: low frequencies first."""

    name: ClassVar[str] = "centre-out"

    def ask(self, knowledge: Knowledge, count: int) -> Sequence[int]:
        middle = knowledge.groups // 2
        order = sorted(range(knowledge.groups), key=lambda group: (abs(group - middle), group > middle))
        return _in_order(order, knowledge, count)


@dataclass(frozen=True)
class Uniform(Policy):
    """Each next group halves the widest gap between those before: about evenly spread whenever it ends (van der Corput)."""

    name: ClassVar[str] = "uniform"

    def ask(self, knowledge: Knowledge, count: int) -> Sequence[int]:
        groups = knowledge.groups
        bits = max(groups - 1, 1).bit_length()
        order = [int(format(k, f"0{bits}b")[::-1], 2) * groups >> bits for k in range(2**bits)]
        return _in_order(order, knowledge, count)


@dataclass(frozen=True)
class GoldenAngle(Policy):
    """Steps of the golden ratio of all groups (Winkelmann 2007): for angles, about evenly spread whenever it ends."""

    name: ClassVar[str] = "golden-angle"

    def ask(self, knowledge: Knowledge, count: int) -> Sequence[int]:
        groups = knowledge.groups
        # Steps that are rounded may fall on a group twice and leave one out for long; the rest comes in order.
        order = [math.floor(groups * ((k * _GOLDEN) % 1)) for k in range(4 * groups)]
        return _in_order([*order, *range(groups)], knowledge, count)


@dataclass(frozen=True)
class _Adaptive(Policy):
    """Greedy by a score per group and unit of cost; for several groups at once the particles are conditioned on each pick.

    Conditioning is that of Gaussian particles on a measurement of the picked group, deviations D -> T D with
    T = (1 + Z Z')^-1/2, Z the deviations there (the square-root form of the ensemble Kalman filter: Bishop 2001).
    """

    particles: ClassVar[bool] = True

    def ask(self, knowledge: Knowledge, count: int) -> Sequence[int]:
        deviations, index = knowledge.deviations(), knowledge.entry_groups()
        open_ = ~knowledge.acquired
        picked: list[int] = []
        while len(picked) < count and bool(open_.any()):
            score = self.score(deviations, index, knowledge.groups) / knowledge.costs.to(deviations.device)
            best = int(torch.where(open_.to(score.device), score, -math.inf).argmax())
            picked.append(best)
            open_[best] = False
            inside = deviations[:, index == best]
            values, vectors = torch.linalg.eigh(inside @ inside.T)
            root = vectors * (1 + values.clamp_min(0)).rsqrt()
            deviations = root @ (vectors.T @ deviations)
        return picked

    def score(self, deviations: Tensor, index: Tensor, groups: int) -> Tensor:
        """(groups,), what measuring each would bring."""
        raise NotImplementedError


def _summed(values: Tensor, index: Tensor, groups: int) -> Tensor:
    """Sum values (..., entries) over each group: (..., groups)."""
    kept = torch.where(index >= 0, values, 0.0)
    return values.new_zeros(*values.shape[:-1], groups).index_add_(-1, index.clamp_min(0), kept)


@dataclass(frozen=True)
class Variance(_Adaptive):
    """The group of the largest summed variance of the particles' predictions: the limit of `ads` for wide Gaussians."""

    name: ClassVar[str] = "variance"

    def score(self, deviations: Tensor, index: Tensor, groups: int) -> Tensor:
        return _summed(deviations.square().sum(0), index, groups)


@dataclass(frozen=True)
class Entropy(_Adaptive):
    """The score of active diffusion subsampling (Nolan 2024): the entropy of a Gaussian mixture around the particles.

    H_g = -(1/N) sum_i ln (1/N) sum_j exp(-d_ij^2 / 2 width^2), d_ij the distance of two particles in group g (Hershey & Olsen
    2007), in log space.

    Args:
        width: standard deviation of the mixture's Gaussians, in units of the rms distance over all groups; the published one
            is a constant in the data's own units.
    """

    name: ClassVar[str] = "ads"
    width: float = 1.0

    def score(self, deviations: Tensor, index: Tensor, groups: int) -> Tensor:
        count = len(deviations)
        rows = deviations * max(count - 1, 1) ** 0.5
        squared = torch.stack([_summed((rows - row).square(), index, groups) for row in rows])
        width = self.width * squared.mean().sqrt().clamp_min(1e-12)
        return -(torch.logsumexp(-squared / (2 * width**2), 1) - math.log(count)).mean(0)


@dataclass(frozen=True)
class Information(_Adaptive):
    """Greedy log-determinant: the information about the image that a group brings, of Gaussian particles and the noise.

    ln det(1 + C_g) / 2, C_g the particles' covariance in group g in units of the noise's variance, conditioned on the picks
    before. Exact for a Gaussian posterior as particles grow; with N particles C_g has rank N - 1.
    """

    name: ClassVar[str] = "information"

    def score(self, deviations: Tensor, index: Tensor, groups: int) -> Tensor:
        inner = [deviations[:, index == group] for group in range(groups)]
        one = torch.eye(len(deviations), dtype=deviations.dtype, device=deviations.device)
        return torch.stack([torch.linalg.slogdet(one + z @ z.T)[1] / 2 for z in inner])


POLICIES: dict[str, type[Policy]] = {
    cls.name: cls for cls in (Entropy, Information, Variance, CentreOut, Uniform, Random, VariableDensity, GoldenAngle)
}


def policy(given: Policy | str, **parameters: Any) -> Policy:
    """A policy, from itself or from its name and parameters.

    Raises:
        UserError: no such policy, or a parameter that it does not have.
    """
    if isinstance(given, Policy):
        return given
    if not isinstance(given, str):
        raise UserError(f"policy must be an invsolve policy or the name of one ({', '.join(POLICIES)}), got {given!r}")
    if given not in POLICIES:
        raise UserError(f"unknown policy {given!r}.{suggestion(given, POLICIES)}")
    try:
        return POLICIES[given](**parameters)
    except TypeError as error:
        raise UserError(f"policy {given!r}: {error}") from None
