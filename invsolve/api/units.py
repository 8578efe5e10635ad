"""Whether the data's images lie in the prior's range, looked at before the first step: a wrong unit shows nowhere so cheaply."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from invsolve.api.discrepancy import FAR, NARROW
from invsolve.api.fit import choose_scale, stretched
from invsolve.contracts.measurement import Rows
from invsolve.contracts.noise import Gaussian, Noise
from invsolve.contracts.operator import LinearOperator
from invsolve.contracts.prior import Prior
from invsolve.contracts.problem import Problem
from invsolve.contracts.scale import Scale
from invsolve.engine.run import Run
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom

#: Items, spread over the data, whose linear reconstruction is looked at.
_ITEMS = 4
#: Images of a unit that nobody named, which fill less of the range of a prior that names its own, may be in another.
_DOUBTFUL = 0.25
_ROUNDS = 4
#: A range that changes by less is the one.
_SETTLED = 0.02
#: Noise over the operator's norm, network units, above which a linear reconstruction is held down rather than drawn.
_LOUD = 0.25
#: The same in the scale that fits: such noise is larger than half the range of the images.
_HIDDEN = 1.0
#: Noise of a linear reconstruction, over its range, above which that range is the noise's.
_NOISY = 0.1


class ScaleWarning(UserWarning):
    """The data's images hardly lie in the range that the prior's images were said to have."""


def check_range(run: Run) -> None:
    """Compare the range of the linear reconstruction with the prior's, where there are both.

    Raises:
        UserError: they cannot be of one unit, and nobody said that they were. Says which scale would do.

    Warns:
        ScaleWarning: the same of a scale that somebody gave; or of a unit that nobody named, where it is doubtful.
    """
    prior, measurement = run.prior, run.measurement
    if prior is None or run.scale.origin == "estimated" or not isinstance(measurement.operator, LinearOperator):
        return
    count = len(run.items)
    items = [run.items[k] for k in sorted({int(k) for k in np.linspace(0, count - 1, min(count, _ITEMS))})]
    try:
        if _first_is_well(run, items):
            return
        scale, (images, first) = run.scale, _linear(run, run.scale, items)
        noise = _noise(first, images[:1])
        if _drowned(first, images, noise):
            scale = _fitting(run, items)
            images, first = _linear(run, scale, items)
            if _hopeless(first):
                return
            noise = _noise(first, images[:1]) * _ratio(scale, run.scale)
    except UserError:
        return  # What cannot be read or solved stops the run where it gets there.
    physical = scale.rows(items).to_physical(images)
    place = _Place(prior, run.scale.rows(items).to_network(physical))
    # Of a blank image nothing can be told.
    if place.span == 0 or not math.isfinite(place.span):
        return
    narrow, wide, doubtful = _verdicts(run, place, noise)
    if not (narrow or wide or doubtful):
        return
    given = _given(run)
    text = _mismatch(run, items, physical, given)
    if (narrow or wide) and not given:
        raise UserError(text)
    run.doubt = text
    warnings.warn(text, ScaleWarning, stacklevel=2)


def _first_is_well(run: Run, items: Sequence[int]) -> bool:
    """Whether the first item that is not blank lies where the prior's images do: then others of one scale need no look.

    It costs a linear reconstruction, which the run keeps, and where that is a solve another one of noise.
    """
    operator, prior = run.measurement.operator_for(items[0]), run.prior
    assert isinstance(operator, LinearOperator)
    assert prior is not None
    if isinstance(run.scale.factor, Tensor) and run.scale.factor.numel() > 1:
        return False
    for item in items:
        image, problem = _linear(run, run.scale, [item])
        place = _Place(prior, image)
        if place.span > 0:
            break
    else:
        return False
    if isinstance(run.measurement.noise, Gaussian):
        run.baselines[item] = image[0]
    noise, scale = 0.0, run.scale
    # A formula such as filtered back-projection shows the same in every unit.
    if operator.baseline_floor is not None:
        noise = _noise(problem, image)
        if _drowned(problem, image, noise):
            scale = _fitting(run, [item])
            image, problem = _linear(run, scale, [item])
            if _hopeless(problem):
                return True
            noise = _noise(problem, image) * _ratio(scale, run.scale)
            place = _Place(prior, run.scale.rows([item]).to_network(scale.rows([item]).to_physical(image)))
    return math.isfinite(place.span) and place.span > 0 and not any(_verdicts(run, place, noise))


def _drowned(problem: Problem, images: Tensor, noise: float) -> bool:
    """Whether a reconstruction shows noise, or is held down by it; how much depends on the scale: in a wrong unit it shows
    noise, or nothing."""
    loud = problem.largest_sigma() > _LOUD * problem.operator_norm()
    return loud or noise > _NOISY * float(images.max() - images.min())


def _hopeless(problem: Problem) -> bool:
    """Whether the noise hides the images in the scale that fits them best, which then is a guess: nothing can be told."""
    return problem.largest_sigma() > _HIDDEN * problem.operator_norm()


def _given(run: Run) -> bool:
    return run.options.scale is not None or run.measurement.scale is not None


def _verdicts(run: Run, place: _Place, noise: float) -> tuple[bool, bool, bool]:
    """Whether images are too narrow for the prior, too wide for it, or doubtful as nobody named their unit."""
    prior = run.prior
    assert prior is not None
    stated = prior.data_range is not None
    # What an active strategy does not acquire is no data: it may hold anything.
    wide = "maskable" not in run.strategy.needs and place.far > FAR and place.far > FAR + 4 * noise / place.half
    narrow = stated and place.span < NARROW
    unnamed = bool(prior.unit) and not run.measurement.unit
    doubtful = stated and unnamed and not _given(run) and place.span < _DOUBTFUL
    return narrow, wide, doubtful


class _AsImaged:
    """Rows of y as A(x) alone: `Noise.predicted_from` of each.

    Args:
        y: the rows.
        noise: of all items.
    """

    def __init__(self, y: Rows, noise: Noise) -> None:
        self.y, self.noise = y, noise

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: slice, /) -> Tensor:
        part = self.y[rows]
        return self.noise.rows(range(len(self.y))[rows], part.ndim).predicted_from(part)


class _Place:
    """Where images lie with regard to a prior's: as `Problem.reach`, of all together, and without outliers.

    Attributes:
        half: half the width of the prior's range, network units.
        span: from the smallest to the largest value, as a part of that range.
        far: distance from its middle, over half its width, of what 0.5 % of the values lie below or above.
    """

    def __init__(self, prior: Prior, images: Tensor) -> None:
        bounds = prior.bounds()
        low, high = (-prior.sigma_max / 5, prior.sigma_max / 5) if bounds is None else bounds
        self.half = (high - low) / 2
        values = images.flatten().double().cpu().numpy()
        self.span = float(values.max() - values.min()) / (2 * self.half)
        self.far = float(np.abs(np.quantile(values, (0.005, 0.995)) - (low + high) / 2).max()) / self.half


def _linear(run: Run, scale: Scale, items: Sequence[int]) -> tuple[Tensor, Problem]:
    """Linear reconstructions of some items, (items, C, *spatial), in the network units of a scale; and the first's problem.

    Noise that is not Gaussian counts as Gaussian of its size, so that the operator stays linear in network units.
    """
    noise, measurement = run.measurement.noise, run.measurement
    if noise is not None and not isinstance(noise, Gaussian):
        # Its problem would hold A(x) in physical units; the level is that beside A(x), whatever y counts.
        level = float(run.problem([(items[0], 0)]).noise_level())
        measurement = replace(measurement, noise=Gaussian(level), y=_AsImaged(measurement.y, noise))
    # Without the prior: latents would come between the operator and the image.
    other = Run(measurement, None, run.strategy, run.image_shape, run.options, scale)
    problems = [other.problem([(item, 0)]) for item in items]
    with torch.no_grad():
        return torch.cat([problem.baseline() for problem in problems]), problems[0]


def _noise(problem: Problem, image: Tensor) -> float:
    """Standard deviation of what the noise does to the linear reconstruction `image`, network units."""
    drawn = problem.noise.sample(problem.y, ChainRandom(0, [(0, 0)]))
    with torch.no_grad():
        return float((replace(problem, y=drawn).baseline() - image).std())


def _ratio(first: Scale, second: Scale) -> float:
    """How many network units of the second scale are one of the first (of the first item)."""
    (low, high), (bottom, top) = first.range, second.range
    return (high - low) / (top - bottom)


def _mismatch(run: Run, items: list[int], values: Tensor, given: bool) -> str:
    prior, unit = run.prior, run.measurement.unit
    assert prior is not None
    low, high = (f"{float(v):.3g}" for v in (values.min(), values.max()))
    named = f" {unit}" if unit else ", of a unit that nobody named" if prior.unit else ""
    seen = f"the linear reconstruction of the data runs from {low} to {high}{named}"
    who = f"prior {prior.name or type(prior).__name__!r}"
    if given:
        bottom, top = run.scale.range
        return f"the scale {bottom:.4g} .. {top:.4g} is given, but {seen}; {_remedy(run, items)}"
    bottom, top = prior.data_range or run.scale.to_physical(torch.tensor(prior.bounds() or run.scale.range)).tolist()
    own = f" {prior.unit}" if prior.unit else ""
    return (
        f"{who} knows images from {bottom:.4g} to {top:.4g}{own}, but {seen}; {_remedy(run, items)}, or, if that is right, "
        f"--scale={bottom:.4g}:{top:.4g}"
    )


def _remedy(run: Run, items: list[int]) -> str:
    """The scale that fits the data, as one gives it."""
    try:
        low, high = (f"{v:.4g}" for v in _fitting(run, items).range)
    except UserError:
        return "give the data's own range, --scale=LOW:HIGH (Python: scale=(LOW, HIGH))"
    return f"give --scale={low}:{high} (Python: scale=({low}, {high}))"


def _fitting(run: Run, items: Sequence[int]) -> Scale:
    """The estimated scale, brought to the range of linear reconstructions that know how large the noise is.

    How much they are regularised depends on the scale in turn, so it is done some times: what a deconvolution without
    regularisation makes of the noise is no range of images.
    """
    measurement, prior = run.measurement, run.prior
    assert prior is not None
    scale = choose_scale(
        measurement, measurement.operator, prior, "auto", run.image_shape, run.device, run.dtype, items
    )
    for _ in range(_ROUNDS):
        images = scale.to_physical(_linear(run, scale, items)[0])
        if measurement.operator.complex_image and images.shape[1] == 2:
            images = images.norm(dim=1)
        bottom, top = np.quantile(images.flatten().double().cpu().numpy(), (0.005, 0.995))
        if prior.data_range is None:
            low, high = bottom, top
        else:
            low, high = stretched(prior.data_range, prior.unit, float(bottom), float(top))
        if not high > low:
            break
        before, scale = scale, Scale.from_range(float(low), float(high), origin="estimated")
        if abs(_ratio(before, scale) - 1) < _SETTLED:
            break
    return scale
