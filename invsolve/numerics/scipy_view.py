"""A pair of maps on tensors as a SciPy `LinearOperator` on vectors, for SciPy's and other people's solvers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from invsolve.numerics.linalg import size_of

Map = Callable[[Tensor], Tensor]


class ScipyView(LinearOperator):
    """A linear map of tensors as a SciPy operator; vectors are images and measurements in row-major order.

    SciPy's adjoint is complex linear. Where images are real and measurements complex, both directions are continued to complex
    vectors, so that `rmatvec` is the conjugate transpose there too, of which the real part is the map's own adjoint.

    Args:
        forward, adjoint: (B, *image) -> (B, *measurement) and back, exact transposes under Re <a, b>.
        image: an image, (1, *image), for shape, precision and device.
        measurement: likewise, (1, *measurement).
    """

    def __init__(self, forward: Map, adjoint: Map, image: Tensor, measurement: Tensor) -> None:
        self.forward, self.backward, self.image, self.measurement = forward, adjoint, image, measurement
        widest = torch.promote_types(image.dtype, measurement.dtype)
        dtype = torch.empty(0, dtype=widest).numpy().dtype
        super().__init__(dtype, (size_of(measurement.shape[1:]), size_of(image.shape[1:])))

    def _matvec(self, x: Any) -> Any:
        return self._matmat(np.asarray(x).reshape(-1, 1))

    def _rmatvec(self, y: Any) -> Any:
        return self._rmatmat(np.asarray(y).reshape(-1, 1))

    def _matmat(self, x: Any) -> Any:
        return _columns(self.forward, x, self.image, 1)

    def _rmatmat(self, y: Any) -> Any:
        real_images = self.measurement.is_complex() and not self.image.is_complex()
        return _columns(self.backward, y, self.measurement, -1 if real_images else 1)


def _columns(apply: Map, vectors: Any, like: Tensor, sign: int) -> Any:
    """The map on the columns of (n, B), as (m, B)."""
    rows = np.ascontiguousarray(np.asarray(vectors).T)
    shape: Sequence[int] = like.shape[1:]

    def mapped(part: Any) -> Any:
        tensor = torch.from_numpy(np.ascontiguousarray(part)).to(like.device, like.dtype)
        with torch.no_grad():
            return apply(tensor.view(-1, *shape)).flatten(1).cpu().numpy().T

    if sign < 0:
        # To a real image A' y is Re(A^H y), and Im(A^H y) = Re(A^H (-i y)).
        return mapped(rows) + 1j * mapped(-1j * rows)
    if np.iscomplexobj(rows) and not like.is_complex():
        return mapped(rows.real) + 1j * mapped(rows.imag)
    return mapped(rows)
