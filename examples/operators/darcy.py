"""Darcy flow as a plugin: the pressure of groundwater at wells, from the permeability of the ground; a PDE solved by torch."""

from __future__ import annotations

import torch
from torch import Tensor

from invsolve import Operator, UserError, hookimpl


class Darcy(Operator):
    """Pressure of a fluid that seeps through the ground: -div(exp(x) grad u) = 1 in a unit square, u = 0 on its edge.

    x (B, 1, image_size, image_size), the logarithm of the permeability, one value per cell, from -8 to 8 (clipped);
    y (B, wells, wells), u in the middle of every `spacing`-th cell. Finite volumes: the flow between two cells goes by the
    harmonic mean of their permeabilities. Not linear in x; the tangent is autograd's, through a dense solve: for some thousand
    cells at most.

    Args:
        image_size: cells along each side.
        spacing: of the wells, in cells.

    Raises:
        UserError: no cells, no wells, or too many cells.
    """

    name = "darcy"
    examples = ({"image_size": 6, "spacing": 2},)

    def __init__(self, image_size: int = 32, spacing: int = 4) -> None:
        if not 2 <= image_size <= 64:
            raise UserError(f"operator 'darcy': image_size must be from 2 to 64 cells, got {image_size}")
        if not 1 <= spacing <= image_size:
            raise UserError(f"operator 'darcy': spacing must be from 1 to {image_size} cells, got {spacing}")
        self.image_shape, self.spacing = (1, image_size, image_size), spacing

    def pressure(self, x: Tensor) -> Tensor:
        """u in every cell, (B, image_size, image_size)."""
        n = x.shape[-1]
        # Where a sampler tries more, single precision would find the equations singular.
        a = x[:, 0].clamp(-8, 8).exp()
        down = 2 * a[:, :-1] * a[:, 1:] / (a[:, :-1] + a[:, 1:])
        across = 2 * a[:, :, :-1] * a[:, :, 1:] / (a[:, :, :-1] + a[:, :, 1:])
        # Half a cell lies between a cell at the edge and u = 0: twice its own permeability.
        flows = (
            torch.cat([2 * a[:, :1], down], 1),
            torch.cat([down, 2 * a[:, -1:]], 1),
            torch.cat([2 * a[:, :, :1], across], 2),
            torch.cat([across, 2 * a[:, :, -1:]], 2),
        )
        off = across.new_zeros(across.shape[0], n, 1)
        matrix = torch.diag_embed(sum(flows, torch.zeros_like(a)).flatten(1))
        # Cells are numbered row by row; the last of a row is no neighbour of the first of the next.
        right = torch.diag_embed(torch.cat([across, off], 2).flatten(1)[:, :-1], 1)
        below = torch.diag_embed(down.flatten(1), n)
        matrix = matrix - right - right.mT - below - below.mT
        source = torch.full((len(x), n * n), 1 / n**2, dtype=x.dtype, device=x.device)
        # solve would look whether the matrix is singular, which it never is, and so wait for a GPU.
        return torch.linalg.solve_ex(matrix, source)[0].view(-1, n, n)

    def forward(self, x: Tensor) -> Tensor:
        u = self.pressure(x)
        return u[:, self.spacing // 2 :: self.spacing, self.spacing // 2 :: self.spacing]


@hookimpl
def invsolve_operators() -> dict[str, type]:
    return {"darcy": Darcy}
