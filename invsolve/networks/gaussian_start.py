"""A Gaussian with the mean and the spectrum of a prior's training images: D at the largest noise levels, without the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from invsolve.contracts.prior import per_row
from invsolve.errors import UserError
from invsolve.numerics.modes import Modes

#: Longest side of an image whose Gaussian is stored, and most modes along it; a header may not ask for more.
_LONGEST, _MOST = 8192, 512


def _cosine(count: int, length: int) -> Tensor:
    k, n = torch.arange(count, dtype=torch.float64)[:, None], torch.arange(length, dtype=torch.float64)
    rows = (2 / length) ** 0.5 * torch.cos(math.pi * k * (2 * n + 1) / (2 * length))
    rows[0] /= 2**0.5
    return rows


def _fourier(count: int, length: int) -> Tensor:
    place = torch.arange(count)
    k, n = ((place + 1) // 2).double()[:, None], torch.arange(length, dtype=torch.float64)
    angle = 2 * math.pi * k * n / length
    rows = (2 / length) ** 0.5 * torch.where((place % 2 == 0)[:, None], angle.sin(), angle.cos())
    rows[0] = length**-0.5
    if length % 2 == 0 and count == length:
        rows[-1] /= 2**0.5
    return rows


#: (modes, length) -> orthonormal rows, slowest mode first: "cosine" continues an image by reflection, "fourier" periodically.
BASES: dict[str, Callable[[int, int], Tensor]] = {"cosine": _cosine, "fourier": _fourier}


class GaussianStart:
    """A Gaussian whose coefficients in a separable basis are independent: the slow modes of the images, the others zero.

    At large noise levels the score of any images is that of the Gaussian with their mean and covariance (Wang and Vastola 2024,
    arXiv 2412.09726): D(x, sigma) = m + P / (P + sigma^2) (x - m), for each coefficient. Fast modes are far below the noise
    there.

    Args:
        size: of the images it stands for, (rows, columns) or any number of axes.
        mean, power: (C, *modes), mean and variance of the coefficients, modes <= size along each axis.
        rest: variance of a pixel that is in no mode kept.
        basis: a key of `BASES`.
        above: noise level from which on a prior is to use it, network units; None for never.

    Raises:
        UserError: shapes that do not go together, or numbers that no Gaussian has.
    """

    def __init__(
        self,
        size: Sequence[int],
        mean: Tensor,
        power: Tensor,
        rest: float = 0.0,
        basis: str = "cosine",
        above: float | None = None,
    ) -> None:
        self.size, self.rest, self.basis, self.above = tuple(size), float(rest), basis, above
        fits = mean.shape == power.shape and mean.ndim == len(self.size) + 1
        if basis not in BASES or not fits or any(m > s for m, s in zip(mean.shape[1:], self.size, strict=True)):
            raise UserError(
                f"gaussian: mean {tuple(mean.shape)} and power {tuple(power.shape)} are no coefficients (channels, *modes) in "
                f"the basis {basis!r} of images of {self.size}"
            )
        good = mean.isfinite().all() and power.isfinite().all() and bool((power >= 0).all()) and self.rest >= 0
        if not good or (above is not None and not above > 0):
            raise UserError("gaussian: means must be finite, variances >= 0, and the level above which it stands > 0")
        # No module and no buffers: the header says it, and half precision must not come near it.
        self.mean, self.power = mean.double(), power.double()
        self._rows = [BASES[basis](count, length) for count, length in zip(mean.shape[1:], self.size, strict=True)]
        self._moved: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}

    @classmethod
    def measure(
        cls,
        images: Tensor,
        weights: Tensor | None = None,
        modes: int = 24,
        basis: str = "cosine",
        mirrored: Sequence[int] = (),
        above: float | None = None,
    ) -> GaussianStart:
        """That of images.

        Args:
            images: (N, C, *size), network units.
            weights: (N,), how much each counts; default all alike.
            modes: along each axis, at most.
            basis, above: as for the class.
            mirrored: spatial axes along which images are as likely mirrored.

        Raises:
            UserError: fewer than two images.
        """
        if len(images) < 2:
            raise UserError(f"a Gaussian is measured on two images or more, got {len(images)}")
        share = torch.ones(len(images)) if weights is None else weights.detach().cpu()
        share = (share / share.sum()).double()
        counts = [min(modes, length) for length in images.shape[2:]]
        rows = [BASES[basis](count, length) for count, length in zip(counts, images.shape[2:], strict=True)]
        values = torch.cat([_analysed(part.double(), rows) for part in images.cpu().split(64)])
        energy = torch.cat([part.double().square().flatten(1).sum(1) for part in images.cpu().split(64)])
        energy = energy - values.square().flatten(1).sum(1)
        for axis in mirrored:
            turn = [BASES[basis](counts[axis], images.shape[2 + axis]).flip(1) @ rows[axis].T]
            turned = torch.movedim(torch.tensordot(values, turn[0], ([2 + axis], [1])), -1, 2 + axis)
            values, share = torch.cat([values, turned]), torch.cat([share, share]) / 2
            energy = torch.cat([energy, energy])
        weight = share.view(-1, *[1] * (values.ndim - 1))
        mean = (weight * values).sum(0)
        power = (weight * (values - mean) ** 2).sum(0)
        rest = float((share * energy).sum().clamp(min=0)) / images[0].numel()
        return cls(images.shape[2:], mean, power, rest, basis, above)

    def stands_for(self, shape: Sequence[int]) -> bool:
        """Whether it is of images (C, *spatial) of this shape."""
        return tuple(shape) == (len(self.mean), *self.size)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, sigma): x (B, C, *size), sigma a scalar tensor or (B,); like x."""
        work = torch.float64 if x.dtype == torch.float64 else torch.float32
        mean, power, *rows = self._on(x.device, work)
        # Half precision would cost what the closed form is there for.
        with torch.autocast(x.device.type, enabled=False):
            noise = per_row(sigma.to(work), x) ** 2
            inside = _analysed(x.to(work), rows)
            inside = mean + power / (power + noise) * (inside - mean)
            return _analysed(inside, [each.T for each in rows]).to(x.dtype)

    def _on(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        key = (device, dtype)
        if key not in self._moved:
            self._moved[key] = [each.to(device, dtype) for each in (self.mean, self.power, *self._rows)]
        return self._moved[key]

    def error(self, sigma: float) -> float:
        """Mean squared error of a pixel of D, were the images this Gaussian and what is in no mode kept."""
        pixels = len(self.mean) * math.prod(self.size)
        return float((self.power * sigma**2 / (self.power + sigma**2)).sum()) / pixels + self.rest

    def modes(self, like: Tensor) -> Modes:
        """Its covariance, with what is in no mode kept spread evenly over all others; for images (B, C, *size)."""
        kept = self.power.numel()
        others = len(self.mean) * math.prod(self.size) - kept
        share = self.rest * (kept + others) / max(others, 1)
        variance = torch.full((len(self.mean), *self.size), share, dtype=torch.float64)
        variance[tuple(slice(count) for count in self.power.shape)] = self.power
        rows = [BASES[self.basis](length, length).to(like) for length in self.size]
        back = [each.T for each in rows]
        return Modes(variance.to(like), lambda x: _analysed(x, rows), lambda c: _analysed(c, back))

    def record(self) -> dict[str, Any]:
        """What a header says of it, from which `from_record` makes it again; four digits a number."""
        return {
            "size": list(self.size),
            "basis": self.basis,
            "mean": _rounded(self.mean),
            "power": _rounded(self.power),
            "rest": float(f"{self.rest:.4g}"),
            "above": self.above,
        }

    @classmethod
    def from_record(cls, record: Any, channels: int, where: str) -> GaussianStart:
        """Of a header's entry `gaussian`, which may say anything.

        Raises:
            UserError: it is not what `record` returns, or of other images than those of `channels` channels.
        """
        try:
            size = [int(length) for length in record["size"]]
            if not 1 <= len(size) <= 3 or not all(0 < length <= _LONGEST for length in size):
                raise ValueError("size")
            mean, power = (torch.tensor(record[name], dtype=torch.float64) for name in ("mean", "power"))
            if max(mean.shape) > _MOST:
                raise ValueError(f"more than {_MOST} modes")
            above = None if record["above"] is None else float(record["above"])
            made = cls(size, mean, power, float(record["rest"]), str(record["basis"]), above)
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, UserError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{where}: gaussian is no Gaussian of images ({reason}); write the header again") from None
        if len(made.mean) != channels:
            raise UserError(
                f"{where}: gaussian has {len(made.mean)} channels, the images {channels}; write the header again"
            )
        return made


def level_of_choice(network: Mapping[str, Sequence[float]], errors: Sequence[float]) -> float | None:
    """The lowest noise level from which on the network is nowhere better than the Gaussian; None where it is at the largest.

    Args:
        network: error curve on held-out images.
        errors: of the Gaussian on the same images with the same noise, one per level.
    """
    chosen = None
    for sigma, mse, other in zip(reversed(network["sigma"]), reversed(network["mse"]), reversed(errors), strict=True):
        if other > mse:
            break
        chosen = float(sigma)
    return chosen


def _analysed(x: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """x (B, C, *size) times a matrix (out, size) along each of its spatial axes."""
    for axis, matrix in enumerate(rows, start=2):
        x = torch.movedim(torch.tensordot(x, matrix, ([axis], [1])), -1, axis)
    return x


def _rounded(values: Tensor) -> Any:
    if values.ndim > 1:
        return [_rounded(part) for part in values]
    return [float(f"{value:.4g}") for value in values.tolist()]
