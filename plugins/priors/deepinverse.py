"""Denoisers of the DeepInverse library, where that is installed: D(x, sigma) of images between 0 and 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from invsolve.errors import UserError
from invsolve.plugins.priors._checkpoint import CheckpointPrior
from invsolve.plugins.priors._weights import fill, read_weights


class DeepInversePrior(CheckpointPrior):
    """A denoiser of `deepinv.models` with weights of yours.

    A denoiser of `deepinv.models` (DRUNet, ADMUNet, NCSNpp, DnCNN, ...) with weights of yours.

    An instance in hand goes through Python: `invsolve.prior_from(denoiser, "denoiser", network_range=(0, 1), sigma_min=0.005,
    sigma_max=0.2, event_shape=(3, None, None))`.

    Args:
        path: its state dict: .pt, .pth or .safetensors. Nothing is downloaded.
        model: name of the class in `deepinv.models`.
        channels: of the images.
        sigma_min, sigma_max: noise levels it was trained for, for images between 0 and 1.
        multiple: image sizes are extended to a multiple of this.
        data_range: physical values of network -1 and +1, that is black and white.
        unit: physical unit of the images.

    Raises:
        UserError: deepinv is not installed, has no such class, or the weights do not fit.
    """

    name = "deepinverse"

    def __init__(
        self,
        path: str,
        model: str = "DRUNet",
        channels: int = 3,
        sigma_min: float = 0.002,
        sigma_max: float = 1.0,
        multiple: int = 8,
        data_range: tuple[float, float] | None = None,
        unit: str | None = None,
    ) -> None:
        try:
            import deepinv
        except ImportError:
            raise UserError("prior 'deepinverse' needs the package deepinv: pip install deepinv") from None
        cls = getattr(deepinv.models, model, None)
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise UserError(f"deepinv.models has no denoiser class {model!r}")
        denoiser: Any = cls(in_channels=channels, out_channels=channels, pretrained=None)
        fill(denoiser, read_weights(Path(path)), Path(path))
        said = {"sigma_min": sigma_min, "sigma_max": sigma_max, "data_range": data_range, "unit": unit}
        usual = {
            "parametrisation": "denoiser",
            "network_range": (0.0, 1.0),
            "source": f"deepinv.models.{model}, {path}",
        }
        self._become(_Denoiser(denoiser), said, usual, Path(path), (channels, None, None), multiple)


class _Denoiser(nn.Module):
    """Calls a DeepInverse denoiser, whose `forward` takes x and sigma, with one sigma for each image."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.net(x, sigma)
