"""What least squares leaves of the data: where that is more than the noise explains, no image explains them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invsolve.contracts.noise import Gaussian
from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.problem import Problem
from invsolve.engine.run import Run
from invsolve.numerics.krylov import CG
from invsolve.numerics.linalg import inner

#: Images up to so many times the norm of the least-squares solution are considered.
_BEYOND = 2.0
#: What the ridge of the bound costs it, of the squared norm that is left or that the noise explains, whichever is larger.
_SLACK = 0.1


def least_misfit(run: Run, item: int) -> float:
    """`least` of one item of a run, in physical units; NaN where there is none or it would cost a volume."""
    measurement = run.measurement
    simple = isinstance(measurement.noise, Gaussian) and "maskable" not in run.strategy.needs
    if not simple or run.couples_items or len(run.image_shape) != 3:
        return math.nan
    operator = measurement.operator_for(item)
    if not run.strategy.explains and getattr(operator, "baseline_floor", None) is None:
        # A solve would take far longer than the formula that was run.
        return math.nan
    # Without the prior: latents would come between the operator and the image.
    other = Run(measurement, None, run.strategy, run.image_shape, run.options, run.scale)
    with torch.no_grad():
        return least(other.problem([(item, 0)]))


def least(problem: Problem) -> float:
    """A lower bound on |y - A x| over what the noise explains, for every image x that is not far larger than least squares'.

    Weak duality: for any residual r, and in particular that of the ridge solution, where it is tight, |y - A x|^2 + rho |x|^2
    >= <r, y>^2 / (|r|^2 + |A' r|^2 / rho) for every x. So the bound also holds where conjugate gradients stop early: it is then
    too low. rho is so small that for an image of twice the norm of the least-squares solution rho |x|^2 is a tenth of what is
    left, or of what the noise explains. A draw from the posterior leaves 1 on average; a larger bound is the fault of the
    operator or of the noise level.

    Args:
        problem: of one row, with Gaussian noise.

    Returns:
        The ratio; NaN where the operator is not linear, the noise zero or the data blank.
    """
    operator, expected = problem.operator, float(problem.expected_misfit()[0])
    if not isinstance(operator, LinearOperator) or not isinstance(problem.noise, Gaussian) or not expected > 0:
        return math.nan
    mask = operator.measured()
    y = problem.y if mask is None else problem.y * mask
    blank = torch.zeros_like(operator.adjoint(y))
    floor = 1e-6 * float(torch.as_tensor(problem.operator_norm()).max()) ** 2
    if not floor > 0:
        return math.nan
    # For its size, and that of what it leaves.
    image = operator.prox(blank, y, floor, CG(1e-3, 20))
    most = _BEYOND**2 * float(inner(image, image)[0])
    if not 0 < most < math.inf:
        return math.nan
    residual = _residual(operator, y, image)
    rho = _SLACK * max(expected**2, float(inner(residual, residual)[0])) / most
    image = operator.prox(blank, y, rho, CG(1e-6, 100, start=image))
    residual = _residual(operator, y, image)
    back = operator.adjoint(residual)
    against = inner(residual, residual) + inner(back, back) / rho
    bound = inner(residual, y).clamp_min(0).square() / against.clamp_min(torch.finfo(against.dtype).tiny)
    return math.sqrt(max(float(bound[0]) - rho * most, 0.0)) / expected


def _residual(operator: LinearOperator, y: Tensor, image: Tensor) -> Tensor:
    """y - A x where something is measured."""
    residual, mask = y - operator(image), operator.measured()
    return residual if mask is None else residual * mask
