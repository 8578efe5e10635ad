"""Drawing images from a prior alone, by any solver, on the EDM schedule."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from invsolve import api
from invsolve.api.inputs import prior_of, whole
from invsolve.contracts.latent import LatentPrior
from invsolve.contracts.module import placed
from invsolve.contracts.prior import Prior
from invsolve.contracts.returned import called, check_images
from invsolve.contracts.scale import Scale
from invsolve.errors import UserError
from invsolve.numerics import schedules
from invsolve.numerics.ode.solvers import Memory, Solver, solver
from invsolve.numerics.random import ChainRandom

SIZE = 128


def sample(
    prior: Prior | str | Path,
    count: int = 1,
    shape: Sequence[int] | None = None,
    solver: Solver | str = "dpmpp-2m",
    steps: int = 32,
    seed: int = 0,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    levels: Sequence[float] | None = None,
) -> Tensor:
    """Draw images from a prior, without any measurement.

    Args:
        prior: a Prior, a registered name or a checkpoint file.
        count: N, how many images; image i depends on (prior, solver, steps, seed, i) alone.
        shape: (C, *spatial); default the prior's own, free sizes filled with 128.
        solver: a name from `invsolve.solvers.SOLVERS`, or a Solver.
        steps: noise levels of the EDM schedule (rho 7), from the prior's largest to its smallest.
        seed: >= 0.
        batch_size: images that go through the network at once.
        device: "cpu", "cuda", ...
        levels: noise levels instead of the schedule's, descending to 0, such as `invsolve.search_schedule` finds.

    Returns:
        (N, C, *spatial), float32, on the CPU, in the prior's physical units.

    Raises:
        UserError: an unknown prior or solver, a shape that the prior does not take, or counts below 1.
    """
    for name, value in (("count", count), ("batch_size", batch_size)):
        whole(value, f"sample: {name}", 1)
    seed, steps = whole(seed, "sample: seed"), whole(steps, "sample: steps")
    place = api.resolve_device(device)
    loaded = placed(prior_of(prior), place, frozen=True)
    parts = []
    for first in range(0, count, batch_size):
        items = min(batch_size, count - first)
        parts.append(draw(loaded, seed, steps, items, shape, place, solver, first, levels).cpu())
    return physical(loaded).to_physical(torch.cat(parts))


def draw(
    prior: Prior,
    seed: int,
    steps: int = 24,
    count: int = 1,
    shape: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    solver_: Solver | str = "dpmpp-2m",
    first: int = 0,
    levels: Sequence[float] | None = None,
) -> Tensor:
    """Draw images from a prior, network units, in one batch.

    Args:
        prior: on `device`.
        seed: image i depends on (seed, i) alone.
        steps: noise levels of the EDM schedule.
        count: how many images.
        shape: (C, *spatial); default the prior's own, free sizes filled with 128.
        device: where to compute.
        solver_: a name or a Solver.
        first: number of the first image.
        levels: noise levels instead, descending to 0.

    Returns:
        (count, C, *spatial), float32.

    Raises:
        UserError: an unknown solver, fewer than 2 steps, levels that do not descend to 0, or a shape not of the prior.
    """
    chosen = solver(solver_)
    if steps < 2:
        raise UserError(f"sample: steps must be at least 2, got {steps}")
    wanted = image_shape(prior) if shape is None else tuple(shape)
    fixed = prior.event_shape
    if len(wanted) != len(fixed) or any(f not in (None, w) for f, w in zip(fixed, wanted, strict=True)):
        raise UserError(
            f"prior {prior.name or type(prior).__name__!r} makes images (channels, *size) of "
            f"{tuple('any' if f is None else f for f in fixed)}, asked for {wanted}"
        )
    if levels is None:
        levels = schedules.edm(steps, prior.sigma_min, prior.sigma_max).tolist()
    elif len(levels) < 2 or levels[-1] != 0 or any(not a > b for a, b in pairwise(levels)):
        raise UserError(f"sample: levels must descend to 0, such as 40, 5, 0.5, 0, got {list(levels)[:6]}")
    by = chosen.over(len(levels) - 1)
    if isinstance(prior, LatentPrior):
        prior.check_shape(wanted)
        latents = along(prior.inner, levels, by, seed, count, prior.state_shape(wanted), device, first)
        with torch.no_grad():
            return prior.decode(latents)
    return along(prior, levels, by, seed, count, wanted, device, first)


def along(
    prior: Prior,
    levels: Sequence[float],
    by: Solver,
    seed: int,
    count: int,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    first: int = 0,
) -> Tensor:
    """Images (count, *shape), network units, from noise along the levels (descending, the last 0); arguments as for `draw`."""
    rng = ChainRandom(seed, [(item, 0) for item in range(first, first + count)])
    x = levels[0] * rng.at(0).normal(torch.zeros(count, *shape, device=device))

    def denoise(z: Tensor, sigma: float) -> Tensor:
        # full() passes sigma as a kernel argument; a tensor made from a Python number would wait for the device.
        level = torch.full((), sigma, dtype=z.dtype, device=z.device)
        return check_images(prior.denoise(z, level), z, called("prior", prior), "denoise")

    memory: Memory = {}
    with torch.no_grad():
        for k, (sigma, sigma_next) in enumerate(pairwise(levels), start=1):
            x, memory = by.step(denoise, x, memory, sigma, sigma_next, rng.at(k))
    return x


def image_shape(prior: Prior, size: int | None = None) -> tuple[int, ...]:
    """The prior's image shape (C, *spatial), free sizes filled with `size` or 128.

    Raises:
        UserError: a size that contradicts the prior's.
    """
    channels, *spatial = prior.event_shape
    if size is not None and (size < 1 or any(s not in (None, size) for s in spatial)):
        own = " x ".join("any" if s is None else str(s) for s in spatial)
        raise UserError(f"size {size}: the prior makes images of {own}")
    return (channels or 1, *(s or size or SIZE for s in spatial))


def physical(prior: Prior) -> Scale:
    """The map from a prior's network units to its physical ones."""
    return Scale() if prior.data_range is None else Scale.from_range(*prior.data_range, origin="prior")
