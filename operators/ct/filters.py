"""The ramp filter of filtered back-projection, and its windows."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

from invsolve.errors import UserError

Window = Literal["ramp", "shepp-logan", "cosine", "hamming", "hann"]


def ramp_filter(detectors: int, spacing: float, window: str, arc: float = math.inf, pixel: float = 0.0) -> np.ndarray:
    """Frequency response (rfft of 2^k >= 2 * detectors points) of the ramp filter (Kak & Slaney, eqs. 3.29 and 3.130).

    Args:
        detectors: detector pixels.
        spacing: detector spacing, length units.
        window: "ramp" for none, "shepp-logan", "cosine", "hamming" or "hann".
        arc: radius of a curved detector around the source; infinite for a flat one.
        pixel: side of the image's pixels. A finer detector is averaged over them, as linear interpolation averages over its
            own: what pixels cannot hold would come back as noise.

    Raises:
        UserError: another window.
    """
    if window not in get_args(Window):
        raise UserError(f"operator 'ct': window must be one of {', '.join(get_args(Window))}, got {window!r}")
    points = 2 ** math.ceil(math.log2(2 * detectors))
    n = np.fft.fftfreq(points, 1 / points).astype(np.int64)
    kernel = np.zeros(points)
    kernel[0] = 1 / (4 * spacing**2)
    odd = n % 2 == 1
    # On an arc, chords are shorter than what is walked along it. Beyond half a turn there is no detector.
    step = (
        np.pi * n[odd] * spacing
        if arc == math.inf
        else np.pi * arc * np.sin(np.clip(n[odd] * spacing / arc, -1.5, 1.5))
    )
    kernel[odd] = -1 / step**2
    response = np.fft.rfft(kernel).real * spacing
    if pixel > spacing:
        cycles = np.arange(len(response)) / (points * spacing)
        response *= (np.sinc(cycles * pixel) / np.sinc(cycles * spacing)) ** 2
    part = np.arange(len(response)) / (len(response) - 1)
    shape = {
        "ramp": np.ones_like(part),
        "shepp-logan": np.sinc(part / 2),
        "cosine": np.cos(np.pi * part / 2),
        "hamming": 0.54 + 0.46 * np.cos(np.pi * part),
        "hann": 0.5 + 0.5 * np.cos(np.pi * part),
    }
    return response * shape[window]
