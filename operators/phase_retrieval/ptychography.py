"""Ptychography: diffraction patterns of overlapping parts of an object, each lit by the same probe."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from invsolve.contracts.arguments import as_array, rows_and_columns
from invsolve.contracts.operator import Operator, matching
from invsolve.contracts.paper import Paper
from invsolve.errors import UserError
from invsolve.operators.phase_retrieval.fourier import strength


def spot(size: int) -> Tensor:
    """A Gaussian spot with a curved wavefront, cut at 2 standard deviations; (size, size), complex64, largest modulus about 1."""
    axis = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) / (size / 4)
    square = axis[:, None] ** 2 + axis**2
    return torch.polar(torch.exp(-square / 2) * (square <= 4), square / 2).to(torch.complex64)


class Ptychography(Operator):
    """Diffraction patterns of overlapping parts of a complex object. Not linear.

    y_p = |F(probe * x[position_p : position_p + probe size])| or its square, F orthonormal, zero frequency at
    (rows // 2, columns // 2) of the pattern. x (B, 1, rows, columns) complex: transmission of the object. y (B, positions,
    probe rows, probe columns) (Rodenburg 2008).

    Args:
        image_size: of x: N for N x N pixels, or [rows, columns].
        probe: complex wave that lights the object, (rows, columns), or (rows, columns, 2) for real and imaginary part; by
            default a Gaussian spot of `probe_size` pixels.
        positions: top left pixels of the lit parts, whole numbers (positions, 2), row and column; by default a grid.
        probe_size: of the default probe.
        step: between the default positions, in pixels.
        measures: the modulus, or its square, as a detector counts it.

    Raises:
        UserError: shapes that disagree, or a position from which the probe reaches beyond the image.
    """

    name = "ptychography"
    paper = Paper(
        "Ptychography and Related Diffractive Imaging Methods",
        ("John M. Rodenburg",),
        2008,
        "doi:10.1016/S1076-5670(07)00003-1",
    )
    complex_image = True
    examples = (
        {"image_size": [9, 8], "probe_size": 5, "step": 2},
        {
            "image_size": 6,
            "probe": [[0.5, 1.0, 0.2], [1.0, -1.0, 0.3]],
            "positions": [[0, 0], [4, 3], [1, 2]],
            "measures": "intensity",
        },
    )

    def __init__(
        self,
        image_size: int | list[int],
        probe: Tensor | None = None,
        positions: Tensor | None = None,
        probe_size: int = 16,
        step: int = 4,
        measures: Literal["magnitude", "intensity"] = "magnitude",
    ) -> None:
        super().__init__()
        size = rows_and_columns(image_size, "operator 'ptychography'")
        assert size is not None
        rows, columns = size
        if step < 1 or probe_size < 1:
            raise UserError(
                f"operator 'ptychography': step and probe_size must be at least 1 pixel, got {step} and {probe_size}"
            )
        if probe is None:
            if not 1 <= probe_size <= min(rows, columns):
                raise UserError(
                    f"operator 'ptychography': probe_size must be from 1 to {min(rows, columns)}, got {probe_size}"
                )
            probe = spot(probe_size)
        probe = as_array(probe, "operator 'ptychography': probe")
        if probe.ndim == 3 and probe.shape[-1] == 2 and not probe.is_complex():
            probe = torch.view_as_complex(probe.float().contiguous())
        fits = probe.ndim == 2 and 0 < probe.shape[0] <= rows and 0 < probe.shape[1] <= columns
        if not fits or not bool(probe.isfinite().all()):
            raise UserError(
                f"operator 'ptychography': probe must be (rows, columns), complex and finite, within {rows} x {columns} pixels, "
                f"got {probe.dtype} {tuple(probe.shape)}"
            )
        last = torch.tensor([rows - probe.shape[0], columns - probe.shape[1]])
        if positions is None:
            positions = torch.cartesian_prod(*(torch.arange(0, int(n) + 1, step) for n in last))
        positions = as_array(positions, "operator 'ptychography': positions")
        if positions.ndim != 2 or positions.shape[1] != 2 or len(positions) == 0:
            raise UserError(f"operator 'ptychography': positions must be (positions, 2), got {tuple(positions.shape)}")
        if positions.is_complex() or not bool((positions == positions.round()).all()):
            raise UserError("operator 'ptychography': positions must be whole numbers of pixels; round them")
        outside = ((positions < 0) | (positions > last)).any(1).nonzero().flatten()
        if len(outside):
            k = int(outside[0])
            raise UserError(
                f"operator 'ptychography': from position {k}, {positions[k].int().tolist()}, the probe reaches beyond the image; "
                f"rows go from 0 to {int(last[0])}, columns from 0 to {int(last[1])}"
            )
        self.probe, self.positions = probe.to(torch.complex64), positions.long()
        self.measures, self.image_shape = measures, (1, rows, columns)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_complex():
            raise UserError(
                f"operator 'ptychography' takes complex images (B, 1, rows, columns), got {x.dtype}; use "
                "torch.complex(real, imaginary)"
            )
        height, width = self.probe.shape
        i = self.positions[:, :1] + torch.arange(height, device=x.device)
        j = self.positions[:, 1:] + torch.arange(width, device=x.device)
        parts = x[:, 0, i[:, :, None], j[:, None]]
        wave = torch.fft.fftshift(torch.fft.fft2(matching(self.probe, x) * parts, norm="ortho"), (-2, -1))
        return strength(wave, self.measures)
