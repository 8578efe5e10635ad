"""Scoring a result file against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invsolve.api import metrics
from invsolve.api.provenance import scatters_like_posterior
from invsolve.datasets import hdf5
from invsolve.errors import UserError
from invsolve.files.opening import open_images


def evaluate_file(recon: Path, truth: Path | None, data_range: float | None) -> dict[str, Any]:
    """Score a result against a truth file, or against the truth it carries; also its linear baseline if it has one."""
    result = hdf5.read_result(recon)
    reference = open_images(truth).x if truth is not None else result.truth
    if reference is None:
        raise UserError(f"{recon} carries no truth: give --truth IMAGES.h5")
    reference = result.matching(reference)
    # Two channels against one: a complex image and its magnitude, as scanners store it.
    magnitude = result.mean[0:1].shape[1] == 2 and reference[0:1].shape[1] == 1
    span = data_range or metrics.data_range(reference)
    uncertain = result.samples.shape[1] > 1 and not magnitude and scatters_like_posterior(result.config)
    rows: list[dict[str, float]] = []
    linear: list[dict[str, float]] = []
    for i in range(len(result.mean)):
        target, mean, std = reference[i : i + 1][0], result.mean[i : i + 1][0], result.std[i : i + 1][0]
        for name, image in (("truth", target), ("mean", mean), ("standard deviation", std)):
            if not bool(image.isfinite().all()):
                raise UserError(
                    f"{recon}: the {name} of item {result.items[i]} has NaN or infinite values; run it again"
                )
        spread = std if uncertain else None
        if magnitude:
            mean = mean.norm(dim=0, keepdim=True)
        rows.append(metrics.score(mean, target, span, spread, result.samples.shape[1]))
        if result.linear is not None:
            image = result.linear[i : i + 1][0]
            linear.append(metrics.score(image.norm(dim=0, keepdim=True) if magnitude else image, target, span))
    summary: dict[str, Any] = {"items": rows, "which": result.items, "mean": metrics.average(rows), "data_range": span}
    if linear:
        summary["linear"] = metrics.average(linear)
    return summary
