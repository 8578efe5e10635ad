"""Image quality against a known truth, and whether the stated uncertainty is honest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from invsolve.contracts.measurement import Rows

#: Nominal probabilities of the central intervals whose coverage is measured.
LEVELS = (0.5, 0.9)
#: The window of structural similarity takes so many pixels each way.
SSIM_WINDOW = 11


def magnitude(image: Tensor) -> Tensor:
    """(..., C, rows, columns) -> (..., rows, columns): two channels are real and imaginary part, more are averaged."""
    if image.shape[-3] == 2:
        return image.square().sum(-3).sqrt()
    return image.mean(-3)


def comparable(image: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Image and truth (C, *spatial) as the numbers that are compared; two channels are real and imaginary part.

    Complex images as (1, *spatial) complex, also a real image against a complex truth; a complex image as its modulus
    against a real truth, as scanners store it; others as they are.
    """
    if len(truth) == 2:
        return as_complex(image), as_complex(truth)
    return (image.norm(dim=0, keepdim=True) if len(image) == 2 and len(truth) == 1 else image), truth


def as_complex(image: Tensor) -> Tensor:
    """Real and imaginary part (2, *spatial), or the real part alone (1, *spatial), as (1, *spatial) complex."""
    return torch.complex(image[:1], image[1:] if len(image) == 2 else torch.zeros_like(image))


def psnr(image: Tensor, truth: Tensor, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images, and minus that, or NaN, for such as are not finite.

    Of complex numbers the error's modulus counts.
    """
    error = float((_precise(image) - _precise(truth)).abs().square().mean())
    if not 0 < error < math.inf:
        return math.inf if error == 0 else -error
    return 10 * math.log10(data_range**2 / error)


def _precise(image: Tensor) -> Tensor:
    return image.to(torch.complex128 if image.is_complex() else torch.float64)


def ssim(image: Tensor, truth: Tensor, data_range: float) -> float:
    """Structural similarity (Wang 2004, Gaussian weights of 1.5 pixels) of magnitudes (C, *spatial), 1 when equal.

    Of complex numbers their modulus.
    Of a volume the mean over its slices along the first axis, as slice by slice; at least SSIM_WINDOW pixels each way.
    """
    if truth.is_complex():
        return ssim(image.abs(), truth.abs(), data_range)
    if image.ndim > 3:
        return float(np.mean([ssim(image[:, z], truth[:, z], data_range) for z in range(image.shape[1])]))
    combine = magnitude if image.ndim == 3 else lambda v: magnitude(v[..., None])[..., 0]
    a, b = (combine(v).double().numpy() for v in (image, truth))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(a, b, data_range=data_range, **options))


def nrmse(image: Tensor, truth: Tensor) -> float:
    """Root mean squared error over the truth's root mean square."""
    return float((_precise(image) - _precise(truth)).norm() / _precise(truth).norm().clamp_min(1e-30))


def coverage(
    mean: Tensor, std: Tensor, truth: Tensor, samples: int, levels: Sequence[float] = LEVELS
) -> dict[str, float]:
    """Part of the pixels whose truth lies in the central interval of each nominal level; equal to it when honest.

    The interval is that of a new draw given `samples` draws: Student's t with samples - 1 degrees of freedom. Real and
    imaginary part (two channels) have intervals of their own, as have the channels of a colour. Empty for a single sample,
    and for a complex image against a modulus, of which mean and standard deviation say nothing.
    """
    from scipy.stats import t as student

    if samples < 2 or (len(mean) == 2 and len(truth) == 1):
        return {}
    # A real image has an interval for the real part of a complex truth alone.
    truth = truth[: len(mean)]
    shares = {}
    for level in levels:
        factor = student.ppf((1 + level) / 2, samples - 1) if samples < 200 else NormalDist().inv_cdf((1 + level) / 2)
        half = float(factor) * math.sqrt(1 + 1 / samples) * std
        shares[f"coverage_{round(level * 100)}"] = float(((truth - mean).abs() <= half).double().mean())
    return shares


def score(
    mean: Tensor, truth: Tensor, data_range: float, std: Tensor | None = None, samples: int = 1
) -> dict[str, float]:
    """All metrics of one item (C, *spatial), see `comparable`; no SSIM of images smaller than its window."""
    image, target = comparable(mean, truth)
    figures = {"psnr": psnr(image, target, data_range)}
    if min(truth.shape[-2:] if truth.ndim > 2 else truth.shape[-1:]) >= SSIM_WINDOW:
        figures["ssim"] = ssim(image, target, data_range)
    figures["nrmse"] = nrmse(image, target)
    return figures | (coverage(mean, std, truth, samples) if std is not None else {})


def range_of(truth: Tensor) -> float:
    """What PSNR and SSIM of an image (C, *spatial) are measured against: the span of its values, 1 for a constant one.

    Of a complex image, in two channels, the largest modulus.
    """
    span = float(truth.norm(dim=0).max() if len(truth) == 2 else truth.max() - truth.min())
    return span if span > 0 else 1.0


def data_range(truth: Rows) -> float:
    """The largest span among the items: what evaluate, report and demo all measure PSNR and SSIM against by default."""
    return max(range_of(truth[i : i + 1][0]) for i in range(len(truth)))


def average(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over items."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}
