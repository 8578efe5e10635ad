"""The self-test of a prior: does it denoise, and if not, as what would it? Finds wrong parametrisations, schedules and ranges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from invsolve.contracts.prior import Prior, per_row
from invsolve.networks import vp
from invsolve.networks.coordinates import PARAMETRISATIONS, Coordinates
from invsolve.networks.network_prior import NetworkPrior

RANGES = ((-1.0, 1.0), (0.0, 1.0))
SCHEDULES = ("linear", "cosine", "scaled_linear")
#: Another reading must do better than the declared one by this, in the mean logarithm of the squared error.
MARGIN = 0.12
#: Free sizes are tested at this many pixels a side.
SIDE = 64


class PriorWarning(UserWarning):
    """A prior was loaded, but its self-test says that it was not read as it was trained."""


@dataclass(frozen=True)
class SelfTest:
    """What denoising noise-corrupted reference images says about a prior. True when nothing speaks against it.

    Attributes:
        ok: it denoises at each level, and no other reading of its network does better.
        sigmas: the noise levels, in network units.
        ratios: mean squared error of D over that of the noisy input, one a level; below 1 is denoising.
        declared: how the network was read.
        likely: how it should have been read, if another reading does better; else empty.
        remedy: the arguments that say so, such as {"parametrisation": "v"}; empty without `likely`.
        text: the finding in one line.
    """

    ok: bool
    sigmas: tuple[float, ...]
    ratios: tuple[float, ...]
    declared: str
    likely: str
    remedy: dict[str, object]
    text: str

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class _Reading:
    """One way to read a network."""

    coordinates: Coordinates | None
    range: tuple[float, float]

    def __str__(self) -> str:
        of = "" if self.range == (-1.0, 1.0) else f" on images from {self.range[0]:g} to {self.range[1]:g}"
        return f"{self.coordinates or 'denoiser'}{of}"


def self_test(
    prior: Prior, images: Tensor | None = None, seed: int = 0, told: Callable[[], object] = lambda: None
) -> SelfTest:
    """Denoise reference images at five noise levels, and find out whether the network is read as it was trained.

    A denoiser whose output is worse than its input is wrong. So is a reading of the network (parametrisation, schedule, value
    range) when another one denoises better. Priors that wrap a network (`prior_from`, all checkpoint formats) are tried in
    every reading, others in the two value ranges.

    Args:
        prior: any prior; tested on the device where its weights are.
        images: (N, C, *spatial) in network units, like those it was trained on. Default photographs (scikit-image's camera and
            astronaut) scaled to the prior's size, or 64 pixels where that is free; other dimensions a smooth random field.
        seed: of the noise.
        told: called after each call of the network.

    Returns:
        SelfTest: its truth value, one line of text, and how the network should rather be read.
    """
    place = next((t.device for t in (*prior.parameters(), *prior.buffers())), torch.device("cpu"))
    if images is None:
        pictures = reference_images(prior.event_shape)
        # Large networks take seconds an image: then one a level, turn by turn.
        many = 10 if pictures[0, 0].numel() <= 128**2 else 5
        clean = pictures[torch.arange(many) % 2]
    else:
        clean = images.float().repeat(5, *[1] * (images.ndim - 1))
    low, high = max(prior.sigma_min, 0.05), min(prior.sigma_max, 5.0)
    low = low if low < high else high / 10
    sigmas = np.geomspace(low, high, 5)
    level = torch.tensor(np.repeat(sigmas, len(clean) // 5), dtype=torch.float32)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    bench = _Bench(prior, clean.to(place), (clean + per_row(level, clean) * noise).to(place), level.to(place), told)

    own = (
        _Reading(prior.coordinates, prior.network_range)
        if isinstance(prior, NetworkPrior)
        else _Reading(None, RANGES[0])
    )
    ratios = bench.ratios([own])[own]
    power = clean.double().square().view(5, -1).mean(1).tolist()
    # What shrinking each pixel by itself leaves: a network that knows images does better, at least on those it knows.
    shrunk = [p / (p + s**2) for p, s in zip(power, sigmas, strict=True)]
    candidates = _better(bench.ratios(list(_near(own))), ratios)
    # All readings are tried only where something is odd, for the same reason.
    if candidates or any(r > 1.05 * s for r, s in zip(ratios, shrunk, strict=True)):
        for values in dict.fromkeys([own.range, *RANGES]):
            candidates |= _better(bench.ratios(list(_far(own, values))), ratios)
    # The least bad of wrong readings must not be named: the right one denoises plainly, at least where photographs and the
    # network's own images are alike, in what is small and local.
    candidates = {reading: r for reading, r in candidates.items() if _fits(r, shrunk)}
    best = min(candidates, key=lambda reading: _score(candidates[reading]), default=None)
    text = _text(own, ratios, best, None if best is None else candidates[best], sigmas)
    return SelfTest(
        ok=best is None and _denoises(ratios),
        sigmas=tuple(float(s) for s in sigmas),
        ratios=ratios,
        declared=str(own),
        likely="" if best is None else str(best),
        remedy={} if best is None else _remedy(own, best),
        text=text,
    )


class _Bench:
    """Noisy images, and what each reading of a prior makes of them; one network call serves all readings fed alike."""

    def __init__(
        self, prior: Prior, clean: Tensor, noisy: Tensor, level: Tensor, told: Callable[[], object] = lambda: None
    ) -> None:
        self.prior, self.clean, self.noisy, self.level, self.told = prior, clean, noisy, level, told

    @torch.no_grad()
    def ratios(self, readings: list[_Reading]) -> dict[_Reading, tuple[float, ...]]:
        outputs: dict[object, Tensor | None] = {}
        ratios = {}
        for reading in readings:
            key = (_fed(reading.coordinates), reading.range)
            if key not in outputs:
                outputs[key] = self._output(reading)
                self.told()
            out = outputs[key]
            ratios[reading] = (math.inf,) * 5 if out is None else self._ratios(reading, out)
        return ratios

    def _output(self, reading: _Reading) -> Tensor | None:
        if not isinstance(self.prior, NetworkPrior) or reading.coordinates is None:
            low, high = reading.range
            middle, half = (low + high) / 2, (high - low) / 2
            return (self.prior.denoise(middle + half * self.noisy, half * self.level) - middle) / half
        try:
            return self.prior.raw_output(reading.coordinates, reading.range, self.noisy, self.level)
        except Exception:
            # A network may well refuse labels that it was never meant to see; its own it must take.
            if reading == _Reading(self.prior.coordinates, self.prior.network_range):
                raise
            return None

    def _ratios(self, reading: _Reading, out: Tensor) -> tuple[float, ...]:
        if isinstance(self.prior, NetworkPrior) and reading.coordinates is not None:
            out = self.prior.denoised(reading.coordinates, reading.range, self.noisy, self.level, out)
        error = (out - self.clean).double().square().flatten(1).mean(1)
        before = (self.noisy - self.clean).double().square().flatten(1).mean(1)
        ratios = (error.view(5, -1).mean(1) / before.view(5, -1).mean(1)).tolist()
        return tuple(r if math.isfinite(r) else math.inf for r in ratios)


def _fed(c: Coordinates | None) -> object:
    """What tells two readings' network inputs apart."""
    if c is None or c.schedule is not None:
        return c and ("vp", id(c.schedule), c.time_scale, c.integer_times)
    scaling = c.parametrisation if c.parametrisation in ("edm", "flow", "flow-to-data") else "ve"
    return scaling, c.sigma_data if scaling == "edm" else 0, c.label, c.time_scale, c.integer_times


def _near(own: _Reading) -> Iterator[_Reading]:
    """Readings that could pass for the declared one at first sight: the other value range, the other schedules."""
    for other in RANGES:
        if other != own.range:
            yield _Reading(own.coordinates, other)
    if own.coordinates is not None and own.coordinates.schedule is not None:
        yield from (_Reading(c, own.range) for c in _scheduled(own.coordinates))


def _far(own: _Reading, values: tuple[float, float]) -> Iterator[_Reading]:
    """Every reading there is in a value range, except for networks whose coordinates are not known at all."""
    given = own.coordinates
    if given is None:
        return
    plain = Coordinates("denoiser", integer_times=given.integer_times)
    sigma_data = dict.fromkeys([given.sigma_data, 0.5])
    yield from (_Reading(c, values) for c in _scheduled(given))
    if given.integer_times:
        return
    for data, scale in itertools.product(sigma_data, dict.fromkeys([1.0, 1000.0, given.time_scale])):
        yield _Reading(replace(plain, parametrisation="edm", sigma_data=data, time_scale=scale), values)
    for name in ("epsilon", "score", "denoiser"):
        for label in dict.fromkeys([None, given.label, "log_sigma/4", "log(sigma/2)"]):
            yield _Reading(replace(plain, parametrisation=name, label=label), values)
    for name in ("flow", "flow-to-data"):
        for scale in (1.0, 1000.0):
            yield _Reading(replace(plain, parametrisation=name, time_scale=scale), values)


def _scheduled(given: Coordinates) -> Iterator[Coordinates]:
    own = given.schedule
    # The declared schedule stands for its name; "vp-sde" and "linear" are the same to a thousandth, save for their ends.
    stands_for = {"vp-sde": "linear"}.get(own.name, own.name) if own is not None else ""
    others = [make() for name, make in vp.NAMED.items() if name in SCHEDULES and name != stands_for]
    for schedule in [*([own] if own is not None else []), *others]:
        for name in ("epsilon", "v", "sample", "score"):
            yield Coordinates(name, schedule, time_scale=1.0, integer_times=given.integer_times)


def _better(
    candidates: dict[_Reading, tuple[float, ...]], ratios: tuple[float, ...]
) -> dict[_Reading, tuple[float, ...]]:
    """Those readings that denoise, and clearly better than the declared one."""
    return {reading: r for reading, r in candidates.items() if _denoises(r) and _score(r) < _score(ratios) - MARGIN}


def _fits(ratios: tuple[float, ...], shrunk: list[float]) -> bool:
    # An untrained network, which returns nothing much, is a pixelwise shrinkage in some readings: that is not enough.
    if sum(math.log(r / s) for r, s in zip(ratios[:3], shrunk[:3], strict=True)) > -0.3:
        return False
    return all(r <= limit * s for r, s, limit in zip(ratios, shrunk, (1.05, 1.05, 1.05, 3, 3), strict=True))


def _denoises(ratios: tuple[float, ...]) -> bool:
    """Better than its input over all, and nowhere clearly worse."""
    return _score(ratios) < -0.05 and max(ratios) < 1.5


def _score(ratios: tuple[float, ...]) -> float:
    return sum(math.log(max(r, 1e-12)) for r in ratios) / len(ratios)


def _remedy(own: _Reading, best: _Reading) -> dict[str, object]:
    """The arguments of `prior_from` that differ."""
    arguments: dict[str, object] = {}
    if best.range != own.range:
        arguments["network_range"] = best.range
    a, b = own.coordinates, best.coordinates
    if a is None or b is None:
        return arguments
    if a.parametrisation != b.parametrisation:
        arguments["parametrisation"] = b.parametrisation
    if (a.schedule and a.schedule.name) != (b.schedule and b.schedule.name):
        arguments["schedule"] = b.schedule and b.schedule.name
    for name in ("label", "time_scale"):
        if b.schedule is None and getattr(a, name) != getattr(b, name):
            arguments[name] = getattr(b, name)
    if b.parametrisation == "edm" and a.sigma_data != b.sigma_data:
        arguments["sigma_data"] = b.sigma_data
    return arguments


def _text(
    own: _Reading,
    ratios: tuple[float, ...],
    best: _Reading | None,
    better: tuple[float, ...] | None,
    sigmas: np.ndarray,
) -> str:
    levels = f"sigma {', '.join(f'{s:.2g}' for s in sigmas)}"
    told = f"{', '.join(f'{r:.2g}' for r in ratios)} times the input's squared error at {levels}"
    if best is not None and better is not None:
        arguments = ", ".join(f"{key}={value!r}" for key, value in _remedy(own, best).items())
        return (
            f"read as {own}, it leaves {told}; read as {best}, {', '.join(f'{r:.2g}' for r in better)}: most likely it was "
            f"trained as that; give {arguments}"
        )
    if _denoises(ratios):
        return f"denoises as {own}: leaves {told}"
    return (
        f"read as {own}, it does not denoise: it leaves {told}, and no other reading does better ({', '.join(PARAMETRISATIONS)} "
        "were tried where they apply); the weights are untrained, or its images are nothing like photographs: pass images="
    )


def reference_images(event_shape: tuple[int | None, ...]) -> Tensor:
    """Two images (2, C, *spatial) within -1 and 1: photographs in two dimensions, smooth random fields in others."""
    channels, spatial = event_shape[0] or 1, tuple(s or SIDE for s in event_shape[1:])
    if len(spatial) != 2:
        return _smooth((2, channels, *spatial))
    from skimage import data

    astronaut = torch.from_numpy(np.ascontiguousarray(data.astronaut())).permute(2, 0, 1).float()
    camera = torch.from_numpy(np.ascontiguousarray(data.camera())).float()
    grey = torch.stack([camera, astronaut.mean(0)])[:, None]
    if channels == 3:
        pair = torch.stack([astronaut, camera.expand(3, -1, -1)])
    elif channels == 1:
        pair = grey
    else:
        # Two channels are mostly a complex image: spread the grey values over the channels by smooth weights.
        pair = 127.5 + (grey - 127.5) * _smooth((2, channels, *grey.shape[2:]))
    return F.interpolate(pair, spatial, mode="area") / 127.5 - 1


def _smooth(shape: tuple[int, ...]) -> Tensor:
    """Random fields with power falling as the fourth power of frequency, scaled to lie within -1 and 1."""
    field = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    axes = tuple(range(2, len(shape)))
    frequency = torch.zeros(shape[2:])
    for axis, size in enumerate(shape[2:]):
        k = torch.fft.fftfreq(size) * size
        frequency = frequency + k.view(-1, *[1] * (len(shape) - 3 - axis)) ** 2
    spectrum = torch.fft.fftn(field, dim=axes) / (1 + frequency)
    field = torch.fft.ifftn(spectrum, dim=axes).real
    return field / field.abs().amax(dim=axes, keepdim=True)
