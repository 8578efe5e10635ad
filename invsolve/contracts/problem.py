"""The posterior that a strategy is handed: prior, operator and noise in network units, and the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from invsolve.contracts.data_step import DataStep
from invsolve.contracts.latent import Decoded, LatentPrior
from invsolve.contracts.maskable import Acquired, MaskableOperator
from invsolve.contracts.noise import Gaussian, Noise
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.contracts.prior import Prior
from invsolve.contracts.returned import called, check_images, check_spread, check_tensor
from invsolve.contracts.scale import Scale
from invsolve.contracts.through_plane import ThroughPlane
from invsolve.contracts.views import InPhysicalUnits, real_view
from invsolve.contracts.whitening import weighted, white
from invsolve.numerics.krylov import CG
from invsolve.numerics.linalg import norm, rows, size_of


@dataclass
class Calls:
    """Images sent through the network, its vector-Jacobian product, and the operator, since the start."""

    network: int = 0
    vjp: int = 0
    forward: int = 0
    adjoint: int = 0

    def counts(self) -> dict[str, int]:
        """The counters by name."""
        return dict(vars(self))

    def add(self, counts: Mapping[str, int]) -> None:
        """Add counts by name."""
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)


@dataclass
class Problem(DataStep):
    """p(x | y) in network units, for a batch of chains: what is known, what was measured, and what that costs.

    Attributes:
        known: the prior, or None for strategies that do without; strategies use the property `prior`.
        operator: maps real network-unit images (B, C, *spatial) to y. Linear whenever the instrument's is.
        noise: in the units of `y`.
        y: (B, *measurement); where operator and noise allow, already shifted and scaled so that y = A x + noise holds for
            network-unit x, and weighted so that Gaussian noise is white in every row.
        image_shape: (C, *spatial).
        samples_per_item: rows that belong to one item, consecutive, for strategies that couple them.
        calls: counters the engine reads.
        shift: what the scale's offset took from y and from the image, both in network units.
        latent: where the prior's latents diffuse, what decodes them: `known`, `operator` and `image_shape` are then of latents.
        network_precision: "bf16" lets the network's products and convolutions run in bfloat16; everything else stays as it is.
        through_plane: the direction across the slices of a volume, for strategies that couple them.
    """

    known: Prior | None
    operator: Operator
    noise: Noise
    y: Tensor
    image_shape: tuple[int, ...]
    samples_per_item: int = 1
    calls: Calls = field(default_factory=Calls, init=False)
    shift: tuple[Tensor, float | Tensor] | None = None
    network_precision: str = "float32"
    latent: LatentPrior | None = None
    through_plane: ThroughPlane = field(default_factory=ThroughPlane)
    # Computed once a problem: in the step loop they would wait for the device. Not carried over by dataclasses.replace.
    _precision: Tensor | None = field(default=None, init=False)
    _dof: int | None = field(default=None, init=False)

    @property
    def prior(self) -> Prior:
        """The denoiser, for strategies that declared the need "prior"."""
        assert self.known is not None
        return self.known

    @property
    def batch(self) -> int:
        return len(self.y)

    @property
    def maskable(self) -> MaskableOperator:
        """The operator, for strategies that declared the need "maskable"."""
        assert isinstance(self.operator, MaskableOperator)
        return self.operator

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of one row of what diffuses: the image's, unless the prior says otherwise (see `Prior.state_shape`)."""
        return self.image_shape if self.known is None else self.known.state_shape(self.image_shape)

    def zeros(self) -> Tensor:
        """Real zeros (B, *state_shape) on the data's device: a state to fill with noise."""
        return torch.zeros(self.batch, *self.state_shape, dtype=self.y.real.dtype, device=self.y.device)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """D(x, sigma), counted; differentiable in x where gradients are enabled.

        Args:
            x: (B, C, *spatial).
            sigma: a number; or one a row, (B,), counted as network calls whatever the level.
        """
        if isinstance(sigma, Tensor):
            passes, level = self.prior.passes, sigma.to(x)
        else:
            passes = self.prior.passes_at(x.shape[1:], sigma)
            # full() passes sigma as a kernel argument; a tensor made from a Python number would wait for the device.
            level = torch.full((), sigma, dtype=x.dtype, device=x.device)
        self.calls.network += len(x) * passes
        who = called("prior", self.prior)
        if self.network_precision == "bf16":
            with torch.autocast((self.prior.device or x.device).type, torch.bfloat16):
                estimate = check_tensor(self.prior.denoise(x, level), tuple(x.shape), who, "denoise").to(x.dtype)
        else:
            estimate = check_images(self.prior.denoise(x, level), x, who, "denoise")
        if estimate.requires_grad:
            estimate.register_hook(partial(self._count_vjp, passes))
        return estimate

    def _count_vjp(self, passes: int, gradient: Tensor) -> None:
        self.calls.vjp += len(gradient) * passes

    def decoded(self, images: Tensor) -> Tensor:
        """The images that a result stands for: decoded latents where those diffuse, else as they are."""
        return images if self.latent is None else self.latent.decode(images)

    def residual(self, estimate: Tensor) -> Tensor:
        """y minus its mean given A(estimate), which is A(estimate) itself for most noises."""
        predicted = self.operator(estimate)
        if not self.noise.shifts:
            return self.y - predicted
        # Where nothing is measured y is zero, and says nothing of a mean.
        rest, mask = self.y - self.noise.mean(predicted), self.operator.measured()
        return rest if mask is None else rest * mask

    def misfit(self, residual: Tensor) -> Tensor:
        """Euclidean norm of a residual per row, (B,)."""
        return norm(residual)

    def log_likelihood(self, predicted: Tensor) -> Tensor:
        """log p(y | A(x) = predicted) up to a constant, (B,)."""
        value = self.noise.log_likelihood(self.y, predicted)
        return check_tensor(value, (self.batch,), called("noise", self.noise), "log_likelihood")

    def _std(self) -> Tensor:
        return check_spread(self.noise.std_from(self.y), self.y, called("noise", self.noise))

    def precision(self) -> Tensor | float:
        """Relative precision of each entry of y, mean square 1, to multiply a residual with; 1.0 for Gaussian noise."""
        if isinstance(self.noise, Gaussian):
            return 1.0
        if self._precision is None:
            # A floor, because an empty Poisson bin would otherwise count as exact.
            std = self._std().expand(self.y.shape)
            weight = 1 / std.clamp_min(0.05 * std.flatten(1).mean(1).view(-1, *[1] * (std.ndim - 1)))
            self._precision = weight / weight.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (std.ndim - 1))
        return self._precision

    def baseline(self, used: Tensor | None = None, solver: CG | None = None) -> Tensor:
        """The linear reconstruction that users of the instrument know, network units (see `LinearOperator.baseline`).

        It is made from the data as measured: a detector that does not see the whole image sees a constant offset as a cut
        square, which filtered back-projection would smear over everything.

        Args:
            used: boolean, broadcasts to y: the entries that were acquired, where not all were; the image is then the Tikhonov
                solution, since closed forms such as filtered back-projection are made for whole measurements.
            solver: how to iterate, where it is a solve; rows that do not converge are then counted in `unconverged`. None: as
                the operator does, which is enough to begin with or to compare to.
        """
        operator = self.linear if used is None else Acquired(self.linear, used)
        given = () if solver is None or operator.baseline_floor is None else (self.watched(solver),)
        if self.shift is None:
            return operator.baseline(self.y, self.sigma, *given)
        data, image = self.shift
        return operator.baseline(self.y + data, self.sigma, *given) - image

    def linear_norm(self) -> float | Tensor:
        """Largest singular value of A or of its linear part, by which gradient steps are divided; 1 where there is none.

        A tensor (B, 1, ...) where the rows have scales of their own, or their data do: of noise whose mean is not A(x) it is
        the norm of what the mean of y makes of A, weighted as `precision` weighs.
        """
        operator, slope = self.operator, self._weighted_slope()
        if isinstance(operator, InPhysicalUnits) and isinstance(operator.inner, LinearOperator):
            factor, _ = operator.scale.broadcast(self.blank())
            return slope * factor * (operator.inner.norm(self.y[:1]) or 1.0)
        return slope * self.operator_norm()

    def _weighted_slope(self) -> float | Tensor:
        """Root mean square, over a row's entries, of the slope of y's mean times the precision; (B, 1, ...) like images."""
        if not self.noise.shifts:
            return 1.0
        slope = torch.as_tensor(self.noise.slope(self.noise.predicted_from(self.y))) * self.precision()
        return rows(slope.flatten(1).square().mean(1).sqrt(), self.blank())

    def noise_level(self) -> Tensor:
        """Standard deviation of the noise as it stands beside A(x), root mean square over the entries of a row, (B,)."""
        if not self.noise.shifts:
            return self.expected_misfit() / self.dof() ** 0.5
        seen = self.noise.slope(self.noise.predicted_from(self.y)) / self._std().clamp_min(1e-30)
        mask = self.operator.measured()
        seen = seen.square() if mask is None else seen.square() * mask
        # Entries that say nothing of A(x), such as opaque rays, have no level of their own: precisions are averaged.
        return (self.dof() / seen.expand(self.y.shape).flatten(1).sum(1).clamp_min(1e-30)).sqrt()

    def data_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of |y - A(x)|^2 / 2 with respect to x, (B, C, *spatial), and the residual y - A(x)."""
        if isinstance(self.operator, LinearOperator) and not self.noise.shifts:
            residual = self.residual(x)
            return -self.operator.adjoint(residual), residual
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            residual = self.residual(x)
            (gradient,) = torch.autograd.grad((residual.abs() ** 2).sum() / 2, x)
        return gradient, residual.detach()

    def dof(self) -> int:
        """Real numbers measured per item: complex entries count twice, unmeasured ones not at all."""
        if self._dof is None:
            shape = self.y.shape[1:]
            mask = self.operator.measured()
            entries = size_of(shape) if mask is None else int(mask.expand(shape).sum())
            self._dof = entries * (2 if self.y.is_complex() else 1)
        return self._dof

    def expected_misfit(self) -> Tensor:
        """|y - A(x)| that the noise alone explains, (B,); Poisson: from the data."""
        std = self._std().expand(self.y.shape).to(self.y.real.dtype)
        mask = self.operator.measured()
        if mask is not None:
            std = std * mask
        return norm(std) * (2**0.5 if self.y.is_complex() else 1.0)

    def discrepancy(self, images: Tensor, used: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """How far images (B, C, *spatial) are from the data: |y - A(x)| over what the noise alone explains.

        A draw from the exact posterior leaves the same residual as the truth does, the noise: 1 on average, give or take
        1 / sqrt(2 numbers). What is squared and added up is `Noise.deviation`.

        Args:
            used: boolean, broadcasts to y: the entries to count; None for all that are measured.

        Returns:
            The ratio (B,), NaN where the noise is zero, infinite where A(x) is not finite; and (B,) how many independent real
            numbers it counts. Fewer than there are where the noise differs from entry to entry, because the noisier ones then
            decide, and where it has heavy tails.
        """
        weight = torch.ones(self.y.shape, dtype=self.y.real.dtype, device=self.y.device)
        for mask in (self.operator.measured(), used):
            if mask is not None:
                weight = weight * mask
        self._std()  # Refuses one of a wrong shape, in a line that names it.
        away, expected, scatter = (
            (v.to(weight) * weight).flatten(1).sum(1) for v in self.noise.deviation(self.y, self.operator(images))
        )
        total, ratio = expected, (away / expected).sqrt()
        numbers = 2 * total**2 / scatter
        # A residual that is no number is no residual of a draw: only zero noise leaves nothing to compare with.
        return torch.where(total > 0, torch.where(ratio.isnan(), torch.inf, ratio), torch.nan), numbers

    def reach(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Where images (B, C, *spatial) lie with regard to the prior's (`Prior.bounds`).

        Returns:
            (B,) the largest distance of a value from the middle of the prior's range, over half its width: up to 1 inside; and
            (B,) from the smallest to the largest value as a part of that range. NaN without a prior. Where a prior's range is
            not known, a fifth of `sigma_max` stands for half of it, as noise of that level must hide every image. The second
            is NaN unless `data_range` is stated: images of an analytic prior may well be constant.
        """
        known = self.latent or self.known
        if known is None:
            nothing = torch.full((len(images),), torch.nan, device=images.device)
            return nothing, nothing
        bounds, flat = known.bounds(), images.flatten(1)
        low, high = (-known.sigma_max / 5, known.sigma_max / 5) if bounds is None else bounds
        middle, half = (low + high) / 2, (high - low) / 2
        span = (flat.amax(1) - flat.amin(1)) / (2 * half)
        span = span if known.data_range is not None else torch.full_like(span, torch.nan)
        return (flat - middle).abs().amax(1) / half, span


def make_problem(
    prior: Prior | None,
    operator: Operator,
    noise: Noise,
    y: Tensor,
    image_shape: tuple[int, ...],
    scale: Scale,
    samples_per_item: int = 1,
) -> Problem:
    """Bring an instrument's operator and data, in physical units, to the prior's network units.

    Args:
        operator, noise, y: as the instrument states them; y (B, *measurement), and the noise that of these rows.
        image_shape: (C, *spatial) of the prior's images.
        scale: one value, or one a row of y.
    """
    if operator.complex_image:
        operator = real_view(operator, image_shape[0])
    shift: tuple[Tensor, float | Tensor] | None = None
    weight: Tensor | None = None
    shared = isinstance(noise, Gaussian) and isinstance(noise.sigma, Tensor) and noise.sigma.ndim < y.ndim
    if isinstance(noise, Gaussian):
        level, weight = white(noise.sigma, y, operator.measured())
        noise = Gaussian(level)
    if isinstance(operator, LinearOperator) and isinstance(noise, Gaussian):
        factor, offset = scale.broadcast(y)
        if isinstance(factor, Tensor) or factor != 1.0:
            y, noise = y / factor, Gaussian(noise.sigma / factor)
        if isinstance(offset, Tensor) or offset != 0.0:
            ones = torch.ones(1, *image_shape, dtype=y.real.dtype, device=y.device)
            image_factor, image_offset = scale.broadcast(ones)
            shift = offset / factor * operator(ones), image_offset / image_factor
            y = y - shift[0]
    elif any(isinstance(v, Tensor) or v != same for v, same in ((scale.factor, 1.0), (scale.offset, 0.0))):
        operator = InPhysicalUnits(operator, scale)
    if weight is not None:
        operator, y = weighted(operator, weight, shared), weight * y
        shift = None if shift is None else (weight * shift[0], shift[1])
    if isinstance(prior, LatentPrior):
        shape = prior.state_shape(image_shape)
        seen = Decoded(operator, prior, image_shape)
        return Problem(prior.inner, seen, noise, y, shape, samples_per_item, latent=prior)
    return Problem(prior, operator, noise, y, tuple(image_shape), samples_per_item, shift=shift)
