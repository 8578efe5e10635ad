"""Networks in closed form: what an ideal network of each parametrisation predicts for Gaussian images with a natural spectrum."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SIDE = 64
#: What can be asked for, with the arguments by which `prior_from` reads it rightly.
KINDS: dict[str, dict[str, Any]] = {
    "epsilon": {"parametrisation": "epsilon", "schedule": "linear"},
    "epsilon cosine": {"parametrisation": "epsilon", "schedule": "cosine"},
    "v": {"parametrisation": "v", "schedule": "linear"},
    "sample": {"parametrisation": "sample", "schedule": "linear"},
    "vp score": {"parametrisation": "score", "schedule": "linear"},
    "ve score": {"parametrisation": "score", "sigma_min": 0.01, "sigma_max": 50.0},
    "ve epsilon": {"parametrisation": "epsilon", "sigma_min": 0.01, "sigma_max": 50.0},
    "edm": {"parametrisation": "edm", "sigma_data": 0.5},
    "flow": {"parametrisation": "flow"},
    "flow 1000": {"parametrisation": "flow", "time_scale": 1000.0},
    "flow-to-data": {"parametrisation": "flow-to-data"},
    "denoiser": {"parametrisation": "denoiser", "sigma_min": 0.01, "sigma_max": 50.0},
}


def betas(name: str) -> np.ndarray:
    if name == "linear":
        return np.linspace(1e-4, 0.02, 1000)
    t = np.arange(1001) / 1000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.clip(1 - f[1:] / f[:-1], None, 0.999)


class GaussianNet(nn.Module):
    """The best predictor of a kind, for images of mean `mean` and standard deviation 0.5 at each pixel, times and shifted.

    In a = a(label), b = b(label): the input is a x0 + b n; all else is linear regression, one frequency at a time.
    """

    def __init__(self, kind: str, unit_range: bool = False, mean: float = 0.1, channels: int = 1) -> None:
        super().__init__()
        self.kind, self.channels = kind, channels
        k = np.fft.fftfreq(SIDE) * SIDE
        spectrum = 1 / (1 + (k[:, None] ** 2 + k[None] ** 2)) ** 1.2
        spectrum *= 0.5**2 / spectrum.mean()
        scale = 0.5 if unit_range else 1.0
        self.mean = (mean + 1) / 2 if unit_range else mean
        self.register_buffer("spectrum", torch.from_numpy(spectrum * scale**2))
        bar = np.cumprod(1 - betas("cosine" if "cosine" in kind else "linear"))
        self.table = 0.5 * np.log((1 - bar) / bar)

    def levels(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """a and b, each (B, 1, 1, 1)."""
        t = label.detach().double().cpu().numpy()
        if self.kind in ("epsilon", "epsilon cosine", "v", "sample", "vp score"):
            sigma = np.exp(np.interp(t, np.arange(1000), self.table))
            a, b = 1 / np.sqrt(1 + sigma**2), sigma / np.sqrt(1 + sigma**2)
        elif self.kind.startswith("flow"):
            t = np.clip(t / 1000 if self.kind == "flow 1000" else t, 1e-4, 1 - 1e-4)
            a, b = (t, 1 - t) if self.kind == "flow-to-data" else (1 - t, t)
        elif self.kind == "edm":
            sigma = np.clip(np.exp(4 * np.clip(t, -10, 10)), 1e-3, 1e3)
            # Its input is scaled by c_in.
            a, b = 1 / np.sqrt(sigma**2 + 0.25), sigma / np.sqrt(sigma**2 + 0.25)
        else:
            sigma = np.clip(t, 1e-3, 1e3)
            a, b = np.ones_like(sigma), sigma
        return tuple(torch.from_numpy(v).to(label.device).view(-1, 1, 1, 1) for v in (a, b))  # type: ignore[return-value]

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        a, b = self.levels(label)
        centred = torch.fft.fft2(x.double() - a * self.mean)
        total = a**2 * self.spectrum + b**2
        image = self.mean + torch.fft.ifft2(a * self.spectrum / total * centred).real
        noise = torch.fft.ifft2(b / total * centred).real
        if self.kind.endswith("score"):
            out = -noise / b
        elif self.kind == "v":
            out = a * noise - b * image
        elif self.kind in ("flow", "flow 1000"):
            out = noise - image
        elif self.kind == "flow-to-data":
            out = image - noise
        elif self.kind == "edm":
            sigma = b / a
            out = (image - 0.25 / (sigma**2 + 0.25) * x / a) / (0.5 * sigma / (sigma**2 + 0.25).sqrt())
        else:
            out = noise if "epsilon" in self.kind else image
        return out.to(x.dtype)

    spectrum: Tensor

    def exact(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """E[x0 | x] at x = x0 + sigma n, in double precision."""
        gain = self.spectrum / (self.spectrum + sigma**2)
        return self.mean + torch.fft.ifft2(gain * torch.fft.fft2(x.double() - self.mean)).real


def arguments(kind: str, unit_range: bool = False) -> dict[str, Any]:
    """The arguments of `prior_from` that read a network of this kind rightly."""
    given = dict(KINDS[kind], event_shape=(1, SIDE, SIDE))
    if unit_range:
        given["network_range"] = (0.0, 1.0)
    return given
