"""Volumes: which items are the slices of one, and how network and operator see only a few slices at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from invsolve.contracts.latent import LatentPrior
from invsolve.contracts.measurement import Measurement
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.contracts.prior import Prior
from invsolve.contracts.wrapped import Wrapped, WrappedLinear
from invsolve.errors import Unsuited, UserError
from invsolve.numerics.krylov import CG, Solution
from invsolve.numerics.modes import Modes
from invsolve.numerics.spectrum import SingularSystem


def volumes_of(measurement: Measurement) -> list[list[int]]:
    """The items of each volume, in their order: those with the same label in `measurement.volumes`, else all of them.

    Raises:
        UserError: there is not one label per item.
    """
    count, labels = len(measurement.y), measurement.volumes
    if labels is None:
        return [list(range(count))]
    if len(labels) != count:
        raise UserError(f"{measurement.source or 'measurement'}: {len(labels)} volume labels for {count} items")
    volumes: dict[int, list[int]] = {}
    for item, label in enumerate(labels):
        volumes.setdefault(int(label), []).append(item)
    return list(volumes.values())


class InChunks(Wrapped, Operator):
    """An operator that takes so many rows at a time, on its own device, whatever device the rows live on.

    Args:
        inner: the operator.
        rows: how many go through it at once.
        device: where.
        home: where the rows live.
    """

    def __init__(self, inner: Operator, rows: int, device: torch.device, home: torch.device) -> None:
        super().__init__(inner)
        self.rows, self.device, self.home = rows, device, home

    def _map(self, function: Callable[..., Tensor], *values: Tensor | float | None) -> Tensor:
        """Apply a function of tensors with the batch first to chunks of them; what has another length goes in whole."""
        first = values[0]
        assert isinstance(first, Tensor)
        done = [function(*parts).to(first.device) for parts in self._chunks(*values)]
        return done[0] if len(done) == 1 else torch.cat(done)

    def _chunks(self, *values: Any) -> Iterator[list[Any]]:
        """The values of some rows at a time, on the device; what has another length than the first goes in whole."""
        count = len(values[0])

        def part(value: Any, start: int) -> Any:
            if not isinstance(value, Tensor):
                return value
            cut = value[start : start + self.rows] if value.ndim and len(value) == count else value
            return cut.to(self.device, non_blocking=True)

        return ([part(v, start) for v in values] for start in range(0, count, self.rows))

    def forward(self, x: Tensor) -> Tensor:
        return self._map(self.inner, x)

    def measured(self) -> Tensor | None:
        mask = self.inner.measured()
        return None if mask is None else mask.to(self.home)


class LinearInChunks(InChunks, WrappedLinear, LinearOperator):
    """`InChunks` of a linear operator. Its solvers stop each row for itself, so chunks do not change what they find."""

    def adjoint(self, y: Tensor) -> Tensor:
        return self._map(self.inner.adjoint, y)

    def normal(self, x: Tensor) -> Tensor:
        return self._map(self.inner.normal, x)

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        endings: list[list[Solution]] = []

        def solve(z: Tensor, y: Tensor, rho: float | Tensor, start: Tensor | None) -> Tensor:
            endings.append([])
            return self.inner.prox(z, y, rho, replace(solver, start=start, told=endings[-1].append))

        x = self._map(solve, z, y, rho, solver.start)
        _tell(solver, endings, self.home)
        return x

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor | None:
        parts = [self.inner.tikhonov(*parts) for parts in self._chunks(r, rho)]
        done = [part.to(r.device) for part in parts if part is not None]
        return torch.cat(done) if len(done) == len(parts) else None

    def pinv(self, y: Tensor, solver: CG = CG(1e-6, 200)) -> Tensor:
        endings: list[list[Solution]] = []

        def solve(y: Tensor, start: Tensor | None) -> Tensor:
            endings.append([])
            return self.inner.pinv(y, replace(solver, start=start, told=endings[-1].append))

        x = self._map(solve, y, solver.start)
        _tell(solver, endings, self.home)
        return x

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem | None:
        return self._at_home(super().svd(image_shape, like[:1].to(self.device)))

    def svd_on_real_images(self, like: Tensor) -> SingularSystem | None:
        return self._at_home(super().svd_on_real_images(like[:1].to(self.device)))

    def _at_home(self, system: SingularSystem | None) -> SingularSystem | None:
        """The system for tensors that live at home, a few rows at a time."""
        if system is None:
            return None
        maps = (system.to_basis, system.from_basis, system.measurement_to_basis)
        to_basis, from_basis, measured = (partial(self._map, each) for each in maps)
        return SingularSystem(system.values.to(self.home), to_basis, from_basis, measured)

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0, solver: CG | None = None) -> Tensor:
        if solver is None:
            return self._map(self.inner.baseline, y, sigma)
        endings: list[list[Solution]] = []

        def solve(y: Tensor, sigma: float | Tensor, start: Tensor | None) -> Tensor:
            endings.append([])
            return self.inner.baseline(y, sigma, replace(solver, start=start, told=endings[-1].append))

        x = self._map(solve, y, sigma, solver.start)
        _tell(solver, endings, self.home)
        return x

    def norm(self, like: Tensor | None = None) -> float:
        return self.inner.norm(None if like is None else like.to(self.device))


def _tell(solver: CG, endings: list[list[Solution]], home: torch.device) -> None:
    """Tell how the solves of all chunks ended as if they had been one each."""
    for parts in zip(*endings, strict=True) if solver.told is not None else ():
        pieces = ((p.x, p.converged, p.iterations) for p in parts)
        solver.told(Solution(*(torch.cat([t.to(home) for t in column]) for column in zip(*pieces, strict=True))))  # type: ignore[misc]


def in_chunks(operator: Operator, rows: int, device: torch.device, home: torch.device) -> Operator:
    """See an operator as one that takes so many rows at a time, on a device, of tensors that live at home."""
    kind = LinearInChunks if isinstance(operator, LinearOperator) else InChunks
    return kind(operator, rows, device, home)


class PriorInChunks(Prior):
    """A prior that denoises so many images at a time, on its own device, whatever device they live on.

    Args:
        inner: the prior.
        rows: how many images go through it at once.
        device: where.
    """

    def __init__(self, inner: Prior, rows: int, device: torch.device) -> None:
        super().__init__()
        self.inner, self.rows, self.device = inner, rows, device
        for name in ("event_shape", "sigma_min", "sigma_max", "data_range", "unit", "differentiable", "source"):
            setattr(self, name, getattr(inner, name))
        self.error_curve, self.name, self.parameters_given = inner.error_curve, inner.name, inner.parameters_given

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.to(self.device)
        done = []
        for start in range(0, len(x), self.rows):
            some = slice(start, start + self.rows)
            part = x[some].to(self.device, non_blocking=True)
            done.append(self.inner.denoise(part, level[some] if level.ndim else level).to(x.device))
        return done[0] if len(done) == 1 else torch.cat(done)

    def state_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        return self.inner.state_shape(image_shape)

    def passes_at(self, image_shape: Sequence[int], sigma: float) -> int:
        return self.inner.passes_at(image_shape, sigma)

    def error(self, sigma: float) -> float:
        return self.inner.error(sigma)

    def modes(self, like: Tensor) -> Modes | None:
        return self.inner.modes(like)

    def bounds(self) -> tuple[float, float] | None:
        return self.inner.bounds()

    def fingerprint(self) -> str:
        return self.inner.fingerprint()


class SliceWise(PriorInChunks):
    """A prior of 2-D images as one of volumes (B, C, Z, Y, X).

    With one slicing it takes the slices along Z to be independent. With three, those along Y and X are denoised too, and the
    three estimates averaged: each knows a voxel's neighbours in one plane, so their errors are not the same.

    Args:
        inner, rows, device: as for `PriorInChunks`; rows are slices.
        planes: 1 or 3.
    """

    def __init__(self, inner: Prior, rows: int, device: torch.device, planes: int = 1) -> None:
        super().__init__(inner, rows, device)
        channels, *spatial = inner.event_shape
        self.event_shape = (channels, None, *spatial)
        self.axes = (2, 3, 4)[:planes]
        self.passes = planes * inner.passes

    def passes_at(self, image_shape: Sequence[int], sigma: float) -> int:
        channels, *sides = image_shape
        # A voxel goes through once a plane; the plane across `axis` has the other two sides.
        planes = [(channels, *(side for k, side in enumerate(sides, start=2) if k != axis)) for axis in self.axes]
        return sum(self.inner.passes_at(plane, sigma) for plane in planes)

    def modes(self, like: Tensor) -> Modes | None:
        # An average over planes has another covariance than either.
        return self.inner.modes(like) if len(self.axes) == 1 else None

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        first, *others = (self._along(axis, x, sigma) for axis in self.axes)
        return sum(others, first) / len(self.axes) if others else first

    def _along(self, axis: int, x: Tensor, sigma: Tensor) -> Tensor:
        cut = x.movedim(axis, 1)
        level = sigma.repeat_interleave(cut.shape[1]) if sigma.ndim else sigma
        return super().denoise(cut.flatten(0, 1), level).view(cut.shape).movedim(1, axis)


class RowsOfAVolume(SliceWise):
    """`SliceWise` of one volume whose slices are the rows (Z, C, Y, X), for strategies that couple the items of a file."""

    def __init__(self, inner: Prior, rows: int, device: torch.device, planes: int = 1) -> None:
        super().__init__(inner, rows, device, planes)
        self.event_shape = inner.event_shape

    def passes_at(self, image_shape: Sequence[int], sigma: float) -> int:
        # Rows are slices: how many there are is not known here, so that slices of other planes count as if by the network.
        return self.inner.passes_at(image_shape, sigma) + (len(self.axes) - 1) * self.inner.passes

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        # The rows of a volume go through the noise levels together.
        return super().denoise(x.movedim(0, 1)[None], sigma[:1] if sigma.ndim else sigma)[0].movedim(1, 0)


class ChannelWise(PriorInChunks):
    """A prior of grey images as one of images with several channels, which it takes to be independent of one another.

    Args:
        inner, rows, device: as for `PriorInChunks`; rows are channels.
        channels: how many an image has.
    """

    def __init__(self, inner: Prior, rows: int, device: torch.device, channels: int) -> None:
        super().__init__(inner, rows, device)
        self.event_shape = (channels, *inner.event_shape[1:])
        self.passes = channels * inner.passes

    def passes_at(self, image_shape: Sequence[int], sigma: float) -> int:
        return image_shape[0] * self.inner.passes_at((1, *image_shape[1:]), sigma)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.repeat_interleave(x.shape[1]) if sigma.ndim else sigma
        return super().denoise(x.flatten(0, 1)[:, None], level).view(x.shape)


def for_images(
    prior: Prior, image_shape: Sequence[int] | None, rows: int, device: torch.device, planes: int = 1
) -> Prior:
    """The prior, or a view of it as one of the operator's images: of volumes slice by slice, of colour channel by channel.

    Args:
        image_shape: (C, *spatial) of the operator's images; None where it is not known, or has to be the prior's.
    """
    known, own = tuple(image_shape or ()), tuple(prior.event_shape)
    if isinstance(prior, LatentPrior) and known and (len(known) != len(own) or known[0] != own[0]):
        raise UserError(
            f"prior {prior.name or type(prior).__name__!r} decodes images of {own[0]} channels in {len(own) - 1} dimensions, the "
            f"operator's are {known}; a latent prior has no view of volumes or single channels: take another prior"
        )
    if len(known) == len(own) + 1 == 4:
        return SliceWise(prior, rows, device, planes)
    if len(known) == len(own) and own[0] == 1 < known[0] and prior.state_shape((1, *known[1:])) == (1, *known[1:]):
        return ChannelWise(prior, rows, device, known[0])
    return prior


def check_planes(planes: int, prior: Prior | None, image_shape: Sequence[int], coupled: bool, strategy: str) -> None:
    """Refuse what cannot be: slices along other axes where there is no volume, or of a size that the prior cannot take.

    Raises:
        UserError: says what to take instead.
    """
    if planes == 1:
        return
    if prior is None:
        raise UserError(f"planes=3 is about the prior, and strategy {strategy!r} was given none: leave it out")
    if not (coupled or isinstance(prior, SliceWise)):
        raise Unsuited(
            f"planes=3 needs the whole volume, but strategy {strategy!r} takes the items one by one: take one that couples "
            "slices, or leave it out",
            lambda other: bool(getattr(other, "couples_items", False)) and "prior" in getattr(other, "needs", ()),
        )
    if None not in prior.event_shape[-2:]:
        size = " x ".join(str(n) for n in prior.event_shape[-2:])
        raise UserError(
            f"planes=3: the prior takes images of {size} only, and slices along other axes have other sizes"
        )
