"""After DDLM (Li 2023): the linear reconstruction of low-dose data, denoised from the noise level that it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.contracts.paper import Paper
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy
from invsolve.contracts.views import InPhysicalUnits
from invsolve.errors import Unsuited, UserError
from invsolve.numerics import schedules
from invsolve.numerics.linalg import rows
from invsolve.numerics.modes import white
from invsolve.numerics.random import ChainRandom
from invsolve.plugins.strategies._multistep import advance


@dataclass(frozen=True)
class DDLM(Strategy):
    """The linear reconstruction denoised from its own noise level (after Li 2023); a quick look at low doses.

    x = FBP(y) is an image with noise of level s: the reverse equation from there, in a few steps.

    Li, 2023, starts a pretrained diffusion from a low-dose image instead of from noise; its abstract is all that we know, and
    the rule is ours. x begins as the linear reconstruction R y that users of the instrument know, of how y differs from that of
    the prior's mean, at the level s^2 = mean of (R(y + noise) - R y)^2 + (R A v - v)^2, v an image of the prior's spectrum, or
    white if it states none: the noise that R lets through, and what it cannot tell. Each image has its own. Where R y is the
    image plus white noise, that is a draw from the posterior, and exact. The data are not looked at again, so counts behind an
    absorber are taken as easily as Gaussian noise.

    Known bias: noise that differs by pixel or that R colours, as filtered back-projection does, is taken for white, and what R
    cannot tell for noise. Of hidden pixels and tomography means err by up to 1.4 posterior standard deviations, and the spread
    is no uncertainty.

    Args:
        steps: network calls, at levels from s down; one more finds the prior's mean.
        lowest: the last level, over s.
    """

    name = "ddlm"
    builds_on: ClassVar[tuple[Paper, ...]] = (
        Paper("Diffusion Denoising for Low-Dose-CT Model", ("Runyi Li",), 2023, "arXiv:2301.11482"),
    )

    steps: int = 20
    lowest: float = 0.02

    data_strength: ClassVar[Mapping[str, int]] = {}
    draws: ClassVar[bool] = False
    explains: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("prior", "gaussian-like")
    mean_error: ClassVar[float] = 1.27

    def __post_init__(self) -> None:
        if not 0 < self.lowest < 1:
            raise UserError(f"strategy 'ddlm': lowest is a part of the level found, between 0 and 1; got {self.lowest}")

    def schedule(self, problem: Problem) -> Tensor:
        # In units of each image's own level.
        return schedules.geometric(self.steps, self.lowest, 1.0)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        # What the prior expects without any data.
        mean = problem.denoise(problem.zeros(), problem.prior.sigma_max)
        x = linear(problem, problem.y, mean)
        noise = problem.noise.std_from(problem.y).expand(problem.y.shape) * rng.normal(problem.y)
        let_through = linear(problem, problem.y + noise, mean) - x
        known = problem.prior.modes(x) or white(problem.prior.error(problem.prior.sigma_max), x)
        image = mean + known.from_basis(known.variance.sqrt() * rng.normal(x))
        untold = linear(problem, problem.noise.mean(problem.operator(image)), mean) - image
        level = (let_through.square() + untold.square()).flatten(1).mean(1).sqrt()
        return {"x": x, "level": level.clamp(problem.prior.sigma_min, problem.prior.sigma_max)}

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        level = rows(state["level"], state["x"])
        estimate = problem.denoise(state["x"], (sigma * state["level"]).clamp_min(problem.prior.sigma_min))
        x = level * advance(state["x"] / level, estimate / level, state.get("before"), sigma, sigma_next, 1.0, rng)
        residual = problem.misfit(problem.residual(estimate))
        return {"x": x, "level": state["level"], "before": estimate / level, "residual": residual}


def linear(problem: Problem, y: Tensor, mean: Tensor) -> Tensor:
    """The linear reconstruction of y, network units: of how it differs from what the prior's mean gives.

    Raises:
        Unsuited: the operator is not linear.
    """
    operator: Operator = problem.operator
    predicted, nearly = problem.noise.predicted_from(y), operator(mean)
    factor: float | Tensor = 1.0
    if isinstance(operator, InPhysicalUnits):
        factor, _ = operator.scale.broadcast(mean)
        operator = operator.inner
    if not isinstance(operator, LinearOperator):
        text = "strategy 'ddlm' needs a linear operator, whose reconstruction it denoises; take strategy 'daps'"
        raise Unsuited(text, lambda other: "linear" not in getattr(other, "needs", ()))
    level = problem.sigma if isinstance(problem.noise, Gaussian) else rows(problem.noise_level(), y)
    return mean + operator.baseline(predicted - nearly, level) / factor
