"""Scoring a result file against the truth, and where there is none, against its own prior and scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from invsolve.api import metrics
from invsolve.api.conformal import calibrate_intervals, covered, load_calibration
from invsolve.api.provenance import scatters_like_posterior
from invsolve.datasets import hdf5
from invsolve.errors import UserError
from invsolve.files.opening import open_images
from invsolve.jobs.origin import find_scan, open_scan
from invsolve.jobs.trust import judge_result


def evaluate_file(
    recon: Path,
    truth: Path | None,
    data_range: float | None,
    layout: str | None = None,
    read: Mapping[str, Any] | None = None,
    scan: Path | None = None,
    prior: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    calibration: Path | None = None,
) -> dict[str, Any]:
    """Score a result against a truth file, or against the truth it carries; also its linear baseline if it has one.

    Without a truth, or where a scan is named, the samples are held against prior and likelihood: `trust` has the verdict.

    Args:
        recon: result file.
        truth: images; None for the truth that the result carries.
        data_range: span of values for PSNR and SSIM; None for the truth's.
        layout, read: how the truth file is read (without a truth: the scan); None asks each layout.
        scan: the measurement; None looks where the result says it was.
        prior: name or file of the run's prior, where the record's is not found.
        say: told what is done.
        calibration: file of conformal factors, whose intervals are held against the truth.

    Raises:
        UserError: there is neither truth nor scan, or the truth is of another size; or a layout for the truth that the result
            carries.
    """
    result = hdf5.read_result(recon)
    if truth is None and result.truth is None:
        if calibration is not None:
            raise UserError(
                "--calibration needs the truth here: give --truth; reconstruct --calibration writes intervals"
            )
        return {"trust": _trust(recon, result, scan, prior, layout, read, say)}
    if truth is None and (layout is not None or read):
        raise UserError("--layout and --read say how the file of the truth is read: give --truth IMAGES too")
    carried = open_images(truth, layout, read).x if truth is not None else result.truth
    assert carried is not None
    reference = result.matching(carried)
    span = data_range or metrics.data_range(reference)
    factors = None if calibration is None else load_calibration(calibration)
    if factors is not None:
        factors.check(result.config)
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
        if factors is not None and target.shape == mean.shape:
            rows[-1] |= covered(factors.intervals(mean, std), target, factors.share)
        if result.linear is not None:
            linear.append(metrics.score(result.linear[i : i + 1][0], target, span))
    summary: dict[str, Any] = {"items": rows, "which": result.items, "mean": metrics.average(rows), "data_range": span}
    calls = [result.diagnostics.get(name) for name in ("network_calls", "vjp_calls", "seconds")]
    if all(call is not None for call in calls):
        network, products, seconds = (float(call.mean()) for call in calls if call is not None)
        summary["cost"] = {"evaluations": network + products, "seconds": seconds}
    if linear:
        summary["linear"] = metrics.average(linear)
    if scan is not None:
        summary["trust"] = _trust(recon, result, scan, prior, None, None, say)
    return summary


def calibrate_file(
    recon: Path,
    out: Path,
    truth: Path | None = None,
    level: float = 0.9,
    share: float = 0.9,
    overwrite: bool = False,
    layout: str | None = None,
    read: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make conformal factors from a result whose truth is known, and write them.

    Args:
        recon: result file; its items are the calibration set.
        out: the calibration file.
        truth, layout, read: as for `evaluate_file`.
        level, share: see `Calibrated`.
        overwrite: replace `out`.

    Raises:
        UserError: no truth, no uncertainty, or too few items.
    """
    result = hdf5.read_result(recon)
    carried = open_images(truth, layout, read).x if truth is not None else result.truth
    if carried is None:
        raise UserError(f"{recon} carries no truth: give --truth IMAGES.h5")
    reference = result.matching(carried)
    if result.samples.shape[1] < 2 or not scatters_like_posterior(result.config):
        raise UserError(f"{recon} has no uncertainty to calibrate: draw several samples by a strategy that draws")
    if reference[0:1].shape[1:] != result.mean[0:1].shape[1:]:
        raise UserError(f"{recon}: intervals of a complex image need a complex truth")
    rows = (
        (result.mean[i : i + 1][0], result.std[i : i + 1][0], reference[i : i + 1][0]) for i in range(len(result.mean))
    )
    factors = calibrate_intervals(rows, result.config, level, share)
    factors.save(out, overwrite)
    return {
        "path": str(out),
        "level": level,
        "share": share,
        "items": factors.items,
        "image": factors.image,
        "pixel": float(factors.pixel.median()),
    }


def _trust(
    recon: Path,
    result: Any,
    scan: Path | None,
    prior: str | None,
    layout: str | None,
    read: Mapping[str, Any] | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The verdict on samples without a truth, as JSON."""
    measured = find_scan(result, layout, read) if scan is None else open_scan(scan, result, layout, read)
    if measured.measurement is None:
        raise UserError(
            f"{recon} carries no truth, and its scan is not at hand: give --truth IMAGES.h5 or --scan SCAN.h5"
        )
    judgement = judge_result(result, measured, prior, say=say)
    if judgement.trust is None:
        return {"verdict": "not judged", "text": judgement.why}
    return {**judgement.trust.record(), "which": list(judgement.which)}
