"""`simulate`: known images as an instrument would measure them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from invsolve.api.inputs import as_rows, resolve_noise, resolve_operator
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom


def simulate(
    truth: Tensor | np.ndarray, operator: Operator | str, noise: Noise | str, seed: int = 0, *, first: int = 0
) -> Tensor:
    """Measure known images: y = A(truth) + noise.

    Args:
        truth: (N, C, *spatial), physical units; for complex operators complex with one channel, or real with one
            channel (real part) or two (real and imaginary part).
        operator: an Operator, or the name of one that needs no parameters.
        noise: an `invsolve.Noise`, such as `Gaussian(sigma)` or `Poisson(gain)`, or text such as "gaussian:0.01".
        seed: the noise of item i depends on (seed, i) alone.
        first: the number of the first item, where `truth` is a part of more.

    Returns:
        y (N, *measurement), float32 (complex64 for complex operators); zero where nothing is measured.
    """
    images = as_rows(truth, "truth")
    images = images.to(torch.complex64 if images.is_complex() else torch.float32)
    forward = resolve_operator(operator)
    if forward.complex_image and not images.is_complex():
        imaginary = images[:, 1:] if images.shape[1] == 2 else torch.zeros_like(images[:, :1])
        images = torch.complex(images[:, :1], imaginary)
    if forward.image_shape is not None and tuple(images.shape[1:]) != tuple(forward.image_shape):
        raise UserError(
            f"truth has images (channels, *size) of {tuple(truth.shape[1:])}, but the operator measures "
            f"{tuple(forward.image_shape)}; truth must be (items, channels, *size)"
        )
    model = resolve_noise(noise)
    if model is None:
        raise UserError("noise must be given; none at all is invsolve.Gaussian(0.0)")
    measured = forward.measured()
    rows = []
    with torch.no_grad():
        for item in range(len(images)):
            # Keyed apart from the samplers' draws, so that a run with the same seed never reuses the noise it fights.
            clean = forward(images[item : item + 1])
            own = model.rows([first + item], clean.ndim)
            own.check_shape(clean.shape)
            noisy = own.sample(clean, ChainRandom(seed, [(first + item, 2**32 - 2)]))
            rows.append(noisy if measured is None else noisy * measured)
    return torch.cat(rows)
