"""Phase retrieval: the strengths of Fourier coefficients of an image, with oversampling and coded masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.contracts.arguments import as_array
from invsolve.contracts.operator import Operator, matching
from invsolve.contracts.paper import Paper
from invsolve.errors import UserError


class PhaseRetrieval(Operator):
    """Fourier magnitudes or intensities, oversampled; coded masks if wanted. Not linear.

    y_m = |F(mask_m * x, zero-padded)| or its square, F the orthonormal transform of the padded image, zero frequency at
    (rows // 2, columns // 2). x (B, 1, rows, columns), y (B, masks, padded rows, padded columns); of any size. Where the data
    are oversampled at least twofold along each axis, most real, positive images are told up to their place and a turn by 180
    degrees (Hayes 1982).

    Args:
        oversampling: padded over own size, at least 1.
        measures: the modulus, or its square, as a detector counts it.
        masks: coded masks (masks, rows, columns), real or complex, laid over the image (Candes 2015). Masks for each item
            are (items, masks, rows, columns).
        complex_image: whether x is complex: an object with a phase of its own.

    Raises:
        UserError: an oversampling below 1, masks of another shape; (when applied) an image of another size than the masks.
    """

    name = "phase-retrieval"
    paper = Paper(
        "Phase retrieval from coded diffraction patterns",
        ("Emmanuel J. Candès", "Xiaodong Li", "Mahdi Soltanolkotabi"),
        2015,
        "doi:10.1016/j.acha.2014.09.004",
    )
    shapes_tried = ((1, 6, 7),)
    item_axes: ClassVar[Mapping[str, int]] = {"masks": 3}
    examples = (
        {},
        {"oversampling": 1.5, "measures": "intensity", "complex_image": True},
        {
            "oversampling": 1,
            "masks": torch.randn(2, 5, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)),
        },
    )

    def __init__(
        self,
        oversampling: float = 2.0,
        measures: Literal["magnitude", "intensity"] = "magnitude",
        masks: Tensor | None = None,
        complex_image: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= oversampling <= 100:
            raise UserError(f"operator 'phase-retrieval': oversampling must be from 1 to 100, got {oversampling}")
        masks = None if masks is None else as_array(masks, "operator 'phase-retrieval': masks")
        if masks is not None and (masks.ndim != 3 or 0 in masks.shape or not bool(masks.isfinite().all())):
            raise UserError(
                f"operator 'phase-retrieval': masks must be (masks, rows, columns), finite, got {tuple(masks.shape)}; one is "
                "mask[None]"
            )
        self.oversampling, self.measures, self.complex_image = oversampling, measures, complex_image
        if masks is not None:
            self.masks = masks.to(torch.complex64 if masks.is_complex() else torch.float32)
            self.image_shape = (1, *masks.shape[1:])

    def _padded(self, size: int) -> int:
        # Rounded first, as 1.1 times 10 is a little more than 11.
        return math.ceil(round(self.oversampling * size, 6))

    def image_shape_for(self, measurement_shape: Sequence[int], channels: int = 1) -> tuple[int, ...] | None:
        if self.image_shape is not None or len(measurement_shape) != 3 or measurement_shape[0] != 1:
            return self.image_shape
        # At most one size is padded to a given one, as the oversampling is at least 1.
        rows, columns = (math.floor(round(n / self.oversampling, 6)) for n in measurement_shape[1:])
        fits = (self._padded(rows), self._padded(columns)) == tuple(measurement_shape[1:])
        return (1, rows, columns) if fits else None

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 1:
            raise UserError(f"operator 'phase-retrieval' takes images (items, 1, rows, columns), got {tuple(x.shape)}")
        if "masks" in self._buffers:
            x = matching(self.masks, x) * x
        rows, columns = (self._padded(n) for n in x.shape[-2:])
        wave = torch.fft.fftshift(torch.fft.fft2(x, s=(rows, columns), norm="ortho"), (-2, -1))
        return strength(wave, self.measures)


def strength(wave: Tensor, measures: str) -> Tensor:
    """The modulus of complex numbers, or its square."""
    return torch.view_as_real(wave).square().sum(-1) if measures == "intensity" else wave.abs()
