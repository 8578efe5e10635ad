"""What the data do to an image when operator and noise are linear and Gaussian: proximal and Tikhonov solves, singular system."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from invsolve.contracts.noise import Gaussian, Noise
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.errors import Unsuited, UserError
from invsolve.numerics.krylov import CG, Solution
from invsolve.numerics.spectrum import SingularSystem, dense_system, small


class DataStep:
    """The half of a `Problem` that solves; it knows the data and their operator, not the prior.

    Attributes:
        operator, noise, y, image_shape: as in `Problem`.
    """

    operator: Operator
    noise: Noise
    y: Tensor
    image_shape: tuple[int, ...]
    # Computed once a problem: in the step loop they would wait for the device. Not carried over by dataclasses.replace.
    _largest_sigma: float | None = None
    _operator_norm: float | None = None
    _svd: SingularSystem | None = None
    _short: bool | None = None
    _data_in_basis: Tensor | None = None
    _unconverged: Tensor | None = None

    @property
    def linear(self) -> LinearOperator:
        """The operator, for strategies that declared the need "linear"."""
        assert isinstance(self.operator, LinearOperator)
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

    def operator_norm(self) -> float:
        """Largest singular value of a linear operator; 1 for others, whose users set strengths themselves.

        Also 1 for one that measures nothing: its gradients are zero, whatever they are divided by.
        """
        if self._operator_norm is None:
            linear = isinstance(self.operator, LinearOperator)
            self._operator_norm = (self.linear.norm(self.y[:1]) if linear else 1.0) or 1.0
        return self._operator_norm

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

    def blank(self) -> Tensor:
        """Real zeros (B, C, *spatial), shaped like the images, on the data's device."""
        return torch.zeros(len(self.y), *self.image_shape, dtype=self.y.real.dtype, device=self.y.device)

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        """argmin_x |A x - y|^2 + rho |x - z|^2, (B, C, *spatial); iterations, where they are needed, begin at z.

        Args:
            z: (B, C, *spatial).
            y: (B, *measurement), such as `problem.y`.
            rho: see `rho`.
            solver: how to iterate. Rows that do not converge are counted in `unconverged`.
        """
        system = self.short_system()
        if system is None:
            return self.linear.prox(z, y, rho, self.watched(solver))
        return z + system.tikhonov(y - self.linear(z), rho)

    def tikhonov(self, residual: Tensor, variance: float | Tensor, solver: CG = CG()) -> Tensor:
        """(A'A + sigma_y^2 / variance)^-1 A' residual: what the data add to an estimate of that mean squared error.

        Without iterations where `closed_tikhonov` has it, else conjugate gradients from zero.
        """
        rho = self.rho(variance)
        closed = self.closed_tikhonov(residual, rho)
        return self.linear.prox(self.blank(), residual, rho, self.watched(solver)) if closed is None else closed

    def closed_tikhonov(self, residual: Tensor, rho: float | Tensor) -> Tensor | None:
        """(A'A + rho)^-1 A' residual, if that takes no iterations: the operator's closed form, or through a short system."""
        system = self.short_system()
        return self.linear.tikhonov(residual, rho) if system is None else system.tikhonov(residual, rho)

    def short_system(self) -> SingularSystem | None:
        """The singular system where it spares iterations and costs little (closed form, or a small dense matrix); else None."""
        if self._short is None:
            iterates = self.linear.tikhonov(self.y[:1], 1.0) is None
            cheap = self.linear.svd(self.image_shape, self.y) is not None or small(self.image_shape, self.y)
            self._short = iterates and cheap
        return self.svd() if self._short else None

    def svd(self) -> SingularSystem:
        """Singular system of the linear operator: its closed form, else from its dense matrix.

        Raises:
            UserError: there is no closed form and the operator is too large for a dense one.
        """
        if self._svd is None:
            closed = self.linear.svd(self.image_shape, self.y)
            try:
                self._svd = dense_system(self.linear, self.image_shape, self.y) if closed is None else closed
            except UserError as error:
                text = f"{error}; take a strategy that works without one"
                raise Unsuited(text, lambda other: not getattr(other, "decomposes", True)) from None
        return self._svd

    def data_in_basis(self) -> Tensor:
        """U'y, the data's coefficients in the singular basis, (B, *basis)."""
        if self._data_in_basis is None:
            self._data_in_basis = self.svd().measurement_to_basis(self.y)
        return self._data_in_basis

    def watched(self, solver: CG) -> CG:
        """The same solver, whose solves count in `unconverged`: for a strategy that sets up a system of its own."""

        def tell(solution: Solution) -> None:
            self.count_unconverged((~solution.converged).int())
            if solver.told is not None:
                solver.told(solution)

        return replace(solver, told=tell)

    def unconverged(self) -> Tensor:
        """How many solves of each row ended at their last iteration instead of at their tolerance so far, int32 (B,)."""
        if self._unconverged is None:
            self._unconverged = torch.zeros(len(self.y), dtype=torch.int32, device=self.y.device)
        return self._unconverged

    def count_unconverged(self, solves: Tensor) -> None:
        """Add solves (B,) or (1,), integers; nothing waits for the device."""
        self._unconverged = self.unconverged() + solves
