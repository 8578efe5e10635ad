"""Sums over points of Fourier exponentials as convolutions: A'W A of a non-uniform Fourier transform by two FFTs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy import fft as scipy_fft
from torch import Tensor

from invsolve.numerics.autograd import linear_map
from invsolve.numerics.nufft import Nufft

#: Relative error of the convolution kernels, from 1e-12 on in double precision.
_TOLERANCE = {torch.float32: 1e-7, torch.float64: 1e-12}


def doubled(size: Sequence[int]) -> tuple[int, ...]:
    """Sizes of transforms in which a convolution over images of this size does not wrap around."""
    return tuple(scipy_fft.next_fast_len(2 * n - 1) for n in size)


def spectrum(points: Tensor, weights: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The spectrum of the convolution kernel t[d] = sum over j of w[j] exp(2 pi i k[j] . d), |d| < size; real, (*doubled(size)).

    Real weights make t Hermitian, and so its spectrum real (Wajer and Pruessmann 2001).

    Args:
        points: k, (points, dimensions) float64, in cycles per pixel.
        weights: w, (points,), real.
        size: of the images.
        dtype: real precision of the result.
    """
    wide = [2 * n for n in size]
    transform = Nufft(points, wide, _TOLERANCE[dtype], torch.float64, weights.device, often=False)
    kernel = transform.adjoint(weights.to(torch.complex128)[None])[0]
    # From differences -n .. n - 1 to 1 - n .. n - 1, and to where the FFT has them.
    for axis, (n, m) in enumerate(zip(size, doubled(size), strict=True)):
        ahead, behind = kernel.narrow(axis, n, n), kernel.narrow(axis, 1, n - 1)
        shape = list(kernel.shape)
        shape[axis] = m - (2 * n - 1)
        kernel = torch.cat([ahead, kernel.new_zeros(shape), behind], axis)
    return torch.fft.fftn(kernel).real.to(dtype)


def convolved(x: Tensor, response: Tensor) -> Tensor:
    """Images (..., *size), complex, convolved with the kernel of a `spectrum`; differentiable, and stores nothing for it."""

    def apply(image: Tensor) -> Tensor:
        return _convolved(image.detach(), response)

    # The kernel is Hermitian, so the convolution is its own adjoint.
    return linear_map(x, apply, apply)


def _convolved(x: Tensor, response: Tensor) -> Tensor:
    sizes = x.shape[-response.ndim :]
    # The last axis first, and cut last: what is zero, or is not wanted, is not transformed.
    for axis in reversed(range(response.ndim)):
        x = torch.fft.fft(x, n=response.shape[axis], dim=axis - response.ndim)
    x = x * response
    for axis, n in enumerate(sizes):
        dim = axis - response.ndim
        x = torch.fft.ifft(x, dim=dim).narrow(dim, 0, n)
    return x
