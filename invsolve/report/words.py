"""What a page says in words, and its table of metrics; untrusted text is escaped where it becomes HTML."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from invsolve.api import closing
from invsolve.api.choice import strategies
from invsolve.api.provenance import scatters_like_posterior
from invsolve.api.trust import HEADINGS
from invsolve.errors import printable
from invsolve.jobs.origin import Measured
from invsolve.jobs.trust import Judgement
from invsolve.report.collect import Scores
from invsolve.report.frames import Frames
from invsolve.report.record import judged, strategy_of

_HEADINGS = {"psnr": "PSNR dB", "ssim": "SSIM", "nrmse": "NRMSE"}
_HEADINGS |= {"coverage_50": "truth in 50 % interval", "coverage_90": "truth in 90 % interval"}


def escaped(text: str) -> str:
    """Text as it may stand in a page: names from files could close an element, turn the line around or fill the screen."""
    return html.escape(printable(text))


def paragraphs(lines: Sequence[str]) -> str:
    """Lines as HTML paragraphs, the empty ones left out."""
    return "".join(f"<p>{escaped(line)}</p>" for line in lines if line)


def subtitle(frames: Frames) -> str:
    """Items, size, unit, samples, strategy and prior in one line."""
    config, result = frames.result.config, frames.result
    count = len(frames.rows)
    shape = " × ".join(str(s) for s in result.mean.shape[2:])
    parts = [f"{count} item{'s' * (count != 1)} of {shape}", result.unit]
    if frames.channels > 1:
        parts.append("magnitude of complex values" if frames.channels == 2 else f"mean of {frames.channels} channels")
    strategy, prior = ((config.get(k) or {}).get("name") for k in ("strategy", "prior"))
    parts += [str(strategy or ""), f"prior {prior}" if prior else "no prior"]
    parts.append(f"{frames.samples} sample{'s' * (frames.samples != 1)} per item")
    return " · ".join(part for part in parts if part)


def warnings(result: Any) -> list[str]:
    """What a reader must know before she looks at a picture."""
    sentences = []
    if not result.complete:
        sentences.append(
            f"This result is not finished: {len(result.items)} items are done. The same command goes on with the others."
        )
    judgement = judged(result.diagnostics, result.config)
    if judgement is not None and judgement.warning:
        sentences.append(_sentence(judgement.warning))
    return sentences


def uncertainty(frames: Frames) -> list[str]:
    """What the standard deviation is worth."""
    count, config = frames.samples, frames.result.config
    if not scatters_like_posterior(config):
        return [
            f"{config['strategy']['name']} finds one image and does not draw from the posterior: how its repetitions scatter is "
            f"no posterior uncertainty. A strategy that draws, such as {strategies(lambda cls: cls.draws)[0]}, gives one."
        ]
    if count < 2:
        return ["There is one sample per item, so no uncertainty is known and none is shown. --samples 8 gives one."]
    return [
        f"The standard deviation is that of {count} samples, and itself uncertain by about "
        f"{100 / math.sqrt(2 * (count - 1)):.0f} % in each pixel. It knows what the prior and the stated noise leave open; "
        "it does not know whether prior, operator and noise fit the instrument."
    ]


def discrepancy(result: Any, measured: Measured) -> list[str]:
    """Whether the samples fit the data, and why there is no residual picture."""
    judgement = judged(result.diagnostics, result.config)
    # Its advice stands at the top of the page.
    lines = [] if judgement is None else [_sentence(str(dataclasses.replace(judgement, warning="")))]
    strategy = strategy_of(result.config)
    remarks = [] if strategy is None else closing.remarks(result.diagnostics, strategy)
    return [*lines, *map(_sentence, remarks), measured.why]


def trust(judgement: Judgement) -> str:
    """Whether the samples are to be trusted without a truth: the section of the page."""
    found = judgement.trust
    if found is None:
        return f"<section><h2>Without a truth</h2><p>{escaped(judgement.why)}</p></section>\n"
    rows = "".join(
        _line(text, ["–" if v is None else f"{v:.3g}"])
        for name, text in HEADINGS.items()
        for v in [found.record()[name]]
    )
    kind = "" if found.verdict == "fine" else ' class="warning"'
    return (
        f'<section id="trust"><h2>Without a truth: {escaped(found.verdict)}</h2><p{kind}>{escaped(_sentence(found.text))}</p>'
        f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'
        f"<p>{found.samples} samples of {found.items} item{'s' * (found.items != 1)}, held against prior and likelihood by the "
        "score. It does not know whether prior, operator and noise fit the instrument.</p></section>\n"
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def table(scores: Scores, what: str) -> str:
    """Metrics over all frames, of the mean (or what it is called) and of the linear baseline, and room for those of one."""
    if not scores.rows:
        return ""
    names = list(scores.rows[0])
    columns = {n: np.array([row[n] for row in scores.rows], dtype=float) for n in names}
    lines = [(f"{what}, average over slices", {n: float(np.mean(v)) for n, v in columns.items()})]
    if len(scores.rows) > 1:
        lines.append((f"{what}, lowest", {n: float(v.min()) for n, v in columns.items()}))
        lines.append((f"{what}, highest", {n: float(v.max()) for n, v in columns.items()}))
    if scores.linear:
        known = [n for n in names if n in scores.linear[0]]
        lines.append(("linear baseline, average", {n: float(np.mean([r[n] for r in scores.linear])) for n in known}))
    head = "".join(f"<th>{escaped(_HEADINGS.get(n, n))}</th>" for n in names)
    body = "".join(_line(label, [_figure(n, values.get(n)) for n in names]) for label, values in lines)
    now = "".join(f'<td id="now-{escaped(n)}"></td>' for n in names)
    return (
        f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}"
        f'<tr class="now"><th>{what}, this slice</th>{now}</tr></tbody></table>'
    )


def _line(label: str, cells: Sequence[str]) -> str:
    return f"<tr><th>{escaped(label)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _figure(name: str, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.2f}" if name == "psnr" else f"{value:.3f}"
