"""A result as a sheet of pictures, PNG: a row per item, and the residual by step below."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve.api import metrics


def draw(result: Any, reference: Any, items: Sequence[int]) -> bytes:
    """The sheet as PNG bytes: a row of pictures per item, and its residual by step below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [_pictures(result, reference, item) for item in items]
    columns = max(len(row) for row in rows)
    residual = result.diagnostics.get("residual")
    extra = 1 if residual is not None else 0
    figure, axes = plt.subplots(
        len(rows) + extra,
        columns,
        figsize=(2.3 * columns, 2.55 * len(rows) + 2.3 * extra),
        squeeze=False,
        gridspec_kw={"height_ratios": [1.0] * len(rows) + [0.8] * extra},
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for line, row in zip(axes, rows, strict=False):
        for axis, (title, image, window, colours) in zip(line, row, strict=False):
            shown = axis.imshow(image, cmap=colours, vmin=window[0], vmax=window[1], interpolation="nearest")
            axis.set_title(title, fontsize=8)
            if colours != "gray":
                figure.colorbar(shown, ax=axis, fraction=0.046, pad=0.02).ax.tick_params(labelsize=6)
    if residual is not None:
        grid = axes[-1, 0].get_gridspec()
        axis = figure.add_subplot(grid[-1, :])
        for item in items:
            curve = np.nanmean(np.asarray(residual[item], dtype=float).reshape(-1, residual.shape[-1]), 0)
            steps = np.arange(1, len(curve) + 1)
            known = np.isfinite(curve)
            axis.plot(steps[known], curve[known], marker="o" if known.sum() == 1 else "", label=f"item {item}")
        axis.axhline(1.0, color="0.4", linewidth=0.8, linestyle="--")
        axis.set_yscale("log")
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylabel("residual / expected", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()


def _pictures(result: Any, reference: Any, item: int) -> list[tuple[str, np.ndarray, tuple[float, float], str]]:
    """Title, image, grey window and colours of each picture of an item; of a volume those of its middle slice."""
    mean, std, samples = (getattr(result, n)[item : item + 1][0] for n in ("mean", "std", "samples"))
    target = reference[item : item + 1][0] if reference is not None else None
    linear = result.linear[item : item + 1][0] if result.linear is not None else None
    basis = metrics.magnitude(_flat(target if target is not None else mean))
    window = (float(np.quantile(basis, 0.001)), float(np.quantile(basis, 0.999)))
    span = metrics.data_range(reference) if reference is not None else window[1] - window[0]
    panels: list[tuple[str, np.ndarray, tuple[float, float], str]] = []

    def grey(title: str, image: Tensor) -> None:
        panels.append((title, metrics.magnitude(_flat(image)).numpy(), window, "gray"))

    def quality(image: Tensor) -> str:
        return "" if target is None else f"\n{metrics.psnr(*metrics.comparable(image, target), span):.1f} dB"

    if target is not None:
        grey(f"item {item}: truth", target)
    if linear is not None:
        grey(f"linear{quality(linear)}", linear)
    grey(f"mean of {len(samples)}{quality(mean)}", mean)
    if len(samples) > 1:
        spread = metrics.magnitude(_flat(std)).numpy()
        panels.append(("standard deviation", spread, (0.0, float(np.quantile(spread, 0.999)) or 1.0), "magma"))
        for k in range(min(len(samples), 2)):
            grey(f"sample {k}{quality(samples[k])}", samples[k])
    if target is not None:
        a, b = (_flat(image) for image in metrics.comparable(mean, target))
        error = ((a - b)[0] if b.is_complex() else metrics.magnitude(a) - metrics.magnitude(b)).abs().numpy()
        panels.append(("|mean - truth|", error, (0.0, float(np.quantile(error, 0.999)) or 1.0), "magma"))
    return panels


def _flat(image: Tensor) -> Tensor:
    """An image (C, *spatial) as (C, rows, columns): the middle slices of what is deeper, one row of a signal."""
    while image.ndim > 3:
        image = image[:, image.shape[1] // 2]
    return image if image.ndim == 3 else image[:, None]


def sheet(rows: Sequence[tuple[str, Sequence[tuple[str, Tensor]]]], window: tuple[float, float], path: Path) -> None:
    """Write a plain sheet of grey pictures: rows of (label, [(title, image (C, rows, columns)), ...])."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = max(len(pictures) for _, pictures in rows)
    size = (2.2 * columns, 2.5 * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for line, (label, pictures) in zip(axes, rows, strict=True):
        for k, (axis, (title, image)) in enumerate(zip(line, pictures, strict=False)):
            low, high = window if "std" not in title else (0.0, float(image.quantile(0.999)))
            grey = metrics.magnitude(torch.as_tensor(image)).numpy()
            axis.imshow(grey, cmap="gray" if "std" not in title else "magma", vmin=low, vmax=high)
            axis.set_title(f"{label}\n{title}" if k == 0 else f"\n{title}", fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
