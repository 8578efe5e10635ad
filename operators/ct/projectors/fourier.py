"""The Fourier slice theorem as a projector: the image's transform, interpolated along radial lines, transformed back."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from invsolve.contracts.operator import matching
from invsolve.operators.ct.geometry import Geometry
from invsolve.operators.ct.projectors.base import Projector, by_images

# Of the Kaiser-Bessel kernel: width in points of the oversampled grid, how much finer that grid is than needed, and the shape
# that suits both (Beatty 2005).
_WIDTH = 6
_OVERSAMPLING = 1.5
_SHAPE = math.pi * math.sqrt((_WIDTH / _OVERSAMPLING) ** 2 * (_OVERSAMPLING - 0.5) ** 2 - 0.8)


class FourierProjector(Projector):
    """Line integrals of the trigonometric polynomial through the pixels, for parallel beams.

    For smooth images far more accurate than Joseph's method; at edges it rings, and so may be negative. Frequencies along a
    line come from an oversampled FFT by interpolation with a Kaiser-Bessel kernel, a sparse matrix whose transpose is stored
    beside it; those beyond half a cycle per pixel are left out.
    """

    name = "fourier"

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        g = geometry
        spacing, offset = g.detector_spacing / g.pixel_size, np.asarray(g.image_offset) / g.pixel_size
        angle = np.deg2rad(np.asarray(g.angles))[:, None]
        start = g.positions()[0] / g.pixel_size - offset[0] * np.cos(angle) - offset[1] * np.sin(angle)
        # What is computed repeats itself along s: so far away that no detector pixel sees the object twice.
        reach = math.hypot(g.rows, g.columns) / 2 + _WIDTH
        farthest = max(float(np.abs(start).max()), float(np.abs(start + (g.detectors - 1) * spacing).max()))
        self.period = max(g.detectors, math.ceil((reach + max(reach, farthest)) / spacing))
        span = self.period * spacing
        frequency = np.arange(math.floor(span / 2) + 1) / span
        self.grid = tuple(2 * math.ceil(_OVERSAMPLING * n / 2) for n in (g.rows, g.columns))
        # Cycles per pixel along the array's rows, which run against y, and its columns.
        along = np.stack([-frequency * np.sin(angle), frequency * np.cos(angle)], -1).reshape(-1, 2)
        taps = _taps(along, self.grid)
        transposed = [part.T.tocsr() for part in taps]
        for name, (real, imaginary) in (("lines", taps), ("cells", transposed)):
            self.register_buffer(f"{name}_start", torch.from_numpy(real.indptr.astype(np.int32)))
            self.register_buffer(f"{name}_index", torch.from_numpy(real.indices.astype(np.int32)))
            self.register_buffer(f"{name}_real", torch.from_numpy(real.data.astype(np.float32)))
            self.register_buffer(f"{name}_imaginary", torch.from_numpy(imaginary.data.astype(np.float32)))
        # From pixel (rows // 2, columns // 2), which the transform is taken around, to the image's middle and to detector 0.
        half = np.array([(n - 1) / 2 - n // 2 for n in (g.rows, g.columns)])
        turns = (along @ half).reshape(len(g.angles), -1) + frequency * start
        # Negative frequencies are the conjugates of positive ones; half a cycle per pixel ends the integral on both sides.
        share = np.where((frequency == 0) | (frequency == 0.5), 1.0, 2.0) * g.pixel_size / span
        self.phase = torch.from_numpy((np.exp(2j * np.pi * turns) * share).astype(np.complex64))
        row, column = (1 / _transform(np.arange(n) - n // 2, m) for n, m in zip(g.image_size, self.grid, strict=True))
        self.weights = torch.from_numpy((row[:, None] * column).astype(np.float32))

    @classmethod
    def unsupported(cls, geometry: Geometry) -> str:
        plain = geometry.beam == "parallel" and geometry.dimensions == 2 and not geometry.vectors
        return "" if plain else "it is for parallel beams in 2-D, stated by angles"

    def _product(self, name: str, values: Tensor) -> Tensor:
        """Complex (B, n) through the taps, real and imaginary parts each with its weights; (B, m)."""
        index, start = self.get_buffer(f"{name}_index"), self.get_buffer(f"{name}_start")
        parts = []
        for part, weights in ((values.real, "real"), (values.imag, "imaginary")):
            weight, dense = matching(self.get_buffer(f"{name}_{weights}"), part), part.T.contiguous()
            bag = F.embedding_bag(index, dense, start, mode="sum", per_sample_weights=weight, include_last_offset=True)
            parts.append(bag.T)
        return torch.complex(*parts)

    def project(self, x: Tensor) -> Tensor:
        return by_images(self._to_rays, x, len(x))

    def backproject(self, y: Tensor) -> Tensor:
        return by_images(self._to_images, y, len(y))

    def _to_rays(self, x: Tensor) -> Tensor:
        g, (rows, columns) = self.geometry, self.grid
        padded = F.pad(x * matching(self.weights, x), (0, columns - g.columns, 0, rows - g.rows))
        cells = torch.fft.rfft2(padded.roll((-(g.rows // 2), -(g.columns // 2)), (1, 2)))
        lines = self._product("lines", cells.flatten(1)).view(len(x), len(g.angles), -1)
        lines = lines * matching(self.phase, lines)
        # Where detector pixels are wider than image pixels, frequencies that they cannot tell apart add up.
        folded = F.pad(lines, (0, -lines.shape[2] % self.period)).unflatten(2, (-1, self.period)).sum(2)
        return torch.fft.ifft(folded, norm="forward").real[..., : g.detectors]

    def _to_images(self, y: Tensor) -> Tensor:
        g, (rows, columns) = self.geometry, self.grid
        folded = torch.fft.fft(F.pad(y, (0, self.period - g.detectors)))
        count = self.phase.shape[1]
        lines = folded.repeat(1, 1, math.ceil(count / self.period))[..., :count]
        lines = lines * matching(self.phase, lines).conj()
        cells = self._product("cells", lines.flatten(1)).view(len(y), rows, -1)
        # irfft2 counts what is between the first and the last column twice.
        twice = torch.full((cells.shape[2],), 0.5, dtype=y.dtype, device=y.device)
        twice[0] = twice[-1] = 1.0
        image = torch.fft.irfft2(cells * twice, (rows, columns), norm="forward")
        image = image.roll((g.rows // 2, g.columns // 2), (1, 2))[:, : g.rows, : g.columns]
        return image * matching(self.weights, y)


def _kernel(distance: np.ndarray) -> np.ndarray:
    inside = np.clip(1 - (2 * distance / _WIDTH) ** 2, 0, None)
    return np.where(np.abs(distance) <= _WIDTH / 2, np.i0(_SHAPE * np.sqrt(inside)), 0) / np.i0(_SHAPE)


def _transform(position: np.ndarray, points: int) -> np.ndarray:
    """The kernel's Fourier transform at the pixels of an image, for a grid of so many points."""
    root = np.sqrt((_SHAPE**2 - (np.pi * _WIDTH * position / points) ** 2).astype(np.complex128))
    return _WIDTH * np.real(np.sinh(root) / root) / np.i0(_SHAPE)


def _taps(frequency: np.ndarray, grid: tuple[int, ...]) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Weights of the cells of rfft2's half grid at frequencies (n, 2), for real and for imaginary parts; (n, cells) each."""
    rows, columns = grid
    at = frequency * np.array(grid)
    first = np.ceil(at - _WIDTH / 2).astype(np.int64)
    steps = np.arange(_WIDTH + 1)
    near = first[..., None] + steps
    weight = _kernel(at[..., None] - near)
    r, c = near[:, 0, :, None] % rows, near[:, 1, None, :] % columns
    # The other half of the grid is the conjugate of this one, at the opposite frequency.
    opposite = np.broadcast_to(c > columns // 2, (len(at), len(steps), len(steps)))
    cell = np.where(opposite, -r % rows, r) * (columns // 2 + 1) + np.where(opposite, columns - c, c)
    both = weight[:, 0, :, None] * weight[:, 1, None, :]
    line = np.broadcast_to(np.arange(len(at))[:, None, None], both.shape)
    kept = both > 0
    where = (line[kept], cell[kept])
    shape = (len(at), rows * (columns // 2 + 1))
    signed = np.where(opposite, -both, both)
    real, imaginary = (sparse.coo_matrix((v[kept], where), shape=shape).tocsr() for v in (both, signed))
    return real, imaginary
