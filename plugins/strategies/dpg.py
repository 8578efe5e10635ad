"""DPG (Tang 2024): guidance by a policy gradient, images drawn about D and rewarded by how well a black box fits the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.errors import UserError
from invsolve.numerics import schedules
from invsolve.numerics.linalg import inner, norm, rows, size_of
from invsolve.numerics.random import ChainRandom

#: Draws of noise made at once, for each row.
_AT_ONCE = 64
#: Of the moving average of |y - A D|^2.
_DECAY = 0.9
#: Of the previous gradient, at the first step; falls to zero with the last.
_MOMENTUM = 0.1


@dataclass(frozen=True)
class DPG(Strategy):
    """Guidance by policy gradient (Tang 2024); any simulator, whose derivatives are not needed.

    DDPM, then x -= scale beta g / |g|: g the gradient of mean (R_k - b_k) |x_k - D|^2 / 2 r^2 over x_k = D + r n_k with rewards
    R_k = exp(-(|y - A(x_k)|^2 - |y - A(D)|^2) / Z), b_k the mean of the others'.

    Tang et al., AISTATS 2024, with their code's settings for Gaussian noise: Z is a moving average of |y - A(D)|^2, r^2 a quarter
    of it a pixel, g has a tenth of the previous gradient, less at each step. Only `forward` of the operator is called, so it
    may be a black box; `enkg` needs no gradient of the network either, but an ensemble. Ours: norms are a sample's own; the
    length is said per root of a pixel (their 100 to 120 of FFHQ is 0.25, InverseBench's 180 of 128 x 128 is 1.4); residuals are
    weighed by the precision of the data, linear operators divided by their norm; and an image whose data are met to within the
    noise is not pushed, as the length knows no noise level.

    Known bias: the length is set and knows neither noise nor operator: means err by 0.2 to 1.3 posterior standard deviations, the
    most in tomography, and the samples' spread, 0.8 to 1.8 times the posterior's, is no uncertainty. With fewer draws than pixels
    the direction is mostly chance.

    Args:
        steps: network calls, forward and backward.
        draws_a_step: images drawn about D, each a forward call of the operator; theirs 800 to 5000.
        scale: length of the push, in beta times the root of the number of pixels.
    """

    name = "dpg"
    paper: ClassVar[Paper | None] = Paper(
        "Solving General Noisy Inverse Problem via Posterior Sampling: A Policy Gradient Viewpoint",
        ("Haoyue Tang", "Tian Xie", "Aosong Feng", "Hanyu Wang", "Chenyang Zhang", "Yang Bai"),
        2024,
        "arXiv:2403.10585",
    )
    cost: ClassVar[str] = "forward + backward"

    steps: int = 1000
    draws_a_step: int = 256
    scale: float = 1.4

    needs: ClassVar[tuple[str, ...]] = ("prior", "prior-gradient", "gaussian-like")
    data_strength: ClassVar[Mapping[str, int]] = {"steps": 1}
    draws: ClassVar[bool] = False
    mean_error: ClassVar[float] = 0.75
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"steps": 60, "draws_a_step": 64, "scale": 3.0},)

    def __post_init__(self) -> None:
        if self.draws_a_step < 2:
            raise UserError(
                f"strategy 'dpg': rewards are compared: draws_a_step must be 2 or more, got {self.draws_a_step}"
            )

    def schedule(self, problem: Problem) -> Tensor:
        return schedules.ddpm_linear(self.steps, problem.prior.sigma_min, problem.prior.sigma_max)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        x = self.schedule(problem)[0].item() * rng.normal(problem.zeros())
        return {"x": x}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        with torch.enable_grad():
            x = state["x"].requires_grad_()
            denoised = problem.denoise(x, sigma)
        estimate = denoised.detach()
        residual = problem.residual(estimate)
        loss = self.loss(problem, residual)
        average = _DECAY * state.get("loss", loss) + (1 - _DECAY) * loss
        width = (average / size_of(estimate.shape[1:])).sqrt() / 2
        push = self.policy(problem, estimate, loss, average, width, rng)
        (gradient,) = torch.autograd.grad(denoised, x, -push)
        # That of the variance-preserving coordinates, in which steps are compared.
        gradient = math.sqrt(1 + sigma**2) * gradient
        share = _MOMENTUM * (1 - rng.step / self.steps)
        direction = share * state.get("gradient", gradient) + (1 - share) * gradient
        direction = direction / rows(norm(direction) + 1e-30, direction)
        x, ratio = x.detach(), (sigma_next / sigma) ** 2
        x = estimate + ratio * (x - estimate) + sigma_next * math.sqrt(1 - ratio) * rng.normal(x)
        misfit = problem.misfit(residual)
        going = rows((misfit > problem.expected_misfit()).to(x), x)
        beta = 1 - (1 + sigma_next**2) / (1 + sigma**2)
        length = self.scale * math.sqrt(size_of(x.shape[1:])) * beta * math.sqrt(1 + sigma_next**2)
        x = x - length * going * direction
        return {"x": x, "loss": average, "gradient": gradient, "residual": misfit}

    def loss(self, problem: Problem, residual: Tensor) -> Tensor:
        """|y - A(x)|^2, as told by images that A lengthens by its norm at most, (B,)."""
        size = torch.as_tensor(problem.linear_norm()).flatten().to(residual.real)
        weighted = residual * problem.precision()
        return inner(weighted, weighted) / size**2

    def policy(
        self, problem: Problem, estimate: Tensor, loss: Tensor, average: Tensor, width: Tensor, rng: ChainRandom
    ) -> Tensor:
        """mean (R_k - b_k) n_k / r over the images drawn, shaped like them: where rewards rise."""
        total, plain = torch.zeros_like(estimate), torch.zeros_like(estimate)
        rewards, count = torch.zeros_like(loss), self.draws_a_step
        for first in range(0, count, _AT_ONCE):
            many = min(_AT_ONCE, count - first)
            noise = rng.normal(estimate[:, None].expand(-1, many, *estimate.shape[1:]))
            for n in noise.unbind(1):
                there = self.loss(problem, problem.residual(estimate + rows(width, n) * n))
                reward = ((loss - there) / average).exp()
                total, plain, rewards = total + rows(reward, n) * n, plain + n, rewards + reward
        # b_k is the mean of the other rewards: R_k - b_k = (count R_k - sum) / (count - 1).
        return (total - rows(rewards, plain) * plain / count) / (count - 1) / rows(width, plain)
