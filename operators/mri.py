"""Cartesian MRI: undersampled Fourier measurements of a complex image, through one receive coil or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from invsolve.contracts.arguments import as_array, as_mask, rows_and_columns
from invsolve.contracts.maskable import MaskableOperator, numbered
from invsolve.contracts.operator import matching
from invsolve.errors import UserError
from invsolve.numerics.krylov import CG
from invsolve.numerics.spectrum import SingularSystem, hartley, safe_reciprocal

_AXES = (-2, -1)


def centred_fft(x: Tensor) -> Tensor:
    """Orthonormal 2-D Fourier transform with the zero frequency at (rows // 2, columns // 2)."""
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, _AXES), norm="ortho"), _AXES)


def centred_ifft(k: Tensor) -> Tensor:
    """Inverse (and adjoint) of `centred_fft`."""
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(k, _AXES), norm="ortho"), _AXES)


def column_mask(columns: int, acceleration: float, centre_fraction: float, seed: int) -> Tensor:
    """Random columns at `acceleration`, with the central `centre_fraction` of them always measured; (columns,) boolean."""
    centre = max(1, round(columns * centre_fraction))
    first = columns // 2 - centre // 2
    mask = torch.zeros(columns, dtype=torch.bool)
    mask[first : first + centre] = True
    wanted = max(round(columns / acceleration), centre)
    others = (~mask).nonzero().flatten()
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    mask[others[order[: wanted - centre]]] = True
    return mask


class MRI(MaskableOperator):
    """Cartesian k-space, one coil or several with coil maps; complex.

    y_c = mask * F(coil_map_c * x), F the centred orthonormal Fourier transform.

    x (B, 1, rows, columns) complex; y (B, coils, rows, columns) complex, zero where nothing is measured; without coil maps
    one coil of sensitivity 1. Groups for active acquisition are the k-space columns (single points for a 2-D mask).

    Args:
        mask: (columns,) or (rows, columns), centred, non-zero where measured; default everything. A mask for each item is
            (items, rows, columns), or (items, 1, columns).
        coil_maps: (coils, rows, columns), complex. Maps for each item are (items, coils, rows, columns).
        image_size: N for N x N pixels, or [rows, columns], where neither a 2-D mask nor coil maps tell them.
        acceleration: instead of a mask, measure 1 in `acceleration` columns, at random.
        centre_fraction: part of the columns around the centre that is always measured, with acceleration.
        seed: of the random columns.

    Raises:
        UserError: the size cannot be told, shapes disagree, or (when applied) x is not complex.
    """

    name = "mri"
    closed_forms = "proximal solve (one coil), SENSE"

    complex_image = True
    examples = (
        {"image_size": 12, "acceleration": 2},
        {
            "coil_maps": torch.randn(3, 9, 11, 2, generator=torch.Generator().manual_seed(0)),
            "mask": [1, 0, 1, 1] * 2 + [1, 0, 1],
        },
        {"image_size": [9, 14], "acceleration": 2},
    )
    item_axes: ClassVar[Mapping[str, int]] = {"mask": 2, "coil_maps": 3}

    def __init__(
        self,
        mask: Tensor | None = None,
        coil_maps: Tensor | None = None,
        image_size: int | list[int] | None = None,
        acceleration: float | None = None,
        centre_fraction: float = 0.08,
        seed: int = 0,
    ) -> None:
        super().__init__()
        size: tuple[int, ...] | None = rows_and_columns(image_size, "operator 'mri'")
        if mask is not None:
            mask = as_array(mask, "operator 'mri': mask")
        if coil_maps is not None:
            coil_maps = as_array(coil_maps, "operator 'mri': coil_maps")
            if not coil_maps.is_complex() and coil_maps.ndim == 4 and coil_maps.shape[-1] == 2:
                coil_maps = torch.view_as_complex(coil_maps.float().contiguous())
            if not coil_maps.is_complex() or coil_maps.ndim != 3:
                raise UserError(
                    f"operator 'mri': coil_maps must be complex (coils, rows, columns), or with items in front by "
                    f"invsolve.operator, got {coil_maps.dtype} {tuple(coil_maps.shape)}"
                )
            if not bool(coil_maps.isfinite().all()):
                raise UserError(
                    "operator 'mri': coil_maps has NaN or infinite entries; give 0 where a coil sees nothing"
                )
            told = tuple(coil_maps.shape[1:])
            if size not in (None, told):
                raise UserError(
                    f"operator 'mri': coil_maps {tuple(coil_maps.shape)} do not fit images of {_times(size)}"
                )
            size, coil_maps = told, coil_maps.to(torch.complex64)
        if mask is not None and mask.ndim == 2 and len(mask) == 1:
            mask = mask[0]
        if mask is not None and mask.ndim == 2:
            size = size or tuple(mask.shape)
        if size is None and mask is not None:
            size = (len(mask), len(mask))
        if size is None:
            raise UserError("operator 'mri' needs image_size=, a 2-D mask= or coil_maps= to know the image size")
        if acceleration is not None:
            if not 0 <= centre_fraction <= 1:
                raise UserError(f"operator 'mri': centre_fraction must be from 0 to 1, got {centre_fraction}")
            if mask is not None or acceleration < 1:
                raise UserError("operator 'mri': give acceleration >= 1 or mask, not both")
            mask = column_mask(size[1], acceleration, centre_fraction, seed)
        if mask is None:
            mask = torch.ones(size[1])
        if mask.ndim not in (1, 2) or mask.shape[-1] != size[1] or (mask.ndim == 2 and len(mask) != size[0]):
            raise UserError(
                f"operator 'mri': mask {tuple(mask.shape)} does not fit images of {_times(size)}; it must be (columns,) or "
                "(rows, columns), and with image_size=[rows, columns] where columns alone are given"
            )
        self.columns_only = mask.ndim == 1
        self.mask = as_mask(mask, "operator 'mri'").expand(*size).contiguous()
        self.image_shape = (1, *size)
        if coil_maps is not None:
            self.coil_maps = coil_maps

    @classmethod
    def carries_items(cls, parameter: str, value: Tensor) -> bool:
        # Real and imaginary part along a last axis, as files without complex numbers have them.
        pairs = parameter == "coil_maps" and not value.is_complex() and value.shape[-1:] == (2,)
        return super().carries_items(parameter, value[..., 0] if pairs else value)

    @property
    def coils(self) -> int:
        """Number of receive coils."""
        return len(self.coil_maps) if "coil_maps" in self._buffers else 1

    @property
    def group_index(self) -> Tensor:  # type: ignore[override]
        """Each measured column is a group; each point, where the mask is not the same in all rows."""

        def index() -> Tensor:
            columns = self.columns_only and bool((self.mask == self.mask[:1]).all())
            return numbered(self.mask[:1] if columns else self.mask)[None]

        return self.remembered("groups", index)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_complex():
            raise UserError(
                f"operator 'mri' takes complex images (B, 1, rows, columns), got {x.dtype}; "
                "use torch.complex(real, imaginary)"
            )
        if "coil_maps" in self._buffers:
            x = x * matching(self.coil_maps, x)
        return centred_fft(x) * self.mask

    def adjoint(self, y: Tensor) -> Tensor:
        x = centred_ifft(y * self.mask)
        if "coil_maps" in self._buffers:
            x = (x * matching(self.coil_maps, y).conj()).sum(1, keepdim=True)
        return x

    def prox(self, z: Tensor, y: Tensor, rho: float | Tensor, solver: CG = CG()) -> Tensor:
        if "coil_maps" in self._buffers:
            return super().prox(z, y, rho, solver)
        return centred_ifft((self.mask * y + rho * centred_fft(z)) / (self.mask + rho))

    def tikhonov(self, r: Tensor, rho: float | Tensor) -> Tensor | None:
        return None if "coil_maps" in self._buffers else centred_ifft(self.mask / (self.mask + rho) * r)

    def pinv(self, y: Tensor, solver: CG = CG(1e-6, 200)) -> Tensor:
        return super().pinv(y, solver) if "coil_maps" in self._buffers else self.adjoint(y)

    def svd(self, image_shape: Sequence[int], like: Tensor) -> SingularSystem | None:
        """For one coil: k-space; a singular value is 1 where measured, else 0."""
        if "coil_maps" in self._buffers:
            return None
        mask = matching(self.mask, like.real)
        return SingularSystem(mask.view(1, 1, *mask.shape), centred_fft, centred_ifft, lambda y: mask * y)

    def svd_on_real_images(self, like: Tensor) -> SingularSystem | None:
        """For one coil: A'A averages the mask over k and -k, so the Hartley basis diagonalises it; values 0, sqrt(1/2), 1."""
        if "coil_maps" in self._buffers:
            return None
        mask = torch.fft.ifftshift(matching(self.mask, like.real), _AXES)
        mirrored = mask.flip(_AXES).roll((1, 1), _AXES)
        values = ((mask + mirrored) / 2).sqrt().view(1, 1, *mask.shape)
        inverse = safe_reciprocal(values)
        return SingularSystem(values, hartley, hartley, lambda y: inverse * hartley(self.adjoint(y).real))

    @property
    def baseline_floor(self) -> float | None:
        return 1e-3 if "coil_maps" in self._buffers else None

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """Zero-filled for one coil, SENSE (Pruessmann 1999; lightly regularised) for several."""
        if "coil_maps" not in self._buffers:
            return self.adjoint(y)
        rho = (self.baseline_floor or 0.0) * self.norm() ** 2
        return self.prox(torch.zeros_like(self.adjoint(y)), y, rho, CG(1e-4, 50))

    def measured(self) -> Tensor | None:
        return self.mask != 0


def _times(size: Sequence[int] | None) -> str:
    return " x ".join(map(str, size or ()))
