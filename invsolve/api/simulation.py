"""`simulate`: known images as an instrument would measure them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve.api.fit import check_items, masks_for_items
from invsolve.api.inputs import as_rows, resolve_noise, resolve_operator, whole
from invsolve.contracts.arguments import by_parts
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import LinearOperator, Operator
from invsolve.contracts.returned import called, check_images, check_rows
from invsolve.errors import UserError
from invsolve.numerics.random import ChainRandom
from invsolve.registry.parameters import parameters


def simulate(
    truth: Tensor | np.ndarray, operator: Operator | str, noise: Noise | str, seed: int = 0, *, first: int | None = None
) -> Tensor:
    """Measure known images: y = A(truth) + noise.

    Args:
        truth: (N, C, *spatial), physical units; for complex operators complex with one channel, or real with one
            channel (real part) or two (real and imaginary part).
        operator: an Operator, or the name of one that needs no parameters.
        noise: an `invsolve.Noise`, such as `Gaussian(sigma)` or `Poisson(gain)`, or text such as "gaussian:0.01".
        seed: the noise of item i depends on (seed, i) alone.
        first: the number of the first item, where `truth` is a part of more; None where it is all.

    Returns:
        y (N, *measurement), float32 (complex64 for complex operators); zero where nothing is measured.
    """
    forward = resolve_operator(operator)
    images = _images(as_rows(truth, "truth"), forward)
    model = resolve_noise(noise)
    if model is None:
        raise UserError("noise must be given; none at all is invsolve.Gaussian(0.0)")
    seed = whole(seed, "seed")
    if first is None:
        check_items(forward, len(images), "truth")
    rows = []
    # An operator of free size keeps what it makes here.
    with torch.inference_mode(False), torch.no_grad():
        for item, image in enumerate(images.split(1), start=first or 0):
            own = forward.for_item(item)
            clean = own(image) if forward.complex_image else by_parts(own, image)
            clean = check_rows(clean, image, called("operator", own), "forward")
            # Keyed apart from the samplers' draws, so that a run with the same seed never reuses the noise it fights.
            noise_of_item = model.rows([item], clean.ndim)
            noise_of_item.check_shape(clean.shape)
            drawn = noise_of_item.sample(clean, ChainRandom(seed, [(item, 2**32 - 2)]))
            noisy = check_images(drawn, clean, called("noise", model), "sample")
            # Only now, as an operator of free size takes it from the first image.
            measured = own.measured()
            rows.append(noisy if measured is None else noisy * measured)
    return torch.cat(rows)


def _images(truth: Tensor, forward: Operator) -> Tensor:
    """The truth as the operator takes it: float32, or complex64 where it is complex or the operator wants it so.

    Raises:
        UserError: its axes, channels or size are not those of the operator's images.
    """
    images = truth.to(torch.complex64 if truth.is_complex() else torch.float32)
    name = f"operator {forward.name or type(forward).__name__!r}"
    if not bool(torch.isfinite(images).all()):
        raise UserError("truth holds NaN or infinity, of which nothing can be measured; give these pixels a value")
    if forward.image_shape is None and images.ndim < 3:
        raise UserError(
            f"truth {tuple(images.shape)} has no axis of channels: expected (items, channels, *size); one grey image or signal "
            "is truth[None, None]"
        )
    if images.is_complex() and not forward.complex_image and not isinstance(forward, LinearOperator):
        raise UserError(
            f"truth is complex, but {name} takes real images, and is not linear; give its modulus or real part"
        )
    if forward.complex_image and not images.is_complex():
        if images.ndim < 3 or images.shape[1] not in (1, 2):
            raise UserError(
                f"truth {tuple(images.shape)} is real: {name} takes complex images, or one channel as the real part, or two as "
                "real and imaginary part; give grey images (command line: --read grey=true), or each channel as an item"
            )
        imaginary = images[:, 1:] if images.shape[1] == 2 else torch.zeros_like(images[:, :1])
        images = torch.complex(images[:, :1], imaginary)
    wanted, got = forward.image_shape, tuple(images.shape[1:])
    if wanted is not None and got != tuple(wanted):
        raise UserError(
            f"truth has images (channels, *size) of {got}, but {name} measures {tuple(wanted)}; {_remedy(got, wanted, forward)}"
            f"{masks_for_items(forward, len(images))}"
        )
    return images


def _remedy(got: tuple[int, ...], wanted: tuple[int, ...], forward: Operator) -> str:
    """How images or operator have to change to fit one another."""
    kind: Any = type(forward)
    takes = {p.name for p in parameters(kind)}
    if len(got) != len(wanted):
        return "truth must be (items, channels, *size)"
    if got[1:] != tuple(wanted[1:]) and "image_size" in takes:
        return f"make the operator for their size, image_size={list(got[1:])}"
    if got[0] != wanted[0] and "channels" in takes:
        return f"make the operator for their channels, channels={got[0]}"
    if got[0] != wanted[0] == 1:
        return "give grey images (command line: --read grey=true), or each channel as an item, truth.flatten(0, 1)[:, None]"
    return "truth must be (items, channels, *size)"
