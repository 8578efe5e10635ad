"""Latent priors: what diffuses is a code, and images are decoded from it; strategies see the operator through the decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from invsolve.contracts.operator import Operator
from invsolve.contracts.prior import Prior
from invsolve.contracts.wrapped import Wrapped
from invsolve.errors import UserError


class LatentPrior(Prior):
    """A prior whose images are decoded from latents, of which `inner` is the denoiser. Write `decode` and `encode`.

    The posterior of the latents is p(w | y) ~ p(w) p(y | A(decode(w))): strategies are handed `inner` and the operator A decode,
    which is not linear, so that those which need a linear one are refused. What the autoencoder cannot say, no image has.

    Attributes:
        inner: the prior of the latents (B, C', *spatial / factor).
        factor: by which a side of an image is longer than that of its latents.
        event_shape, data_range, unit: of the images, which lie between -1 and 1 in network units.
    """

    inner: Prior
    factor: int = 8

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, *spatial), network units, of latents (B, C', *spatial / factor); differentiable."""
        raise NotImplementedError(f"{type(self).__name__} must define decode(latents)")

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images, the inverse of `decode` as near as there is one; differentiable."""
        raise NotImplementedError(f"{type(self).__name__} must define encode(images)")

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D of the latents."""
        return self.inner.denoise(x, sigma)

    def state_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        channels = self.inner.event_shape[0]
        assert channels is not None
        return (channels, *(side // self.factor for side in image_shape[1:]))

    def check_shape(self, image_shape: Sequence[int]) -> None:
        super().check_shape(image_shape)
        if any(side % self.factor for side in image_shape[1:]):
            raise UserError(
                f"prior {self.name or type(self).__name__!r} decodes images whose sides are multiples of {self.factor}, the "
                f"operator's are {tuple(image_shape[1:])}; crop or pad the data, or take another prior"
            )
        self.inner.check_shape(self.state_shape(image_shape))

    def bounds(self) -> tuple[float, float] | None:
        return -1.0, 1.0

    def passes_at(self, image_shape: Sequence[int], sigma: float) -> int:
        return self.inner.passes_at(image_shape, sigma)

    def error(self, sigma: float) -> float:
        """That of the latents."""
        return self.inner.error(sigma)


class Decoded(Wrapped, Operator):
    """A(decode(w)): an operator of images, fed from latents.

    Args:
        inner: the operator of images in network units.
        latent: the prior that decodes.
        image_shape: of the images.
    """

    latent: LatentPrior

    def __init__(self, inner: Operator, latent: LatentPrior, image_shape: Sequence[int]) -> None:
        super().__init__(inner)
        # Not registered as a part: the prior's weights are no parameters of the operator.
        self.__dict__["latent"] = latent
        self.image_shape = latent.state_shape(image_shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.latent.decode(x))

    def measurement_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        probe = torch.zeros(1, *image_shape, device=next((p.device for p in self.latent.parameters()), None))
        return tuple(self.forward(probe).shape[1:])
