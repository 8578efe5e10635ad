"""The sample sheet: what a prior draws by itself, above images that it has not seen."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invsolve.api import metrics


def sample_sheet(drawn: Tensor, seen: Tensor, complex_: bool, path: Path) -> None:
    """Write a PNG with two rows of pictures.

    Args:
        drawn: unconditional samples (N, C, *spatial), network units.
        seen: held-out images, as many.
        complex_: two channels are real and imaginary part, shown as magnitude.
        path: the file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = len(drawn)
    figure, axes = plt.subplots(2, columns, figsize=(1.6 * columns, 3.9), squeeze=False, layout="constrained")
    low, high = (0.0, 1.0) if complex_ else (-1.0, 1.0)
    for line, images, label in ((axes[0], drawn, "drawn"), (axes[1], seen, "held out")):
        for k, axis in enumerate(line):
            if k >= len(images):
                axis.set_axis_off()
                continue
            _show(axis, images[k].float().cpu(), complex_, low, high)
            axis.set_title(label if k == 0 else " ", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    path.write_bytes(buffer.getvalue())


def _show(axis: Any, image: Tensor, complex_: bool, low: float, high: float) -> None:
    """A signal as a line, a volume by its middle slice, three channels in colour, else grey."""
    if image.ndim == 2:
        axis.plot(image.T.numpy(), linewidth=0.8)
        axis.set_ylim(-1.3, 1.3)
        axis.tick_params(labelsize=5)
        return
    axis.set_axis_off()
    if image.ndim == 4:
        image = image[:, image.shape[1] // 2]
    if len(image) == 3 and not complex_:
        axis.imshow(((image - low) / (high - low)).clamp(0, 1).movedim(0, -1).numpy())
        return
    grey = metrics.magnitude(image) if complex_ else image.mean(0)
    axis.imshow(torch.nan_to_num(grey).numpy(), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
