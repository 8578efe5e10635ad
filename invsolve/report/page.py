"""One page about a result, complete in itself: written as the result is read, frame by frame."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from invsolve.api.provenance import scatters_like_posterior
from invsolve.contracts.measurement import Rows
from invsolve.errors import UserError
from invsolve.jobs.origin import Measured
from invsolve.jobs.trust import Judgement
from invsolve.report import words
from invsolve.report.budget import Plan, Sizes, describe, ladder
from invsolve.report.collect import LEVELS, Scores, residual_by_step
from invsolve.report.encode import block, encode, short, to_json
from invsolve.report.frames import Frame, Frames
from invsolve.report.record import facts
from invsolve.report.residual import Residual, standardised

#: Largest size of a page unless another is asked for.
MEGABYTES = 20.0
#: Frames that are looked at before it is decided what to keep.
_PROBES = 6
_SCRIPTS = ("decode.js", "charts.js", "pictures.js", "page.js")


def write_page(
    out: Path,
    result: Any,
    reference: Rows | None,
    rows: Sequence[int],
    measured: Measured,
    megabytes: float,
    judgement: Judgement | None = None,
) -> None:
    """Write the page.

    Args:
        out: the file.
        result: a `ResultView`.
        reference: truth, row by row as in the result.
        rows: which of the result's rows.
        measured: the scan, for the residual.
        megabytes: largest size, in 10^6 bytes.
        judgement: of the samples without a truth; None leaves it out.

    Raises:
        UserError: the page cannot be made so small.
    """
    frames = Frames(result, reference, rows)
    probes = list(frames.read(sorted({round(k) for k in np.linspace(0, len(frames) - 1, min(_PROBES, len(frames)))})))
    look = _Look(probes, frames.samples)
    residual, measured = _try_residual(measured, probes[0], result)
    sizes = Sizes(probes, 0 if residual is None else len(encode(residual.picture, residual.step)[2]))
    scores = Scores(reference, scatters_like_posterior(result.config))
    allowed = megabytes * 1e6
    shown = frames.samples if frames.samples > 1 else 0
    plans = list(ladder(shown, frames.size, len(frames), look.steps))
    for plan in plans:
        # Metrics of each frame and the text around the pictures take some room, too.
        expected = sizes.frame(plan) * len(plan.kept(len(frames))) + 400 * len(frames) + 150_000
        if expected > allowed and plan is not plans[-1]:
            continue
        with tempfile.TemporaryFile("w+", encoding="utf-8", dir=out.parent) as blocks:
            _write_blocks(blocks, frames, plan, scores, measured)
            meta = _meta(frames, plan, look, scores)
            before, after = _around(frames, plan, scores, measured, meta, megabytes, judgement)
            size = blocks.tell() + len(before.encode()) + len(after.encode())
            if size <= allowed:
                _join(out, before, blocks, after)
                return
    least = math.ceil(size / 1e5) / 10
    raise UserError(
        f"a page on {len(frames)} slices does not fit into {megabytes:g} MB: give --megabytes {least:g}, or some --item"
    )


class _Look:
    """How pictures are shown and rounded, from a few frames: windows, and three steps from fine to coarse."""

    def __init__(self, probes: Sequence[Frame], samples: int) -> None:
        pictures = [frame.pictures(()) for frame in probes]
        values = np.concatenate([p[n].ravel() for p in pictures for n in ("mean", "truth") if n in p])
        values = values[np.isfinite(values)]
        self.full = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
        if self.full[0] == self.full[1]:
            self.full = (self.full[0] - 0.5, self.full[1] + 0.5)
        low, high = np.quantile(values, (0.002, 0.998)) if values.size else self.full
        self.auto = (float(low), float(high)) if high > low else self.full
        span = self.auto[1] - self.auto[0]
        deviations = np.concatenate([p["std"].ravel() for p in pictures]) if samples > 1 else np.zeros(1)
        errors = [np.abs(p["mean"] - p["truth"]).ravel() for p in pictures if "truth" in p]
        spread = float(np.quantile(deviations, 0.995))
        self.spread = spread or (float(np.quantile(np.concatenate(errors), 0.995)) if errors else 0.0) or span / 10
        # Rounding to a fraction of the uncertainty adds next to nothing to it: step / sqrt(12).
        typical = float(np.sqrt(np.mean(np.square(deviations, dtype=np.float64)))) or span / 128
        fine = span / 4096
        middle = min(max(fine, typical / 8), span / 256)
        self.steps = (fine, middle, min(max(middle, typical / 4), span / 128))


def _try_residual(measured: Measured, probe: Frame, result: Any) -> tuple[Residual | None, Measured]:
    """The residual of one frame, to know its size; and the scan without a measurement where that fails."""
    if measured.measurement is None:
        return None, measured
    if len(result.mean.shape) > 4:
        return None, Measured(None, why="Residuals are drawn of images with one or two spatial axes.")
    try:
        return _residual(measured, probe, result), measured
    except (UserError, RuntimeError, ValueError) as error:
        return None, Measured(None, why=f"A(mean) could not be computed: {' '.join(str(error).split())}")


def _residual(measured: Measured, frame: Frame, result: Any) -> Residual:
    return standardised(measured, frame.mean.reshape(result.mean.shape[1:]), result.items[frame.row])


def _write_blocks(target: IO[str], frames: Frames, plan: Plan, scores: Scores, measured: Measured) -> None:
    """Write the data block of each kept frame, and score all of them, kept or not, unless that is done already."""
    kept = plan.kept(len(frames))
    scored = len(scores.deviations) == len(frames)
    wanted = list(kept) if scored else list(range(len(frames)))
    bar = tqdm(frames.read(wanted), total=len(wanted), unit="slice", desc="report", disable=None, leave=False)
    for number, frame in zip(wanted, bar, strict=True):
        if not scored:
            scores.add(frame)
        if number not in kept:
            continue
        position = kept.index(number)
        pictures = frame.pictures(plan.samples_at(position))
        layers = {name: (picture, *plan.reduction(name)) for name, picture in pictures.items()}
        more: dict[str, Any] = {"steps": residual_by_step(frames.result, frame.row)}
        if measured.measurement is not None:
            rest = _residual(measured, frame, frames.result)
            layers["residual"] = (rest.picture, 1, rest.step)
            more["residual"] = {"signed": rest.signed, "relative": rest.relative, "reach": rest.reach}
        target.write(f'<script type="text/plain" id="frame-{position}">{block(layers, more)}</script>\n')


def _meta(frames: Frames, plan: Plan, look: _Look, scores: Scores) -> dict[str, Any]:
    """What the page's script is told."""
    kept, result = plan.kept(len(frames)), frames.result
    names = list(scores.rows[0]) if scores.rows else []
    places = [frames.places[k] for k in kept]
    ratio, numbers = (result.diagnostics.get(n) for n in ("discrepancy", "discrepancy_dof"))
    known = ratio is not None and numbers is not None
    return {
        "unit": result.unit,
        "size": frames.size,
        "depth": frames.depth,
        "samples": frames.samples,
        "items": [result.items[row] for row, _ in places],
        "slices": [z for _, z in places],
        "sampleFrames": [k for k in range(len(kept)) if frames.samples > 1 and plan.samples_at(k)],
        "step": plan.step,
        "window": {"auto": look.auto, "full": look.full},
        "spread": look.spread,
        "deviations": short(np.array([scores.deviations[k] for k in kept])) if frames.samples > 1 else [],
        "metrics": {
            "names": names,
            "rows": [[scores.rows[k][n] for n in names] for k in kept] if names else [],
            "linear": [[scores.linear[k].get(n) for n in names] for k in kept] if scores.linear else [],
        },
        "coverage": {
            "levels": LEVELS,
            "all": scores.coverage(),
            "rows": [[round(v, 4) for v in scores.covered[k]] for k in kept] if scores.covered else [],
        },
        "discrepancy": [float(np.sqrt(np.mean(np.square(ratio[row])))) for row, _ in places] if known else [],
        "discrepancySpread": [float(1 / np.sqrt(2 * numbers[row].mean())) for row, _ in places] if known else [],
    }


def _around(
    frames: Frames,
    plan: Plan,
    scores: Scores,
    measured: Measured,
    meta: dict[str, Any],
    megabytes: float,
    judgement: Judgement | None,
) -> tuple[str, str]:
    """The page before and after its data blocks."""
    folder = resources.files("invsolve.report")
    style = folder.joinpath("page.css").read_text(encoding="utf-8")
    code = "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f"(() => {{\n'use strict';\n{code}}})();\n"
    result, config = frames.result, frames.result.config
    kept = frames.samples if frames.samples > 1 else 0
    reduced = describe(plan, kept, len(frames), frames.size, result.unit, megabytes)
    parts = {
        "policy": f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}",
        "style": style,
        "title": words.escaped(result.path.name),
        "subtitle": words.escaped(words.subtitle(frames)),
        "warnings": "".join(f'<p class="warning">{words.escaped(line)}</p>' for line in words.warnings(result)),
        "metrics": words.table(scores, "mean" if frames.samples > 1 else "reconstruction")
        or "<p>The truth is not known: <code>invsolve report --truth IMAGES.h5</code> adds it.</p>",
        "uncertainty": words.paragraphs(words.uncertainty(frames)),
        "discrepancy": words.paragraphs(words.discrepancy(result, measured)),
        "trust": "" if judgement is None else words.trust(judgement),
        "note": ' <a href="#about">The pictures are reduced.</a>' if len(reduced) > 1 else "",
        "reduced": words.paragraphs(reduced),
        "facts": "".join(f"<dt>{words.escaped(k)}</dt><dd>{words.escaped(v)}</dd>" for k, v in facts(result)),
        "record": words.escaped(json.dumps(config, indent=2)),
        "meta": to_json(meta),
        "script": script,
    }
    template = folder.joinpath("page.html").read_text(encoding="utf-8")
    # In one pass, so that nothing that is filled in is looked through for names.
    before, after = (
        re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], half) for half in template.split("{{frames}}\n")
    )
    # Names of files may hold bytes that are no text; they are shown as \udc.. then.
    before, after = (half.encode(errors="backslashreplace").decode() for half in (before, after))
    return before, after


def _hash(text: str) -> str:
    """The name of a text in a content security policy: nothing but this text may run, or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _join(out: Path, before: str, blocks: IO[str], after: str) -> None:
    blocks.seek(0)
    with out.open("w", encoding="utf-8", newline="\n") as page:
        page.write(before)
        while part := blocks.read(1 << 20):
            page.write(part)
        page.write(after)
