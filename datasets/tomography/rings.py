"""Ring suppression: detector pixels that answer a little too strongly or weakly draw rings around the rotation axis."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import median_filter


def suppress_rings(sinogram: np.ndarray, width: int) -> np.ndarray:
    """Smooth each quantile of the projections across the detector (Vo, Atwood & Drakopoulos 2018, algorithm 3).

    Sorted along the angles, neighbouring detector pixels have nearly the same profile, unless one of them is off; a median
    across them mends it, and each value goes back to its angle.

    Args:
        sinogram: (..., angles, detectors), line integrals.
        width: of the median filter, detector pixels; odd.
    """
    order = np.argsort(sinogram, axis=-2)
    ranked = np.take_along_axis(sinogram, order, axis=-2)
    size = (1,) * (ranked.ndim - 1) + (width,)
    smooth = median_filter(ranked, size=size, mode="nearest")
    mended = np.empty_like(smooth)
    np.put_along_axis(mended, order, smooth, axis=-2)
    return mended
