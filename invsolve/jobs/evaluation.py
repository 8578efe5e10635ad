"""Scoring a result file against the truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invsolve.api import metrics
from invsolve.api.provenance import scatters_like_posterior
from invsolve.datasets import hdf5
from invsolve.errors import UserError
from invsolve.files.opening import open_images


def evaluate_file(
    recon: Path,
    truth: Path | None,
    data_range: float | None,
    layout: str | None = None,
    read: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score a result against a truth file, or against the truth it carries; also its linear baseline if it has one.

    Args:
        recon: result file.
        truth: images; None for the truth that the result carries.
        data_range: span of values for PSNR and SSIM; None for the truth's.
        layout, read: how the truth file is read; None asks each layout.

    Raises:
        UserError: there is no truth, or it is of another size; or a layout for the truth that the result carries.
    """
    result = hdf5.read_result(recon)
    if truth is None and (layout is not None or read):
        raise UserError("--layout and --read say how the file of the truth is read: give --truth IMAGES too")
    carried = open_images(truth, layout, read).x if truth is not None else result.truth
    if carried is None:
        raise UserError(f"{recon} carries no truth: give --truth IMAGES.h5")
    reference = result.matching(carried)
    span = data_range or metrics.data_range(reference)
    count = result.samples.shape[1]
    uncertain = count > 1 and scatters_like_posterior(result.config)
    rows: list[dict[str, float]] = []
    linear: list[dict[str, float]] = []
    for i in range(len(result.mean)):
        target, mean, std = reference[i : i + 1][0], result.mean[i : i + 1][0], result.std[i : i + 1][0]
        for name, image in (("truth", target), ("mean", mean), ("standard deviation", std)):
            if not bool(image.isfinite().all()):
                raise UserError(
                    f"{recon}: the {name} of item {result.items[i]} has NaN or infinite values; run it again"
                )
        rows.append(metrics.score(mean, target, span, std if uncertain else None, count))
        if result.linear is not None:
            linear.append(metrics.score(result.linear[i : i + 1][0], target, span))
    summary: dict[str, Any] = {"items": rows, "which": result.items, "mean": metrics.average(rows), "data_range": span}
    if linear:
        summary["linear"] = metrics.average(linear)
    return summary
