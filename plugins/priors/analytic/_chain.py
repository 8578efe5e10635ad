"""Exact denoising of a random walk with Laplace jumps: forward-backward message passing on a moving lattice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Rows that are worked on at once; bounds the memory.
ROWS = 128
#: Times that a window may move.
MOVES = 50


@dataclass(frozen=True)
class Lattice:
    """The walk x_k = x_(k-1) + u_k, x_0 = u_0, u zero or Laplace, observed as y_k = x_k + sigma n_k, on a lattice.

    The posterior of a chain factorises: p(x_k | y) is the product of a forward and a backward message. Messages live on the
    nodes (o_k + i) h, |i| <= half, a window around an integer o_k near where x_k must be. Convolution with the Laplace kernel
    is two cumulative sums, O(nodes). The kink of the kernel gets the Euler-Maclaurin correction of its node, after which the
    lattice sum is right to O(h^4). The lattice is a model of its own, whose D is y + sigma^2 times the gradient of its log
    evidence exactly: so D's Jacobian is symmetric, the covariance over sigma^2, for any h.

    Args:
        sigma: of the noise.
        scale: b of the Laplace jumps, density exp(-|u| / b) / 2b.
        jumps: probability of a jump; otherwise u is zero.
        fine: halves the lattice spacing so many times and widens the window, to see how accurate the usual one is.
    """

    sigma: float
    scale: float
    jumps: float = 1.0
    fine: int = 0

    @property
    def step(self) -> float:
        """h: a fraction of the width of the narrowest factor. Runs without a jump pool up to 64 numbers, hence the 6."""
        narrow = self.sigma / (2 if self.jumps == 1 else 6)
        # Where the noise hides single jumps, only sums of many are seen, and those a coarser kernel has as well.
        kernel = self.scale * min(max(self.sigma / (8 * self.scale), 0.5), 0.75)
        return min(narrow, kernel) / 2**self.fine

    def linear_gain(self, length: int) -> tuple[Tensor, float]:
        """The best linear estimate of the walk as a matrix (length, length), and the largest standard error it leaves."""
        index = torch.arange(1, length + 1, dtype=torch.float64)
        covariance = 2 * self.jumps * self.scale**2 * torch.minimum(index[:, None], index)
        noisy = covariance + self.sigma**2 * torch.eye(length, dtype=torch.float64)
        gain = torch.linalg.solve(noisy, covariance)
        return gain, float((covariance - gain @ covariance).diagonal().max().sqrt())

    def window(self, y: Tensor) -> tuple[Tensor, int]:
        """Centres o (B, L), integers, and `half`. Below sigma = b the data say where x_k is, above it the linear estimate."""
        if self.sigma <= self.scale:
            centre, reach = y, 14 * self.sigma
        else:
            gain, error = self.linear_gain(y.shape[1])
            centre, reach = y @ gain.to(y.device), 9 * error + 8 * self.scale
        reach *= 1 + self.fine / 2
        return (centre / self.step).round(), math.ceil(reach / self.step)

    def spread(self, message: Tensor, shift: Tensor) -> Tensor:
        """Convolve a message (B, N) with the law of a jump, onto a window whose centre lies `shift` (B,) nodes higher."""
        nodes = message.shape[1]
        place = torch.arange(nodes, dtype=message.dtype, device=message.device)
        rate = self.step / self.scale
        # a^(i - j) splits into a^i a^-j; all terms are positive, so nothing cancels, and rate * nodes stays below 600.
        fall, rise = torch.exp(-rate * place), torch.exp(rate * (place - nodes + 1))
        # The two-sided exponential: from below with j <= i, from above with j > i.
        below = (message / fall).cumsum(1) * fall
        above = (message / rise).flip(1).cumsum(1).flip(1) * rise - message
        both = below + above
        wanted = place + shift[:, None]
        nearest = wanted.clamp(0, nodes - 1)
        index = nearest.long()
        decay = torch.exp(-rate * (wanted - nearest).abs())
        same = message.gather(1, index) * (wanted == nearest)
        weight = self.jumps * rate / 2
        return weight * (both.gather(1, index) * decay - rate / 6 * same) + (1 - self.jumps) * same

    def first(self, centre: Tensor, half: int) -> Tensor:
        """The message before the first observation: one jump away from zero, (B, N)."""
        node = centre[:, None] + torch.arange(-half, half + 1, dtype=centre.dtype, device=centre.device)
        rate = self.step / self.scale
        zero = (node == 0).to(centre.dtype)
        return self.jumps * rate / 2 * (torch.exp(-rate * node.abs()) - rate / 6 * zero) + (1 - self.jumps) * zero

    def likelihood(self, y: Tensor, centre: Tensor, half: int) -> tuple[Tensor, Tensor]:
        """exp(-(y - x)^2 / 2 sigma^2) on the nodes (B, N), largest value one, and the log of what was divided out."""
        node = centre[:, None] + torch.arange(-half, half + 1, dtype=y.dtype, device=y.device)
        log = -((y[:, None] - self.step * node) ** 2) / (2 * self.sigma**2)
        top = log.max(1).values
        return (log - top[:, None]).exp(), top

    def solve(self, y: Tensor, centre: Tensor, half: int) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior means (B, L) of walks observed as y (B, L), float64; log evidence (B,), up to a constant; and the largest
        probability of a window's end node (B,), which tells whether the windows lie right."""
        length = y.shape[1]
        place = torch.arange(-half, half + 1, dtype=y.dtype, device=y.device)
        evidence = y.new_zeros(len(y))
        forward, factors = [], []
        message = self.first(centre[:, 0], half)
        for k in range(length):
            if k:
                message = self.spread(message, centre[:, k] - centre[:, k - 1])
            factor, top = self.likelihood(y[:, k], centre[:, k], half)
            factors.append(factor)
            message = message * factor
            total = message.sum(1)
            evidence = evidence + total.log() + top
            message = message / total[:, None]
            forward.append(message)
        means = []
        edge = torch.zeros_like(evidence)
        backward = torch.ones_like(message)
        for k in reversed(range(length)):
            marginal = forward[k] * backward
            marginal = marginal / marginal.sum(1, keepdim=True)
            means.append((marginal @ place + centre[:, k]) * self.step)
            edge = torch.maximum(edge, torch.maximum(marginal[:, 0], marginal[:, -1]))
            if k:
                message = backward * factors[k]
                message = message / message.sum(1, keepdim=True)
                backward = self.spread(message, centre[:, k - 1] - centre[:, k])
        return torch.stack(means[::-1], 1), evidence, edge

    def denoise(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """E[x | y] (B, L), float64, and the centres of the windows that were used.

        Where y is no likely walk, the first windows can miss; each row's then move to where its posterior leans, until none does.
        """
        parts = [self._settle(part) for part in y.split(ROWS)]
        return torch.cat([means for means, _ in parts]), torch.cat([centre for _, centre in parts])

    def _settle(self, y: Tensor) -> tuple[Tensor, Tensor]:
        centre, half = self.window(y)
        means, _, edge = self.solve(y, centre, half)
        for _ in range(MOVES):
            astray = (edge > 1e-5).nonzero()[:, 0]
            if not len(astray):
                break
            centre[astray] = (means[astray] / self.step).round()
            means[astray], _, edge[astray] = self.solve(y[astray], centre[astray], half)
        return means, centre

    def product(self, y: Tensor, centre: Tensor, direction: Tensor) -> Tensor:
        """The Jacobian of `denoise` at y times `direction` (B, L), by central differences with the windows that it used.

        On a fixed lattice D is analytic in y with length scale sigma: a step of sigma / 1000 leaves about 1e-7 of the result.
        """
        _, half = self.window(y[:1])
        products = []
        for part, at, along in zip(*(t.split(ROWS // 2) for t in (y, centre, direction)), strict=True):
            size = along.abs().amax(1, keepdim=True).clamp_min(torch.finfo(along.dtype).tiny)
            move = 1e-3 * self.sigma * along / size
            ahead, behind = self.solve(torch.cat([part + move, part - move]), torch.cat([at, at]), half)[0].chunk(2)
            products.append((ahead - behind) * size / (2e-3 * self.sigma))
        return torch.cat(products)
