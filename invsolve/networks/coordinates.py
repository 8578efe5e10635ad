"""The one place that turns what a network was trained to predict into the denoiser D(x, sigma) in VE coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invsolve.contracts.prior import per_row
from invsolve.errors import UserError, suggestion
from invsolve.networks.vp import Schedule

#: What a network may predict, each in one line.
PARAMETRISATIONS = {
    "epsilon": "the noise n; with a schedule of x / sqrt(1 + sigma^2) (DDPM), without of x itself",
    "v": "sqrt(alpha_bar) n - sqrt(1 - alpha_bar) x0 (Salimans 2022); needs a schedule",
    "sample": "x0; with a schedule of x / sqrt(1 + sigma^2), without of x itself",
    "score": "the gradient of the log density of its input; with a schedule VP, without VE",
    "edm": "D = c_skip x + c_out net(c_in x, ln(sigma) / 4) (Karras 2022, table 1)",
    "flow": "the velocity n - x0 at x_t = (1 - t) x0 + t n: noise at t = 1 (Stable Diffusion 3, diffusers)",
    "flow-to-data": "the velocity x0 - n at x_t = t x0 + (1 - t) n: image at t = 1 (Liu 2023, Lipman 2023)",
    "denoiser": "x0 of x itself, given sigma: already D",
}
NEEDS_SCHEDULE = ("v",)
TAKES_SCHEDULE = ("epsilon", "v", "sample", "score")

#: What a network without a schedule is told of the noise level sigma.
LABELS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigma": lambda sigma: sigma,
    "log_sigma": torch.log,
    "log_sigma/4": lambda sigma: sigma.log() / 4,
    "log(sigma/2)": lambda sigma: (sigma / 2).log(),
    "t": lambda sigma: sigma / (1 + sigma),
    "1-t": lambda sigma: 1 / (1 + sigma),
}
_LABEL_OF = {"edm": "log_sigma/4", "flow": "t", "flow-to-data": "1-t"}


@dataclass(frozen=True)
class Coordinates:
    """What a network wants to be fed, and what its output says about the image.

    Attributes:
        parametrisation: a key of `PARAMETRISATIONS`.
        schedule: of a VP network; None for networks that live in VE or flow coordinates.
        sigma_data: of "edm", the standard deviation of the images that the network was trained on.
        label: what the network is told of sigma: a key of `LABELS` or a function of sigma (B,). None: what is usual for the
            parametrisation; networks with a schedule are always fed its timestep.
        time_scale: the label is multiplied by this (1000 for diffusers' flow networks).
        integer_times: feed rounded integers, for networks that look the timestep up in a table.
    """

    parametrisation: str
    schedule: Schedule | None = None
    sigma_data: float = 0.5
    label: str | Callable[[Tensor], Tensor] | None = None
    time_scale: float = 1.0
    integer_times: bool = False

    def __post_init__(self) -> None:
        name = self.parametrisation
        if name not in PARAMETRISATIONS:
            raise UserError(f"unknown parametrisation {name!r}.{suggestion(str(name), PARAMETRISATIONS)}")
        if name in NEEDS_SCHEDULE and self.schedule is None:
            raise UserError(f"parametrisation {name!r} needs schedule=, such as 'linear', 'cosine' or alpha_bar itself")
        if name not in TAKES_SCHEDULE and self.schedule is not None:
            raise UserError(
                f"parametrisation {name!r} has no timestep schedule, but schedule= is given; leave it out, or is the "
                "network one of epsilon, v, sample, score?"
            )
        if isinstance(self.label, str) and self.label not in LABELS:
            raise UserError(f"unknown label {self.label!r}.{suggestion(self.label, LABELS)}")
        if not self.sigma_data > 0:
            raise UserError(f"sigma_data is the standard deviation of the training images, > 0, got {self.sigma_data}")

    def feed(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The network's two arguments at x (B, C, *spatial) and sigma (B,): its input like x, and the label (B,)."""
        s = per_row(sigma, x)
        if self.parametrisation == "edm":
            inside = x / (s**2 + self.sigma_data**2).sqrt()
        elif self.parametrisation in ("flow", "flow-to-data"):
            inside = x / (1 + s)
        else:
            inside = x if self.schedule is None else x / (1 + s**2).sqrt()
        return inside, self._label(sigma)

    def _label(self, sigma: Tensor) -> Tensor:
        if self.schedule is not None:
            label = self.schedule.time(sigma)
        else:
            label_of = self.label or _LABEL_OF.get(self.parametrisation, "sigma")
            label = LABELS[label_of](sigma) if isinstance(label_of, str) else label_of(sigma)
        label = self.time_scale * label
        return label.round().long() if self.integer_times else label

    def denoised(self, x: Tensor, sigma: Tensor, out: Tensor) -> Tensor:
        """D(x, sigma) from the network's output `out`, shaped like x (B, C, *spatial); sigma (B,)."""
        s = per_row(sigma, x)
        name, vp = self.parametrisation, self.schedule is not None
        if name == "epsilon":
            return x - s * out
        if name == "score":
            return x + (s**2 / (1 + s**2).sqrt() if vp else s**2) * out
        if name == "v":
            return x / (1 + s**2) - s / (1 + s**2).sqrt() * out
        if name == "edm":
            total = s**2 + self.sigma_data**2
            return self.sigma_data**2 / total * x + s * self.sigma_data / total.sqrt() * out
        if name == "flow":
            return (x - s * out) / (1 + s)
        if name == "flow-to-data":
            return (x + s * out) / (1 + s)
        return out

    def sigma_range(self) -> tuple[float, float] | None:
        """The noise levels for which such a network is usually trained; None when nobody can know."""
        if self.schedule is not None:
            return self.schedule.sigma_min, self.schedule.sigma_max
        # For flows sigma = t / (1 - t): beyond t = 0.99 nothing of an image within [-1, 1] is left.
        return {"edm": (0.002, 80.0), "flow": (0.002, 100.0), "flow-to-data": (0.002, 100.0)}.get(self.parametrisation)

    def __str__(self) -> str:
        parts = []
        if self.schedule is not None:
            parts.append(f"schedule {self.schedule.name!r}")
        elif self.parametrisation in TAKES_SCHEDULE:
            parts.append("variance-exploding")
        if self.schedule is None and self.label is not None:
            parts.append(f"label {self.label!r}")
        if self.time_scale != 1:
            parts.append(f"time scale {self.time_scale:g}")
        return f"{self.parametrisation!r} ({', '.join(parts)})" if parts else repr(self.parametrisation)


def first_output(out: Any, like: Tensor) -> Tensor:
    """The prediction in what a network returns: a tensor, the first of a tuple, or `.sample`; without learned variances.

    Raises:
        UserError: neither C nor, with learned variances, 2 C channels for images of C channels.
    """
    if isinstance(out, tuple | list):
        out = out[0]
    elif not isinstance(out, Tensor) and hasattr(out, "sample"):
        out = out.sample
    channels = like.shape[1]
    if isinstance(out, Tensor) and out.ndim == like.ndim and out.shape[1] == 2 * channels:
        out = out[:, :channels]
    if not isinstance(out, Tensor) or out.shape != like.shape:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise UserError(
            f"the network returns {got} for images {tuple(like.shape)}; it must return as many channels as it is given, "
            "or twice as many when it predicts variances too"
        )
    return out
