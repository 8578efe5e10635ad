"""Reports about a result: a sheet of pictures (PNG), or one page that needs no network (HTML)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from invsolve.acquisition.listing import ENDINGS, read_listing
from invsolve.datasets import hdf5
from invsolve.errors import UserError
from invsolve.files.opening import open_images
from invsolve.jobs.origin import Measured, find_scan, open_scan
from invsolve.jobs.trust import judge_result
from invsolve.report.acquired import is_session, read_story, write_story
from invsolve.report.page import MEGABYTES, write_page
from invsolve.report.sheet import draw, sheet

#: Items that a page without a truth holds against prior and likelihood; `evaluate` looks at more.
_ITEMS = 2

__all__ = ["MEGABYTES", "sheet", "write_report"]


def write_report(
    recon: Path,
    out: Path,
    items: Sequence[int] | None = None,
    truth: Path | None = None,
    overwrite: bool = False,
    scan: Path | None = None,
    megabytes: float = MEGABYTES,
    layout: str | None = None,
    read: Mapping[str, Any] | None = None,
    truth_layout: str | None = None,
    truth_read: Mapping[str, Any] | None = None,
) -> None:
    """Write a sheet of pictures or a page about a result file; it appears under its name only when it is complete.

    A page without a truth says whether the samples are as draws from prior times likelihood are, where scan and prior are at
    hand; that takes some network calls.

    Args:
        recon: result file, finished or partial, or a session of `invsolve acquire`, of which the picture of the run is shown.
        out: ends in .png or .html; of a session of `invsolve acquire` also in .apng, an animated picture, or in .csv, .txt, .npy
            or .npz, the list of what was measured and the mask.
        items: which rows of the result to show; None for the first four on a sheet, for all on a page.
        truth: images x; None for the truth that the result carries, if any.
        overwrite: replace `out`.
        scan: the measurement, for the residual on a page; None looks where the result says it was.
        megabytes: largest size of a page, in 10^6 bytes.
        layout, read: how the scan is read, as for the run.
        truth_layout, truth_read: how the truth is read; None asks each layout.

    Raises:
        UserError: unknown ending, item out of range, `out` exists, the truth is of another size, there are options for one that
            is not given, or the page cannot be made so small.
    """
    session = is_session(recon)
    if session and out.suffix in ENDINGS:
        read_listing(recon).write(out, overwrite)
        return
    if out.suffix not in (".png", ".html", *[".apng"] * session):
        raise UserError(
            f"{out}: the name must end in .png or .html{' or .apng or ' * session}{' or '.join(ENDINGS * session)}"
        )
    hdf5.check_name(out)
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; give --overwrite to replace it")
    if session:
        _write_session(recon, out, None if truth is None else open_images(truth, truth_layout, truth_read).x)
        return
    result = hdf5.read_result(recon)
    if truth is None and (truth_layout is not None or truth_read):
        raise UserError(
            "--truth-layout and --truth-read say how the file of the truth is read: give --truth IMAGES too"
        )
    carried = open_images(truth, truth_layout, truth_read).x if truth is not None else result.truth
    reference = None if carried is None else result.matching(carried)
    count = len(result.mean)
    if any(not 0 <= i < count for i in items or ()):
        raise UserError(f"{recon} has items 0..{count - 1}, got {list(items or ())}")
    unfinished = out.with_name(f"{out.name}.partial")
    try:
        if out.suffix == ".png":
            unfinished.write_bytes(draw(result, reference, list(items or range(min(count, 4)))))
        else:
            measured = _scan(scan, result, layout, read)
            judgement = judge_result(result, measured, items=_ITEMS) if reference is None else None
            write_page(unfinished, result, reference, list(items or range(count)), measured, megabytes, judgement)
        os.replace(unfinished, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another folder") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _write_session(session: Path, out: Path, truth: Any) -> None:
    """The picture of a run; the truth is the given one, else that of the result beside the session."""
    result = session.with_name(session.name.removesuffix(".session.h5"))
    if truth is None and result != session and result.is_file():
        truth = hdf5.read_result(result).truth
    story = read_story(session, None if truth is None else torch.as_tensor(truth[0:1][0]))
    unfinished = out.with_name(f"{out.stem}.partial{out.suffix}")
    try:
        write_story(story, unfinished, session.name)
        os.replace(unfinished, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another folder") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _scan(path: Path | None, result: Any, layout: str | None, read: Mapping[str, Any] | None) -> Measured:
    return find_scan(result, layout, read) if path is None else open_scan(path, result, layout, read)
