"""ADS: active diffusion subsampling (Nolan 2024): the particles decide what is measured next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.errors import UserError
from invsolve.numerics import schedules
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._stride import longest


@dataclass(frozen=True)
class ADS(Strategy):
    """Particles that also choose what to measure next (Nolan 2024); `inpainting`, `ct`, `mri`; low noise.

    Particles diffuse under DPS guidance from what is measured; the group on which they disagree most is measured next.

    Nolan et al., 2024, Algorithm 1. The samples of an item are its particles: they share one mask and one guidance norm,
    items do not, so that more particles follow the data less closely, each by its share. The data given is what could be
    measured; only the acquired groups are used, by the linear reconstruction that is stored beside the images too. The
    budget is met exactly, the operator is divided by its norm, and the schedule goes on to the prior's smallest noise level
    (the published one ends at 0.33). The diagnostic `acquired_at`, int32, is the order of acquisition: the step after
    which a group was measured, 0 before the start, -1 never; `acquired_at >= 0` is the mask. It is (samples, size of
    `group_index`): the groups first, and -1 for what cannot be acquired.

    Known bias, against the exact posterior of what was acquired: that of DPS with steps of constant length. The data are
    fitted to a fraction of the noise or not closely enough, whatever the noise is: with few particles the mean is off by
    half a posterior standard deviation, and what is measured best comes out much too narrow.

    Args:
        steps: network calls per particle, forward and backward; the paper takes 1000 to 10000.
        budget: groups acquired in all; default a quarter of what is there.
        initial: groups acquired before the start, such as the centre columns of k-space; they count in the budget.
        window: part of the steps, from and to, over which the acquisitions are spread evenly.
        omega: guidance strength.
        entropy: how disagreement is scored: "mixture" is the entropy of an equal-weight Gaussian mixture around the
            particles (Hershey & Olsen 2007), in log space; "variance" is its limit for wide Gaussians.
        width: standard deviation of those Gaussians in units of the particles' rms distance.

    Raises:
        UserError: fewer than two samples, or a budget that is not there.
    """

    name = "ads"
    paper: ClassVar[Paper | None] = Paper(
        "Active Diffusion Subsampling",
        ("Oisin Nolan", "Tristan S. W. Stevens", "Wessel L. van Nierop", "Ruud J. G. van Sloun"),
        2024,
        "arXiv:2406.14388",
    )
    cost: ClassVar[str] = "forward + backward"

    steps: int = 500
    budget: int | None = None
    initial: tuple[int, ...] = ()
    window: tuple[float, float] = (0.0, 0.8)
    omega: float = 1.0
    entropy: Literal["mixture", "variance"] = "mixture"
    width: float = 1.0

    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "linear", "maskable", "gaussian", "low-noise")
    couples_samples: ClassVar[bool] = True
    data_strength: ClassVar[Mapping[str, int]] = {"omega": 0, "steps": 1}
    mean_error: ClassVar[float] = 0.25
    std_ratio: ClassVar[tuple[float, float]] = (0.8, 1.05)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.15, 1.05)

    def schedule(self, problem: Problem) -> Tensor:
        low = problem.prior.sigma_min
        top = min(problem.prior.sigma_max, math.tan(math.acos(0.02)))
        rates = schedules.cosine_rates(self.steps - 1, 1 / math.sqrt(1 + top**2), 1 / math.sqrt(1 + low**2))
        return torch.cat([rates, rates.new_zeros(1)])

    def total(self, groups: int) -> int:
        """The budget, by default a quarter of the groups."""
        return max(len(self.initial), groups // 4, 1) if self.budget is None else self.budget

    def check(self, groups: int) -> None:
        """Refuse a budget or initial groups that are not there."""
        least, budget = max(1, len(self.initial)), self.total(groups)
        if not least <= budget <= groups:
            raise UserError(f"strategy 'ads': budget {budget} must lie between {least} and {groups} groups")
        if any(not 0 <= g < groups for g in self.initial):
            raise UserError(f"strategy 'ads': initial groups {self.initial} must lie in 0..{groups - 1}")

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        if problem.samples_per_item < 2:
            raise UserError("strategy 'ads' needs at least 2 samples per item, its particles (samples=16 in the paper)")
        groups = problem.maskable.groups
        self.check(groups)
        order = torch.full((problem.batch, groups), -1, dtype=torch.int32, device=problem.y.device)
        order[:, list(self.initial)] = 0
        x = self.schedule(problem)[0].item() * rng.normal(problem.zeros())
        return {"x": x, "order": order}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        operator, order = problem.maskable, state["order"]
        mask = operator.group_mask(order >= 0)
        with torch.enable_grad():
            x = state["x"].requires_grad_()
            estimate = problem.denoise(x, sigma)
            predicted = operator(estimate)
            residual = mask * (problem.y - predicted)
            # One norm over all particles of an item, as published: each is pulled by its share in their common misfit.
            together = torch.linalg.vector_norm(
                residual.view(-1, problem.samples_per_item * residual[0].numel()), dim=1
            )
            (gradient,) = torch.autograd.grad(together.sum(), x)
        x, estimate, misfit = x.detach(), estimate.detach(), problem.misfit(residual.detach())
        x = estimate + (sigma_next / sigma) * (x - estimate)
        kappa = math.sqrt((1 + sigma**2) * (1 + sigma_next**2))
        push = self.omega * kappa / problem.operator_norm() * gradient
        x = x - push
        order = self.acquire(problem, predicted.detach(), order, rng.step)
        used = mask.expand(problem.y.shape).flatten(1).sum(1).clamp_min(1)
        total = problem.dof() / (2 if problem.y.is_complex() else 1)
        return {
            "x": x,
            "order": order,
            "residual": misfit * (total / used).sqrt(),
            "stride": longest(state, push, gradient, together.detach(), problem.samples_per_item),
        }

    def acquire(self, problem: Problem, predicted: Tensor, order: Tensor, step: int) -> Tensor:
        """Add the most uncertain unseen groups until this step's share of the budget is met."""
        groups = order.shape[1]
        budget = self.total(groups)
        missing = self.due(step, budget) - self.due(step - 1, budget)
        if missing <= 0:
            return order
        score = self.score(problem, predicted, groups)
        score = score.repeat_interleave(problem.samples_per_item, 0)
        score = torch.where(order >= 0, -math.inf, score)
        chosen = score.topk(missing, 1).indices
        return order.scatter(1, chosen, step)

    def due(self, step: int, budget: int) -> int:
        """How many groups are to be acquired by the end of a step (counted from 1), spread evenly over the window."""
        first, last = (round(part * self.steps) for part in self.window)
        done = min(max((step - first) / max(last - first, 1), 0.0), 1.0)
        return len(self.initial) + math.floor((budget - len(self.initial)) * done + 1e-9)

    def score(self, problem: Problem, predicted: Tensor, groups: int) -> Tensor:
        """Disagreement of an item's particles about each group, (items, groups); memory grows with one measurement only."""
        particles = problem.samples_per_item
        sets = predicted.view(-1, particles, *predicted.shape[1:])
        rows = []
        for item in sets:
            distances = [problem.maskable.group_sum((item - one).abs() ** 2, groups) for one in item]
            squared = torch.stack(distances)  # (particles, particles, groups)
            if self.entropy == "variance":
                rows.append(squared.mean((0, 1)))
                continue
            # The published width is a constant in the data's own units.
            width = self.width * squared.mean().sqrt().clamp_min(1e-12)
            density = torch.logsumexp(-squared / (2 * width**2), 1) - math.log(particles)
            rows.append(-density.mean(0))
        return torch.stack(rows)

    def used(self, problem: Problem, state: State) -> Tensor | None:
        return problem.maskable.group_mask(state["order"] >= 0)

    def diagnostics(self, problem: Problem, state: State) -> dict[str, Tensor]:
        # Of as many groups as there are entries: items with masks of their own have different numbers of groups, and the records
        # of a result are of one size. What is not there is never acquired.
        missing = problem.maskable.group_index.numel() - state["order"].shape[1]
        return {"acquired_at": torch.nn.functional.pad(state["order"], (0, max(missing, 0)), value=-1)}
