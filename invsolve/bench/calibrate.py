"""Simulation-based calibration: truths from the prior, their measurements, posterior samples, and the ranks of the truths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve import api
from invsolve.api import sampling
from invsolve.bench import ranks as rank_tests
from invsolve.contracts.measurement import Measurement
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.contracts.prior import Prior
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import Strategy
from invsolve.engine.options import Options
from invsolve.engine.run import Run
from invsolve.errors import UserError
from invsolve.numerics.random import SHARED, ChainRandom

#: Network calls a truth where the prior cannot be sampled directly.
FLOW_STEPS = 200
#: The truths' random numbers are keyed apart from the samplers', which otherwise would start from the truth's own noise.
TRUTH = SHARED - 2
LEVEL = 0.01
#: Functionals of this name are distances to a random point.
TARP = "TARP "


@dataclass
class Calibration:
    """Ranks (trials,) of the truth among `samples` posterior samples, in 0 .. samples, by test functional."""

    samples: int
    ranks: dict[str, np.ndarray]
    truths: str

    def tarp(self, level: float) -> dict[str, float]:
        """Expected coverage of TARP's regions of this probability, by what they are regions of; `level` when exact."""
        found = {}
        for name, ranks in self.ranks.items():
            if name.startswith(TARP):
                # A rank is one of samples + 1 equally likely ones; what of it lies below the level counts in part.
                below = np.clip(level * (self.samples + 1) - ranks, 0, 1)
                found[name.removeprefix(TARP)] = float(below.mean())
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Per functional: p-values, a verdict at 1 % over all functionals together (Bonferroni), and the ranks."""
        table = []
        for name, ranks in self.ranks.items():
            band = rank_tests.ecdf_band(ranks, self.samples)
            table.append(
                {
                    "functional": name,
                    "p_chi_square": rank_tests.chi_square(ranks, self.samples),
                    "p_ecdf": band,
                    "verdict": rank_tests.verdict(ranks, self.samples, band, LEVEL / len(self.ranks)),
                    "histogram": rank_tests.bars(ranks, self.samples),
                    "ranks": ranks.tolist(),
                }
            )
        return table


def calibrate(
    prior: Prior,
    operator: Operator,
    noise: Noise,
    strategy: Strategy,
    trials: int = 200,
    samples: int = 31,
    seed: int = 0,
    image_shape: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """Rank known truths among posterior samples (Talts 2018): uniform for every functional when the samples are exact.

    Truths come from the prior's own `sample` where it has one (analytic priors). Otherwise from its probability flow,
    DPM-Solver++ 2M in 200 network calls: then it is the network's distribution as that solver sees it, and a departure of the
    ranks can be the error of that draw as well as of the strategy.

    Functionals: five random projections, the pixel mean, the norm of the image, and `misfit`, |y - A(x)|, which depends on
    the data and so catches a sampler that ignores them (Modrak 2023).

    Also TARP (Lemos 2023): the distance to a random reference point, here the truth of another item, over the whole image and
    over means of large blocks. The part of the samples that is nearer to it than the truth is uniform for exact samples; its
    distribution is the expected coverage of the regions that such distances bound.

    Args:
        trials, samples: truths, and posterior samples of each.
        seed: of everything.
        image_shape: (C, *spatial) where neither operator nor prior fixes it.

    Raises:
        UserError: the parts do not fit one another.
    """
    if trials < 10 or samples < 2:
        raise UserError(f"calibration needs at least 10 trials of 2 samples, got {trials} of {samples}")
    shape = image_shape or operator.image_shape or prior.event_shape
    if operator.complex_image:
        shape = (prior.event_shape[0] or 1, *shape[1:])
    if None in shape:
        raise UserError(f"the image size is free: give it (--image-size); the prior takes {prior.event_shape}")
    prior.check_shape([s or 0 for s in shape])
    prior.requires_grad_(False).eval().to(device)
    truths, origin = _truths(prior, trials, seed, [s or 0 for s in shape], device, say)
    scale = Scale() if prior.data_range is None else Scale.from_range(*prior.data_range, origin="prior")
    y = api.simulate(scale.to_physical(truths), operator, noise, seed)
    options = Options(samples=samples, seed=seed, batch_size=batch_size, device=device, scale=scale)
    run = api.plan(Measurement(y, operator, noise), prior, strategy, options)
    sink = Ranks(run, truths, seed)
    api.execute(run, sink)
    return Calibration(samples, {name: np.array(values) for name, values in sink.ranks.items()}, origin)


def _truths(
    prior: Prior, trials: int, seed: int, shape: list[int], device: str, say: Callable[[str], None]
) -> tuple[Tensor, str]:
    """Draws from the prior, network units, and how they were drawn."""
    draw = getattr(prior, "sample", None)
    if draw is not None:
        rng = ChainRandom(seed, [(item, TRUTH) for item in range(trials)])
        return draw(rng, torch.zeros(1, device=device)).cpu(), "the prior's own sampler"
    origin = f"probability flow, DPM-Solver++ 2M, {FLOW_STEPS} network calls per truth: its error enters the ranks"
    say(f"truths: {origin}")
    parts = []
    for first in range(0, trials, 16):
        # `draw` keys its images by (item, 0), as the samplers do: another seed keeps the two apart.
        part = sampling.draw(prior, seed + TRUTH + first, FLOW_STEPS, min(16, trials - first), shape, device)
        parts.append(part.cpu())
    return torch.cat(parts), origin


@dataclass
class Ranks:
    """A sink that keeps the rank of each truth and forgets the samples."""

    run: Run
    truths: Tensor
    seed: int
    ranks: dict[str, list[int]] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)

    def is_done(self, item: int) -> bool:
        return item in self.done

    def write(self, item: int, arrays: Mapping[str, Tensor], facts: Mapping[str, float]) -> None:
        samples = self.run.scale.to_network(arrays["samples"])
        truth = self.truths[item : item + 1]
        values = functionals(torch.cat([truth, samples.to(truth)]))
        with torch.no_grad():
            own, _ = self.run.problem([(item, 0)]).discrepancy(truth.to(self.run.device, self.run.dtype))
        values["misfit"] = torch.cat([own.cpu().double(), arrays["discrepancy"].double()])
        values |= self._distances(item, truth, samples)
        ties = np.random.default_rng([self.seed, item])
        for name, value in values.items():
            below, equal = int((value[1:] < value[0]).sum()), int((value[1:] == value[0]).sum())
            # A truth that equals samples takes any of their places with the same chance.
            self.ranks.setdefault(name, []).append(below + int(ties.integers(0, equal + 1)))
        self.done.add(item)

    def _distances(self, item: int, truth: Tensor, samples: Tensor) -> dict[str, Tensor]:
        """Distances of truth and samples to another item's truth, which knows nothing of this one's: TARP."""
        place = (item + 1) % len(self.truths)
        points = torch.cat([self.truths[place : place + 1], truth, samples.to(truth)])
        return {
            f"{TARP}{name}": (value[1:] - value[0]).norm(dim=1)
            for name, value in {"image": points.flatten(1).double(), "coarse": coarse(points)}.items()
        }


def coarse(images: Tensor) -> Tensor:
    """Means of images (B, C, *spatial) over at most 4 blocks an axis, (B, numbers), float64: what L2 over all pixels hides."""
    flat = images.double()
    for axis in range(2, images.ndim):
        parts = flat.tensor_split(min(4, flat.shape[axis]), axis)
        flat = torch.cat([part.mean(axis, keepdim=True) for part in parts], axis)
    return flat.flatten(1)


def functionals(images: Tensor) -> dict[str, Tensor]:
    """What is ranked: numbers (B,) of images (B, C, *spatial), float64."""
    flat = images.flatten(1).double()
    directions = torch.randn(5, flat.shape[1], dtype=flat.dtype, generator=torch.Generator().manual_seed(0))
    projections = flat @ directions.T
    values = {f"projection {k + 1}": projections[:, k] for k in range(len(directions))}
    return values | {"pixel mean": flat.mean(1), "norm": flat.norm(dim=1)}


def draw_figure(calibration: Calibration, path: Path) -> None:
    """Write the rank histograms and the empirical distributions less the uniform one, with pointwise 99 % bands, as a PNG.

    Raises:
        UserError: the name does not end in .png, or the folder is not there.
    """
    if path.suffix != ".png" or not path.parent.is_dir():
        raise UserError(f"{path}: name a .png file in a folder that exists")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from scipy import stats

    names, samples = list(calibration.ranks), calibration.samples
    figure, axes = plt.subplots(2, len(names), figsize=(2.1 * len(names), 4), squeeze=False, layout="constrained")
    for (above, below), name in zip(axes.T, names, strict=True):
        ranks = calibration.ranks[name]
        trials = len(ranks)
        counts, shares = rank_tests.histogram(ranks, samples, rank_tests.bin_count(trials, samples))
        place = np.arange(len(counts))
        above.fill_between(place, *stats.binom.interval(0.99, trials, shares), step="mid", color="0.88")
        above.bar(place, counts, width=0.9)
        above.set_title(name, fontsize=8)
        z = np.arange(1, samples + 1) / (samples + 1)
        low, high = (np.asarray(edge) / trials - z for edge in stats.binom.interval(0.99, trials, z))
        below.fill_between(z, low, high, color="0.88")
        below.plot(z, np.bincount(ranks, minlength=samples + 1).cumsum()[:-1] / trials - z)
        for axis in (above, below):
            axis.tick_params(labelsize=6)
    axes[0, 0].set_ylabel("trials by rank", fontsize=8)
    axes[1, 0].set_ylabel("ECDF - uniform", fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
