"""Image quality against a known truth, and whether the stated uncertainty is honest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
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


def psnr(image: Tensor, truth: Tensor, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images, and minus that, or NaN, for such as are not finite."""
    error = float((image.double() - truth.double()).square().mean())
    if not 0 < error < math.inf:
        return math.inf if error == 0 else -error
    return 10 * math.log10(data_range**2 / error)


def ssim(image: Tensor, truth: Tensor, data_range: float) -> float:
    """Structural similarity (Wang 2004, Gaussian weights of 1.5 pixels) of magnitudes (C, *spatial), 1 when equal.

    Of a volume the mean over its slices along the first axis, as slice by slice; at least SSIM_WINDOW pixels each way.
    """
    if image.ndim > 3:
        return float(np.mean([ssim(image[:, z], truth[:, z], data_range) for z in range(image.shape[1])]))
    combine = magnitude if image.ndim == 3 else lambda v: magnitude(v[..., None])[..., 0]
    a, b = (combine(v).double().numpy() for v in (image, truth))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(a, b, data_range=data_range, **options))


def nrmse(image: Tensor, truth: Tensor) -> float:
    """Root mean squared error over the truth's root mean square."""
    return float((image - truth).double().norm() / truth.double().norm().clamp_min(1e-30))


def coverage(
    mean: Tensor, std: Tensor, truth: Tensor, samples: int, levels: Sequence[float] = LEVELS
) -> dict[str, float]:
    """Part of the pixels whose truth lies in the central interval of each nominal level; equal to it when honest.

    The interval is that of a new draw given `samples` draws: Student's t with samples - 1 degrees of freedom.
    """
    from scipy.stats import t as student

    if samples < 2:
        return {}
    shares = {}
    for level in levels:
        factor = student.ppf((1 + level) / 2, samples - 1) if samples < 200 else NormalDist().inv_cdf((1 + level) / 2)
        half = float(factor) * math.sqrt(1 + 1 / samples) * std
        shares[f"coverage_{round(level * 100)}"] = float(((truth - mean).abs() <= half).double().mean())
    return shares


def score(
    mean: Tensor, truth: Tensor, data_range: float, std: Tensor | None = None, samples: int = 1
) -> dict[str, float]:
    """All metrics of one item (C, *spatial); no SSIM of images smaller than its window."""
    figures = {"psnr": psnr(mean, truth, data_range)}
    if min(truth.shape[-2:] if truth.ndim > 2 else truth.shape[-1:]) >= SSIM_WINDOW:
        figures["ssim"] = ssim(mean, truth, data_range)
    figures["nrmse"] = nrmse(mean, truth)
    return figures | (coverage(mean, std, truth, samples) if std is not None else {})


def range_of(truth: Tensor) -> float:
    """The span of the truth's values, which PSNR and SSIM are measured against; 1 for a constant image."""
    span = float(truth.max() - truth.min())
    return span if span > 0 else 1.0


def data_range(truth: Rows) -> float:
    """The largest span among the items: what evaluate, report and demo all measure PSNR and SSIM against by default."""
    return max(range_of(truth[i : i + 1]) for i in range(len(truth)))


def average(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over items."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}
