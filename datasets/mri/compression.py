"""Receive coils compressed to fewer virtual ones, their principal components (Buehrer et al. 2007, Huang et al. 2008)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from invsolve.contracts.arguments import as_array
from invsolve.datasets.mri.noise import CoilNoise, Whitening, whitening
from invsolve.errors import UserError


def principal(kspace: Iterable[np.ndarray], coils: int) -> tuple[np.ndarray, float]:
    """The combinations of coils with most energy.

    Args:
        kspace: arrays (coils, ...) of white coils.
        coils: how many combinations.

    Returns:
        A matrix (coils, all coils) of orthonormal rows, which leaves noise white, the strongest first; and the part of the
        energy that they keep.

    Raises:
        ValueError: more coils than there are, or less than one.
    """
    gram: np.ndarray | None = None
    for part in kspace:
        values = part.reshape(len(part), -1).astype(np.complex128)
        product = values @ values.conj().T
        gram = product if gram is None else gram + product
    if gram is None or not 1 <= coils <= len(gram):
        raise ValueError(f"coils must be 1 to {0 if gram is None else len(gram)}, as many as there are, got {coils}")
    energy, vectors = np.linalg.eigh(gram)
    total = float(energy.sum())
    kept = float(energy[::-1][:coils].sum()) / total if total > 0 else 1.0
    return vectors[:, ::-1][:, :coils].conj().T, kept


def compressed(white: Whitening, kspace: Iterable[np.ndarray], coils: int) -> Whitening:
    """The same whitening followed by compression; a note says what is kept.

    Args:
        white: of the coils as they are.
        kspace: white coils, arrays (coils, ...).
        coils: virtual coils, 1 to as many as there are.

    Raises:
        ValueError: as `principal`.
    """
    matrix, kept = principal(kspace, coils)
    note = f"{matrix.shape[1]} coils compressed to {coils} virtual ones, which keep {kept:.2%} of the energy of k-space"
    return replace(
        white,
        matrix=matrix if white.matrix is None else matrix @ white.matrix,
        back=matrix.conj().T if white.back is None else white.back @ matrix.conj().T,
        notes=(*white.notes, note),
    )


@dataclass(frozen=True)
class CompressedCoils:
    """Virtual coils.

    Attributes:
        kspace: (items, coils, ...) complex64, or without items.
        matrix: (coils, all coils) complex64: virtual coil maps are `torch.tensordot(matrix, coil_maps, 1)`.
        sigma: standard deviation of each part of the noise, in every virtual coil; 0 where no covariance was given.
        energy: part of the energy of the (white) k-space that is kept.
    """

    kspace: Tensor
    matrix: Tensor
    sigma: float
    energy: float


def compress_coils(
    kspace: Tensor | np.ndarray, coils: int, covariance: Tensor | np.ndarray | None = None
) -> CompressedCoils:
    """Compress the coils of k-space to fewer virtual ones, after making their noise white.

    Args:
        kspace: complex (coils, rows, columns), or (items, coils, ...) for one compression of several slices or frames.
        coils: how many virtual coils, 1 to as many as there are.
        covariance: of the noise, (coils, coils), of the real and imaginary part each; None where it is white already.

    Raises:
        UserError: no complex k-space of coils, a covariance of another shape, or more coils than there are.
    """
    values = as_array(kspace, "kspace")
    if values.ndim < 3 or not values.is_complex():
        raise UserError(
            f"compress_coils takes complex k-space (coils, rows, columns) or (items, coils, ...), got {values.dtype} "
            f"{tuple(values.shape)}"
        )
    items = values if values.ndim > 3 else values[None]
    white = Whitening(None, None, 0.0)
    if covariance is not None:
        known = np.asarray(as_array(covariance, "covariance"))
        if known.shape != (items.shape[1],) * 2:
            raise UserError(f"covariance {known.shape} does not fit {items.shape[1]} coils; give (coils, coils)")
        try:
            # A covariance that is stated is taken as exact.
            white = whitening(CoilNoise(known.astype(np.complex128), 10**9))
        except ValueError as error:
            raise UserError(f"covariance: {error}; give their noise, or none") from None
    arrays = [white(item) for item in items.cpu().numpy()]
    try:
        made = compressed(white, arrays, coils)
    except ValueError as error:
        raise UserError(f"compress_coils: {error}") from None
    assert made.matrix is not None
    _, energy = principal(arrays, coils)
    matrix = torch.from_numpy(made.matrix.astype(np.complex64)).to(items.device)
    virtual = torch.stack([torch.tensordot(matrix, item.to(matrix.dtype), 1) for item in items])
    return CompressedCoils(virtual if values.ndim > 3 else virtual[0], matrix, made.sigma, energy)
