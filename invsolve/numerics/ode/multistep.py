"""Multistep solvers that reuse what earlier steps found: DEIS, PNDM, UniPC, GHVB; one call of D per step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from invsolve.errors import UserError
from invsolve.numerics.ode.base import Denoise, Memory, Solver, euler, recall, remember
from invsolve.numerics.random import ChainRandom


def weighted(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """Sum of values times weights."""
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total


@dataclass(frozen=True)
class DEIS(Solver):
    """Exponential integrator: eps is extrapolated by the polynomial through its last values, and integrated exactly.

    Zhang and Chen, ICLR 2023, rho-AB and t-AB. Steps to level 0 keep their order, because the weights
    know the distance. The first steps have the orders 1, 2, ...; their error bounds what many steps can reach.

    Args:
        points: values of eps, 1 to 4; 1 is DDIM.
        variable: in which the polynomial is taken: "sigma", or "time" of the VP process with beta from 0.1 to 20.
    """

    points: int = 3
    variable: Literal["sigma", "time"] = "sigma"

    def __post_init__(self) -> None:
        _within("deis", "points", self.points, 1, 4)
        if self.variable not in ("sigma", "time"):
            raise UserError(f"solver deis: variable must be 'sigma' or 'time', got {self.variable!r}")

    @property
    def order(self) -> int:  # type: ignore[override]
        # The Euler step at the start errs by h^2 once, the step after it by h^3.
        return min(self.points, 2)

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        memory: Mapping[str, Tensor],
        sigma: float,
        sigma_next: float,
        rng: ChainRandom,
    ) -> tuple[Tensor, Memory]:
        past, levels = recall(memory)
        past = [(x - denoise(x, sigma)) / sigma, *past]
        levels = [sigma, *levels]
        weights = self.weights(levels[: self.points], sigma_next)
        x = x + weighted(weights, past[: self.points])
        return x, remember(past, levels, max(self.points - 1, 1))

    def weights(self, levels: Sequence[float], sigma_next: float) -> list[float]:
        """Integrals of the Lagrange polynomials through these levels, from the first of them to sigma_next."""
        where, share = np.polynomial.legendre.leggauss(16)
        middle, half = (sigma_next + levels[0]) / 2, (sigma_next - levels[0]) / 2
        at = self._variable(middle + half * where)
        nodes = self._variable(np.array(levels))
        coefficients = []
        for j, node in enumerate(nodes):
            others = np.delete(nodes, j)
            lagrange = np.prod([(at - other) / (node - other) for other in others], axis=0)
            coefficients.append(float(half * np.sum(share * lagrange)))
        return coefficients

    def _variable(self, sigma: np.ndarray) -> np.ndarray:
        if self.variable == "sigma":
            return sigma
        low, rise = 0.1, 19.9
        return (np.sqrt(low**2 + 2 * rise * np.log1p(sigma**2)) - low) / rise


#: Adams-Bashforth, by the number of values.
ADAMS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@dataclass(frozen=True)
class PNDM(Solver):
    """Pseudo linear multistep: the Adams-Bashforth mean of the last four eps drives a DDIM step.

    Liu et al., ICLR 2022 (PLMS there and in Stable Diffusion). The weights are those of equal steps. On grids whose steps
    are equal in another variable the order is 2, whatever the number of values (their Theorem 1); in sigma it is 4.

    Args:
        warmup: the first three steps: "runge-kutta", four calls each, as the paper has it; "adams", one call each, with
            as many values as there are.
    """

    warmup: Literal["runge-kutta", "adams"] = "runge-kutta"

    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.warmup not in ("runge-kutta", "adams"):
            raise UserError(f"solver pndm: warmup must be 'runge-kutta' or 'adams', got {self.warmup!r}")

    def calls(self, steps: int) -> int:
        extra = 3 * min(steps - 1, 3) if self.warmup == "runge-kutta" else 0
        return steps + extra

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        memory: Mapping[str, Tensor],
        sigma: float,
        sigma_next: float,
        rng: ChainRandom,
    ) -> tuple[Tensor, Memory]:
        past, levels = recall(memory)
        estimate = denoise(x, sigma)
        eps = (x - estimate) / sigma
        kept = remember([eps, *past], [sigma, *levels], 3)
        if sigma_next == 0:
            return estimate, kept
        if len(past) < 3 and self.warmup == "runge-kutta":
            mean = self._runge_kutta(denoise, x, eps, sigma, sigma_next)
        else:
            mean = weighted(ADAMS[len(past) + 1], [eps, *past])
        return x + (sigma_next - sigma) * mean, kept

    def _runge_kutta(self, denoise: Denoise, x: Tensor, first: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """Equation 13, with the middle taken in sigma: the classical method of order 4."""
        middle = (sigma + sigma_next) / 2

        def eps(slope: Tensor, level: float) -> Tensor:
            moved = x + (level - sigma) * slope
            return (moved - denoise(moved, level)) / level

        second = eps(first, middle)
        third = eps(second, middle)
        fourth = eps(third, sigma_next)
        return (first + 2 * second + 2 * third + fourth) / 6


@dataclass(frozen=True)
class UniPC(Solver):
    """Unified predictor-corrector: the call at the predicted point also corrects it, so that order p + 1 costs one call.

    Zhao et al., NeurIPS 2023, Algorithms 5 to 8, data prediction, B(h) = exp(-h) - 1 ("bh2"). A point is corrected at the
    start of the step that leaves it, as a difference to the prediction: a change of x between steps, such as guidance, is
    kept.

    Args:
        p: 1 to 3; values of D that the predictor uses.
    """

    p: int = 2

    def __post_init__(self) -> None:
        _within("unipc", "p", self.p, 1, 3)

    @property
    def order(self) -> int:  # type: ignore[override]
        # p = 3 starts with steps of lower order, which costs part of the fourth.
        return min(self.p + 1, 3)

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        memory: Mapping[str, Tensor],
        sigma: float,
        sigma_next: float,
        rng: ChainRandom,
    ) -> tuple[Tensor, Memory]:
        past, levels = recall(memory)
        estimate = denoise(x, sigma)
        if past:
            x = x + self._correction(past[: self.p], levels[: self.p], estimate, sigma)
        past, levels = [estimate, *past], [sigma, *levels]
        kept = remember(past, levels, self.p)
        if sigma_next == 0:
            return estimate, kept
        weights = self._weights(levels[: self.p], sigma_next, corrector=False)
        forecast = estimate + _differences(weights, past[: self.p], levels[: self.p], sigma_next)
        return euler(x, forecast, sigma, sigma_next), kept

    def _correction(self, past: list[Tensor], levels: list[float], estimate: Tensor, sigma: float) -> Tensor:
        """Corrected minus predicted point of the step that led from levels[0] to sigma."""
        predictor = self._weights(levels, sigma, corrector=False)
        *corrector, last = self._weights(levels, sigma, corrector=True)
        change = [c - p for c, p in zip(corrector, predictor, strict=True)]
        moved = last * (estimate - past[0]) + _differences(change, past, levels, sigma)
        return (1 - sigma / levels[0]) * moved

    def _weights(self, levels: Sequence[float], sigma_next: float, corrector: bool) -> list[float]:
        """rho of the differences to the values before levels[0], and, for the corrector, of the one at sigma_next."""
        h = math.log(levels[0] / sigma_next)
        nodes = [-math.log(level / levels[0]) / h for level in levels[1:]] + ([1.0] if corrector else [])
        count = len(nodes)
        if count == 0:
            return []
        if count == 1:
            # The paper's choice; the solved value differs from it in higher order only.
            return [0.5]
        phi, factorial, right = math.expm1(-h) / -h - 1, 1.0, []
        for k in range(1, count + 1):
            right.append(phi * factorial / math.expm1(-h))
            factorial *= k + 1
            phi = phi / -h - 1 / factorial
        matrix = np.vander(nodes, count, increasing=True).T
        return [float(v) for v in np.linalg.solve(matrix, np.array(right))]


def _differences(weights: Sequence[float], past: Sequence[Tensor], levels: Sequence[float], sigma: float) -> Tensor:
    """Sum of weights times (D_k - D_0) / r_k, r_k the distance in log sigma in units of the step from levels[0] to sigma."""
    h = math.log(levels[0] / sigma)
    total = 0 * past[0]
    for weight, value, level in zip(weights, past[1:], levels[1:], strict=True):
        total = total + weight / (-math.log(level / levels[0]) / h) * (value - past[0])
    return total


@dataclass(frozen=True)
class GHVB(Solver):
    """Generalised heavy ball: Adams-Bashforth on a running mean of eps, which damps what high orders amplify.

    Wizadwongsa et al., NeurIPS 2023, section 4.2. The order lies between k - 1 and k and grows with beta; the weights are
    those of equal steps, as in `PNDM`.

    Args:
        k: values of the running mean, 1 to 4.
        beta: share of the newest eps in the running mean, above 0; 1 is Adams-Bashforth.
    """

    k: int = 2
    beta: float = 0.8

    def __post_init__(self) -> None:
        _within("ghvb", "k", self.k, 1, 4)
        if not 0 < self.beta <= 1:
            raise UserError(f"solver ghvb: beta must be above 0 and at most 1, got {self.beta}")

    @property
    def order(self) -> int:  # type: ignore[override]
        return min(self.k, 2)

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        memory: Mapping[str, Tensor],
        sigma: float,
        sigma_next: float,
        rng: ChainRandom,
    ) -> tuple[Tensor, Memory]:
        past, levels = recall(memory)
        estimate = denoise(x, sigma)
        eps = (x - estimate) / sigma
        velocity = (1 - self.beta) * past[0] + self.beta * eps if past else eps
        past, levels = [velocity, *past], [sigma, *levels]
        kept = remember(past, levels, max(self.k - 1, 1))
        if sigma_next == 0:
            return estimate, kept
        count = min(len(past), self.k)
        return x + (sigma_next - sigma) * weighted(self._weights(count), past[:count]), kept

    def _weights(self, count: int) -> list[float]:
        b = self.beta
        return {
            1: [1.0],
            2: [(2 + b) / (2 * b), -(2 - b) / (2 * b)],
            3: [(18 + 5 * b) / (12 * b), -(24 - 8 * b) / (12 * b), (6 - b) / (12 * b)],
            4: [
                (46 + 9 * b) / (24 * b),
                -(78 - 19 * b) / (24 * b),
                (42 - 5 * b) / (24 * b),
                -(10 - b) / (24 * b),
            ],
        }[count]


def _within(solver: str, name: str, value: int, low: int, high: int) -> None:
    if not (isinstance(value, int) and low <= value <= high):
        raise UserError(f"solver {solver}: {name} must be a whole number from {low} to {high}, got {value!r}")
