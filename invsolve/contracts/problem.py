"""The posterior that a strategy is handed: prior, operator and noise in network units, and the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.noise import Gaussian, Noise
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.contracts.prior import Prior
from invsolve.contracts.scale import Scale
from invsolve.contracts.through_plane import ThroughPlane
from invsolve.numerics.linalg import norm, size_of
from invsolve.numerics.spectrum import SingularSystem, dense_system, small


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
class Problem:
    """p(x | y) in network units, for a batch of chains.

    Attributes:
        known: the prior, or None for strategies that do without; strategies use the property `prior`.
        operator: maps real network-unit images (B, C, *spatial) to y. Linear whenever the instrument's is.
        noise: in the units of `y`.
        y: (B, *measurement); where operator and noise allow, already shifted and scaled so that y = A x + noise holds for
            network-unit x.
        image_shape: (C, *spatial).
        samples_per_item: rows that belong to one item, consecutive, for strategies that couple them.
        calls: counters the engine reads.
        shift: what the scale's offset took from y and from the image, both in network units.
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
    through_plane: ThroughPlane = field(default_factory=ThroughPlane)
    # Computed once a problem: in the step loop they would wait for the device. Not carried over by dataclasses.replace.
    _precision: Tensor | None = field(default=None, init=False)
    _dof: int | None = field(default=None, init=False)
    _largest_sigma: float | None = field(default=None, init=False)
    _operator_norm: float | None = field(default=None, init=False)
    _svd: SingularSystem | None = field(default=None, init=False)
    _short: bool | None = field(default=None, init=False)
    _data_in_basis: Tensor | None = field(default=None, init=False)

    @property
    def prior(self) -> Prior:
        """The denoiser, for strategies that declared the need "prior"."""
        assert self.known is not None
        return self.known

    @property
    def batch(self) -> int:
        return len(self.y)

    @property
    def linear(self) -> LinearOperator:
        """The operator, for strategies that declared the need "linear"."""
        assert isinstance(self.operator, LinearOperator)
        return self.operator

    @property
    def maskable(self) -> MaskableOperator:
        """The operator, for strategies that declared the need "maskable"."""
        assert isinstance(self.operator, MaskableOperator)
        return self.operator

    @property
    def sigma(self) -> float | Tensor:
        """Noise standard deviation, for strategies that declared the need "gaussian"; broadcasts against y."""
        assert isinstance(self.noise, Gaussian)
        return self.noise.sigma

    def largest_sigma(self) -> float:
        """The largest noise standard deviation among the rows, as a number."""
        if self._largest_sigma is None:
            self._largest_sigma = float(torch.as_tensor(self.sigma).max())
        return self._largest_sigma

    def rho(self, variance: float | Tensor) -> float | Tensor:
        """sigma_y^2 / variance, as `prox` wants it: positive, and shaped to broadcast against images.

        Args:
            variance: of the image given what is known without the data; a number, or one a row (B,).
        """
        # A floor for noise-free data: a solve that is exact to single precision, where zero would divide by zero.
        floor = 1e-7 * self.operator_norm() ** 2
        ratio = self.sigma**2 / variance
        if not isinstance(ratio, Tensor):
            return max(ratio, floor)
        ratio = ratio.clamp_min(floor).to(self.y.device, self.y.real.dtype)
        return ratio.reshape(-1, *[1] * len(self.image_shape))

    def zeros(self) -> Tensor:
        """Real zeros (B, C, *spatial) on the data's device."""
        return torch.zeros(self.batch, *self.image_shape, dtype=self.y.real.dtype, device=self.y.device)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """D(x, sigma), counted; differentiable in x where gradients are enabled."""
        self.calls.network += len(x) * self.prior.passes
        # full() passes sigma as a kernel argument; a tensor made from a Python number would wait for the device.
        level = torch.full((), sigma, dtype=x.dtype, device=x.device)
        if self.network_precision == "bf16":
            with torch.autocast((self.prior.device or x.device).type, torch.bfloat16):
                estimate = self.prior.denoise(x, level)
        else:
            estimate = self.prior.denoise(x, level)
        if estimate.requires_grad:
            estimate.register_hook(self._count_vjp)
        return estimate

    def _count_vjp(self, gradient: Tensor) -> None:
        self.calls.vjp += len(gradient) * self.prior.passes

    def residual(self, estimate: Tensor) -> Tensor:
        """y - A(estimate)."""
        return self.y - self.operator(estimate)

    def misfit(self, residual: Tensor) -> Tensor:
        """Euclidean norm of a residual per row, (B,)."""
        return norm(residual)

    def precision(self) -> Tensor | float:
        """Relative precision of each entry of y, mean square 1, to multiply a residual with; 1.0 for Gaussian noise."""
        if isinstance(self.noise, Gaussian):
            return 1.0
        if self._precision is None:
            # A floor, because an empty Poisson bin would otherwise count as exact.
            std = self.noise.std(self.y)
            weight = 1 / std.clamp_min(0.05 * std.flatten(1).mean(1).view(-1, *[1] * (std.ndim - 1)))
            self._precision = weight / weight.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (std.ndim - 1))
        return self._precision

    def baseline(self) -> Tensor:
        """The linear reconstruction that users of the instrument know, network units (see `LinearOperator.baseline`).

        It is made from the data as measured: a detector that does not see the whole image sees a constant offset as a cut
        square, which filtered back-projection would smear over everything.
        """
        if self.shift is None:
            return self.linear.baseline(self.y, self.sigma)
        data, image = self.shift
        return self.linear.baseline(self.y + data, self.sigma) - image

    def tikhonov(
        self,
        residual: Tensor,
        variance: float | Tensor,
        start: Tensor | None = None,
        tolerance: float = 1e-5,
        iterations: int = 100,
    ) -> Tensor:
        """(A'A + sigma_y^2 / variance)^-1 A' residual: what the data add to an estimate of that mean squared error.

        Without iterations where `closed_tikhonov` has it, else conjugate gradients from `start`, see `LinearOperator.prox`.
        """
        rho = self.rho(variance)
        closed = self.closed_tikhonov(residual, rho)
        return self.linear.prox(self.zeros(), residual, rho, start, tolerance, iterations) if closed is None else closed

    def closed_tikhonov(self, residual: Tensor, rho: float | Tensor) -> Tensor | None:
        """(A'A + rho)^-1 A' residual, if that takes no iterations: the operator's closed form, or through a short system."""
        system = self.short_system()
        return self.linear.tikhonov(residual, rho) if system is None else system.tikhonov(residual, rho)

    def prox(
        self, z: Tensor, rho: float | Tensor, y: Tensor | None = None, tolerance: float = 1e-5, iterations: int = 100
    ) -> Tensor:
        """argmin_x |A x - y|^2 + rho |x - z|^2, y by default the data; conjugate gradients, where they are needed, from z."""
        y, system = self.y if y is None else y, self.short_system()
        if system is None:
            return self.linear.prox(z, y, rho, None, tolerance, iterations)
        return z + system.tikhonov(y - self.linear(z), rho)

    def short_system(self) -> SingularSystem | None:
        """The singular system where it spares iterations and costs little (closed form, or a small dense matrix); else None."""
        if self._short is None:
            iterates = self.linear.tikhonov(self.y[:1], 1.0) is None
            cheap = self.linear.svd(self.image_shape, self.y) is not None or small(self.image_shape, self.y)
            self._short = iterates and cheap
        return self.svd() if self._short else None

    def operator_norm(self) -> float:
        """Largest singular value of a linear operator; 1 for others, whose users set strengths themselves."""
        if self._operator_norm is None:
            linear = isinstance(self.operator, LinearOperator)
            self._operator_norm = self.linear.norm(self.y[:1]) if linear else 1.0
        return self._operator_norm

    def linear_norm(self) -> float | Tensor:
        """Largest singular value of A or of its linear part, by which gradient steps are divided; 1 where there is none.

        A tensor (B, 1, ...) where the rows have scales of their own.
        """
        operator = self.operator
        if isinstance(operator, InPhysicalUnits) and isinstance(operator.inner, LinearOperator):
            factor, _ = operator.scale.broadcast(self.zeros())
            return factor * operator.inner.norm(self.y[:1])
        return self.operator_norm()

    def svd(self) -> SingularSystem:
        """Singular system of the linear operator: its closed form, else from its dense matrix.

        Raises:
            UserError: there is no closed form and the operator is too large for a dense one.
        """
        if self._svd is None:
            operator = self.linear
            keep = operator.inner if isinstance(operator, RealView) else operator
            closed = operator.svd(self.image_shape, self.y)
            self._svd = dense_system(operator, self.image_shape, self.y, keep) if closed is None else closed
        return self._svd

    def data_in_basis(self) -> Tensor:
        """U'y, the data's coefficients in the singular basis, (B, *basis)."""
        if self._data_in_basis is None:
            self._data_in_basis = self.svd().measurement_to_basis(self.y)
        return self._data_in_basis

    def data_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of |y - A(x)|^2 / 2 with respect to x, (B, C, *spatial), and the residual y - A(x)."""
        if isinstance(self.operator, LinearOperator):
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
        std = self.noise.std(self.y).expand(self.y.shape).to(self.y.real.dtype)
        mask = self.operator.measured()
        if mask is not None:
            std = std * mask
        return norm(std) * (2**0.5 if self.y.is_complex() else 1.0)

    def discrepancy(self, images: Tensor, used: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """How far images (B, C, *spatial) are from the data: |y - A(x)| over what the noise alone explains.

        A draw from the exact posterior leaves the same residual as the truth does, the noise: 1 on average, give or take
        1 / sqrt(2 numbers).

        Args:
            used: boolean, broadcasts to y: the entries to count; None for all that are measured.

        Returns:
            The ratio (B,), NaN where the noise is zero; and (B,) how many independent real numbers it counts. Fewer than
            there are where the noise differs from entry to entry, because the noisier ones then decide.
        """
        weight = torch.ones(self.y.shape, dtype=self.y.real.dtype, device=self.y.device)
        for mask in (self.operator.measured(), used):
            if mask is not None:
                weight = weight * mask
        variance = weight * self.noise.std(self.y).to(weight) ** 2 * (2.0 if self.y.is_complex() else 1.0)
        total = variance.flatten(1).sum(1)
        ratio = norm(self.residual(images) * weight) / total.sqrt()
        numbers = total**2 / variance.square().flatten(1).sum(1) * (2.0 if self.y.is_complex() else 1.0)
        return torch.where(total > 0, ratio, torch.nan), numbers


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
        operator, noise, y: as the instrument states them; y (B, *measurement).
        image_shape: (C, *spatial) of the prior's images.
        scale: one value, or one a row of y.
    """
    if operator.complex_image:
        operator = real_view(operator, image_shape[0])
    shift: tuple[Tensor, float | Tensor] | None = None
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
    return Problem(prior, operator, noise, y, tuple(image_shape), samples_per_item, shift=shift)


def real_view(operator: Operator, channels: int) -> Operator:
    """See a complex-image operator as one on real images with `channels` 1 (real part) or 2 (real, imaginary)."""
    if not isinstance(operator, LinearOperator):
        return RealView(operator, channels)
    return (MaskableRealView if isinstance(operator, MaskableOperator) else LinearRealView)(operator, channels)


class RealView(Operator):
    """A complex-image operator on real images: (B, 1, ...) is the real part, (B, 2, ...) real and imaginary part."""

    def __init__(self, inner: Operator, channels: int) -> None:
        super().__init__()
        self.inner, self.channels = inner, channels
        self.name, self.image_unit = inner.name, inner.image_unit
        if inner.image_shape is not None:
            self.image_shape = (channels, *inner.image_shape[1:])

    def to_complex(self, x: Tensor) -> Tensor:
        imaginary = x[:, 1:] if self.channels == 2 else torch.zeros_like(x)
        return torch.complex(x[:, :1], imaginary)

    def to_real(self, x: Tensor) -> Tensor:
        return torch.cat([x.real, x.imag], 1) if self.channels == 2 else x.real

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.to_complex(x))

    def measured(self) -> Tensor | None:
        return self.inner.measured()


class LinearRealView(RealView, LinearOperator):
    """`RealView` of a linear operator; closed forms carry over where both parts are free."""

    inner: LinearOperator

    def adjoint(self, y: Tensor) -> Tensor:
        return self.to_real(self.inner.adjoint(y))

    def prox(
        self,
        z: Tensor,
        y: Tensor,
        rho: float | Tensor,
        start: Tensor | None = None,
        tolerance: float = 1e-5,
        iterations: int = 100,
    ) -> Tensor:
        if self.channels == 1:
            return super().prox(z, y, rho, start, tolerance, iterations)
        begin = None if start is None else self.to_complex(start)
        return self.to_real(self.inner.prox(self.to_complex(z), y, rho, begin, tolerance, iterations))

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor | None:
        found = None if self.channels == 1 else self.inner.tikhonov(r, rho)
        return None if found is None else self.to_real(found)

    def pinv(self, y: Tensor, tolerance: float = 1e-6, iterations: int = 200) -> Tensor:
        if self.channels == 1:
            return super().pinv(y, tolerance, iterations)
        return self.to_real(self.inner.pinv(y, tolerance, iterations))

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem | None:
        if self.channels == 1:
            return self.inner.svd_on_real_images(like)
        inner = self.inner.svd((1, *image_shape[1:]), like)
        return None if inner is None else inner.on_real_parts(self.to_complex, self.to_real)

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        return self.to_real(self.inner.baseline(y, sigma))


class MaskableRealView(LinearRealView, MaskableOperator):
    """`RealView` of a maskable operator: the measurement, and so its groups, are the same."""

    inner: MaskableOperator

    @property
    def group_index(self) -> Tensor:  # type: ignore[override]
        return self.inner.group_index


class InPhysicalUnits(Operator):
    """A(factor x + offset): an operator that cannot be rescaled, fed from network units."""

    def __init__(self, inner: Operator, scale: Scale) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale
        self.name, self.image_shape = inner.name, inner.image_shape

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.scale.to_physical(x))

    def measured(self) -> Tensor | None:
        return self.inner.measured()
