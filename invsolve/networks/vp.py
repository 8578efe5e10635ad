"""Variance-preserving schedules: which timestep of a DDPM-like network a noise level sigma is, and back."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve.errors import UserError, suggestion


class Schedule:
    """A table of (timestep, alpha_bar): x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) n, sigma^2 = 1 / alpha_bar - 1.

    Between the table's rows the timestep is interpolated linearly in log sigma, beyond its ends it is clamped.

    Args:
        alpha_bar: (T,), descending, in (0, 1); entries below 1e-8 (sigma above 10^4, as after a rescaling to zero terminal
            signal) are dropped: no image is left in them.
        times: (T,), what the network is fed at each row; default 0, 1, ..., T - 1.

    Raises:
        UserError: alpha_bar is no descending sequence within (0, 1).
    """

    def __init__(self, alpha_bar: Any, times: Any = None, name: str = "given") -> None:
        bar = np.asarray(alpha_bar, dtype=np.float64)
        if bar.ndim != 1 or len(bar) < 2 or bar.max() >= 1 or bar.min() < 0 or not (np.diff(bar) < 0).all():
            raise UserError(
                "a schedule is alpha_bar: at least two descending numbers between 0 and 1 (the cumulative product of "
                f"1 - beta), got {bar.shape} from {bar.flat[0] if bar.size else '-'} to {bar.flat[-1] if bar.size else '-'}"
            )
        kept = bar > 1e-8
        self.name = name
        self.alpha_bar = bar[kept]
        self.times = (np.arange(len(bar), dtype=np.float64) if times is None else np.asarray(times, np.float64))[kept]
        log_sigma = 0.5 * (np.log1p(-self.alpha_bar) - np.log(self.alpha_bar))
        self.sigma_min, self.sigma_max = math.exp(log_sigma[0]), math.exp(log_sigma[-1])
        # Double precision, and no buffers: a timestep must not change when the network is moved to half precision.
        self._table = torch.from_numpy(np.stack([log_sigma, self.times]))
        self._moved: dict[torch.device, Tensor] = {}

    def time(self, sigma: Tensor) -> Tensor:
        """The timestep at sigma (B,), as a float of the same shape, in double precision where the device has it."""
        if sigma.device not in self._moved:
            self._moved[sigma.device] = self._table.to(sigma.device, _finest(sigma.device))
        log_sigmas, times = self._moved[sigma.device]
        level = sigma.to(times.dtype).log().clamp(log_sigmas[0], log_sigmas[-1])
        above = torch.searchsorted(log_sigmas, level).clamp(1, len(times) - 1)
        low, high = log_sigmas[above - 1], log_sigmas[above]
        return torch.lerp(times[above - 1], times[above], (level - low) / (high - low))

    def __repr__(self) -> str:
        return f"Schedule({self.name}: {len(self.alpha_bar)} steps, sigma {self.sigma_min:.3g} to {self.sigma_max:.4g})"


class LinearSDE(Schedule):
    """The continuous VP process dx = -beta(t) x dt / 2 + ..., beta linear in t on [0, 1] (Song 2021, appendix B).

    Args:
        beta_min, beta_max: beta(0) and beta(1).
        time_scale: the network is fed time_scale * t; 999 in score_sde and EDM.
        t_min: the smallest t that the network was trained at.
    """

    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, time_scale: float = 999.0, t_min: float = 1e-5
    ) -> None:
        self.beta_min, self.slope, self.time_scale = beta_min, beta_max - beta_min, time_scale
        t = np.linspace(t_min, 1.0, 1000)
        super().__init__(np.exp(-0.5 * self.slope * t**2 - beta_min * t), time_scale * t, "vp-sde")

    def time(self, sigma: Tensor) -> Tensor:
        log = torch.log1p(sigma.to(_finest(sigma.device)).clamp(self.sigma_min, self.sigma_max) ** 2)
        root = torch.sqrt(self.beta_min**2 + 2 * self.slope * log)
        # The conjugate form of (root - beta_min) / slope, which does not cancel at small sigma.
        return self.time_scale * 2 * log / (root + self.beta_min)


def _finest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def from_betas(betas: Any, name: str = "betas") -> Schedule:
    """The schedule of per-step noise variances beta (T,), each in (0, 1)."""
    return Schedule(np.cumprod(1 - np.asarray(betas, dtype=np.float64)), name=name)


def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Beta linear in the timestep: DDPM (Ho 2020), ADM, DDIM."""
    return from_betas(np.linspace(beta_start, beta_end, steps), "linear")


def scaled_linear(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
    """The square root of beta linear in the timestep: latent diffusion (Rombach 2022)."""
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2, "scaled_linear")


def cosine(steps: int = 1000, max_beta: float = 0.999) -> Schedule:
    """Alpha_bar = cos^2, with beta capped (Nichol 2021); "squaredcos_cap_v2" in diffusers."""
    bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - bar[1:] / bar[:-1], max_beta), "cosine")


def sigmoid(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Beta a sigmoid of the timestep, from -6 to 6: GeoDiff; "sigmoid" in diffusers."""
    gate = 1 / (1 + np.exp(-np.linspace(-6, 6, steps)))
    return from_betas(gate * (beta_end - beta_start) + beta_start, "sigmoid")


def rescaled_to_zero_signal(schedule: Schedule) -> Schedule:
    """Shift and scale sqrt(alpha_bar) so that the last one is zero (Lin 2023, algorithm 1)."""
    root = np.sqrt(schedule.alpha_bar)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return Schedule(root**2, schedule.times, schedule.name)


NAMED: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "squaredcos_cap_v2": cosine,
    "sigmoid": sigmoid,
    "vp-sde": LinearSDE,
}


def as_schedule(given: Any) -> Schedule:
    """A schedule from itself, a name ("linear"), a mapping ({"name": "linear", "steps": 1000} or {"betas": [...]}), or alpha_bar.

    Raises:
        UserError: an unknown name, or parameters that the schedule does not have.
    """
    if isinstance(given, Schedule):
        return given
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, Mapping):
        return Schedule(given.detach().cpu().numpy() if isinstance(given, Tensor) else given)
    if set(given) == {"betas"}:
        return from_betas(given["betas"])
    if set(given) == {"alpha_bar"}:
        return Schedule(given["alpha_bar"])
    options = dict(given)
    name = options.pop("name", None)
    if name not in NAMED:
        raise UserError(f"unknown schedule {name!r}.{suggestion(str(name), NAMED)}")
    known = inspect.signature(NAMED[name]).parameters
    for key in options:
        if key not in known:
            raise UserError(f"schedule {name!r} has no parameter {key!r}.{suggestion(key, known)}")
    return NAMED[name](**options)
