"""A noise's density of single numbers by quadrature: that it adds up to one, and has the mean and the deviation stated."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from invsolve.contracts.noise import Noise
from invsolve.testing.log import Log

#: Entries of the measurement that are looked at, so that maps of parameters are, too.
_ENTRIES = (0, 5, 10)
#: Panels on each side of the middle, of so many Gauss-Legendre nodes; they reach out to sinh(_REACH) standard deviations.
_PANELS, _NODES, _REACH = 24, 8, 11.0
#: Values of a lattice, on each side.
_MOST = 3000
#: Places of A(x) within the interval on whose average mean and std hold.
_PLACES = 16
_LIMIT = 1e-5


def look(report: Log, noise: Noise, clean: Tensor) -> None:
    """Note what the density says of itself, where the noise states the constant of its likelihood.

    Args:
        report: where.
        noise: whose.
        clean: A(x), (1, *measurement), float64.
    """
    base = noise.mean(clean)
    if noise.lattice is not None:
        # Any of the values that can be drawn.
        apart = torch.as_tensor(noise.lattice).to(clean)
        base = (base / apart).round() * apart
    constant = noise.constant(base)
    if constant is None:
        report.holds("density, by quadrature", True, note="does not apply: constant(y) is not stated")
        return
    logs, figures = [], torch.zeros(2, dtype=torch.float64)
    for entry in range(clean[0].numel()):
        nodes, weights = _grid(noise, clean, entry)
        density = _ratio(noise, base, clean, entry, nodes)
        whole = float((weights * density).sum())
        logs.append(np.log(whole))
        if entry in _ENTRIES:
            figures = torch.maximum(figures, _moments(noise, base, clean, entry, nodes, weights))
    # Each number by itself integrates to one over its own density where it is held, and the numbers are independent.
    total = float(noise.log_likelihood(base, clean) + constant) + sum(logs)
    remedy = "the density does not add up to one: see constant(y), and lattice where values are counted"
    report.below("density adds up to one, by quadrature", abs(total) / len(logs), _LIMIT, remedy)
    remedy = "the density of log_likelihood has another mean than mean(A(x)); figure in standard deviations"
    report.below("mean, by quadrature", float(figures[0]), _LIMIT, remedy)
    remedy = "the density of log_likelihood has another standard deviation than std(A(x)); relative"
    report.below("std, by quadrature", float(figures[1]), _LIMIT, remedy)


def _grid(noise: Noise, clean: Tensor, entry: int) -> tuple[Tensor, Tensor]:
    """Values of one number of y, and the weights with which its density is added up; float64."""
    middle, spread = (float(v.expand(clean.shape).flatten()[entry]) for v in (noise.mean(clean), noise.std(clean)))
    low, high = noise.support
    if noise.lattice is not None:
        apart = float(torch.as_tensor(noise.lattice).to(clean).expand(clean.shape).flatten()[entry])
        reach = min(int(16 * spread / apart) + 24, _MOST)
        nodes = (torch.arange(-reach, reach + 1, dtype=torch.float64) + round(middle / apart)) * apart
        nodes = nodes[(nodes > low - apart / 2) & (nodes < high + apart / 2)]
        return nodes.to(clean.device), torch.ones_like(nodes).to(clean.device)
    x, w = np.polynomial.legendre.leggauss(_NODES)
    # A kink may lie in the middle, and the density ends at the support: no panel has it inside.
    sides = [np.arcsinh(max((low - middle) / spread, -np.sinh(_REACH))), 0.0]
    sides.append(np.arcsinh(min((high - middle) / spread, np.sinh(_REACH))))
    edges = np.concatenate([np.linspace(a, b, _PANELS + 1)[:-1] for a, b in pairwise(sides)])
    edges = np.append(edges, sides[-1])
    half = np.diff(edges)[:, None] / 2
    u = (edges[:-1, None] + half * (1 + x)).ravel()
    weights = (half * w).ravel() * spread * np.cosh(u)
    return torch.from_numpy(middle + spread * np.sinh(u)).to(clean), torch.from_numpy(weights).to(clean)


def _ratio(noise: Noise, base: Tensor, clean: Tensor, entry: int, nodes: Tensor) -> Tensor:
    """The density of one number at the nodes over that where it is held: the others stay, and cancel."""
    y = base.expand(len(nodes), *base.shape[1:]).clone()
    y.flatten(1)[:, entry] = nodes
    log = noise.log_likelihood(y, clean.expand(y.shape)) - noise.log_likelihood(base, clean)
    constant, held = noise.constant(y), noise.constant(base)
    assert constant is not None
    assert held is not None
    density: Tensor = (log + constant - held).exp()
    # Outside of its support a formula may say anything.
    return torch.where((nodes >= noise.support[0]) & (nodes <= noise.support[1]), density, 0.0)


def _moments(noise: Noise, base: Tensor, clean: Tensor, entry: int, nodes: Tensor, weights: Tensor) -> Tensor:
    """How far mean (in standard deviations) and standard deviation (relative) are from those stated, (2,)."""
    cell = float(torch.as_tensor(noise.cell).max())
    first, second, spread = 0.0, 0.0, float(noise.std(clean).expand(clean.shape).flatten()[entry])
    places = [(k + 0.5) / _PLACES - 0.5 for k in range(_PLACES)] if cell else [0.0]
    for place in places:
        here = clean + place * cell
        density = weights * _ratio(noise, base, here, entry, nodes)
        away = nodes - float(noise.mean(here).flatten()[entry])
        first += float((density * away).sum() / density.sum()) / len(places)
        second += float((density * away.square()).sum() / density.sum()) / len(places)
    return torch.tensor([abs(first) / spread, abs(second**0.5 / spread - 1)], dtype=torch.float64)
