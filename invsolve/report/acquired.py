"""The picture of an acquisition: mask, worth of each group, reconstruction, uncertainty and error over time."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from invsolve.acquisition.record import FORMAT, Moment, read_history
from invsolve.api import metrics
from invsolve.datasets import hdf5
from invsolve.errors import UserError, printable

#: Pixels of a panel's side, of the strip of scores, of margins and of a line of text.
_SIDE, _STRIP, _GAP, _LINE = 192, 56, 8, 14
#: Rows of a still picture.
_ROWS = 5
#: Entries of a picture of the mask, and groups, that no measurement has more of.
_LARGEST = 2**26
_DARK, _NEW = (24, 26, 38), (255, 214, 90)


@dataclass(frozen=True)
class Story:
    """A session, moment by moment.

    Attributes:
        sequence: groups in the order in which they were told.
        index: group of each entry of a measurement's last two axes.
        moments: those at which there was an image.
        truth: (rows, columns), where it is known.
        policy: what chose.
    """

    sequence: list[int]
    index: np.ndarray
    moments: list[Moment]
    truth: Tensor | None
    policy: str

    def mask(self, told: int) -> np.ndarray:
        """(rows, columns, 3) uint8: what was measured, the older the bluer."""
        # Of several coils or frames not all groups are in the one that is shown.
        age = np.full(max(int(self.index.max(initial=0)), *self.sequence, 0) + 2, -1)
        for place, group in enumerate(self.sequence[:told]):
            age[group] = place
        order = age[self.index]
        part = ((order + 1) / max(told, 1))[..., None]
        seen = (1 - part) * np.array((70, 110, 190)) + part * np.array(_NEW)
        return np.where(order[..., None] >= 0, seen, np.array(_DARK)).astype(np.uint8)


def is_session(path: Path) -> bool:
    """Whether a file is a session of `invsolve acquire`."""
    try:
        with hdf5.open_readonly(path) as file:
            return hdf5.text(file.attrs.get("format", "")) == FORMAT
    except UserError:
        return False


def read_story(path: Path, truth: Tensor | None = None) -> Story:
    """Read a session file.

    Args:
        path: of the session.
        truth: (C, *spatial), for the errors.

    Raises:
        UserError: nothing was told yet, no image was ever drawn, or the file is damaged.
    """
    with hdf5.open_readonly(path) as file:
        order, y, places = (hdf5.dataset(file, name) for name in ("sequence", "y", "group_index"))
        if order.ndim != 1 or order.dtype.kind not in "iu" or places.dtype.kind not in "iu" or order.size > y.size:
            raise _damaged(path)
        sequence = [int(g) for g in hdf5.read(order)]
        groups = hdf5.read(places)
        index = _last_axes(groups, y.shape, path)
        moments = read_history(file)
        policy = _policy(hdf5.text(file.attrs.get("settings", "{}")))
    if not moments:
        raise UserError(
            f"{path}: no image was drawn yet; run the acquisition to its end, or take a policy with particles"
        )
    fits = groups.min() >= -1 and groups.max() < _LARGEST and all(0 <= g <= groups.max() for g in sequence)
    if not fits or not all(_fits(moment, moments[0], len(sequence)) for moment in moments):
        raise _damaged(path)
    shown = None if truth is None else _shown(truth)
    return Story(sequence, index, moments, shown, policy)


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: its datasets do not fit one another; go on with a copy of the session, or begin another")


def _last_axes(places: np.ndarray, shape: tuple[int, ...], path: Path) -> np.ndarray:
    """The group of each entry of a measurement's last two axes: of its first coil or frame, where there are several.

    Only sizes that the file itself holds are made, whatever it says of others.
    """
    try:
        index = np.broadcast_to(places, shape)
    except ValueError:
        raise _damaged(path) from None
    flat = index[(0,) * (index.ndim - 2)] if index.ndim > 1 else index[None]
    if not 0 < flat.size <= _LARGEST:
        raise _damaged(path)
    return flat


def _policy(settings: str) -> str:
    """Name of the policy; empty where the settings do not tell."""
    try:
        known = json.loads(settings)
    except (ValueError, RecursionError):
        return ""
    policy = known.get("policy") if isinstance(known, dict) else None
    return str(policy.get("name", "")) if isinstance(policy, dict) else ""


def _fits(moment: Moment, first: Moment, told: int) -> bool:
    """Whether a moment is of so many groups at most, and its images are real pictures or volumes like the first one's."""
    image = first.mean
    alike = moment.mean.shape == moment.std.shape == image.shape and image.ndim >= 3 and image.numel() > 0
    return alike and 0 <= moment.told <= told and moment.scores.ndim == 1 and bool(moment.mean.isfinite().all())


def _shown(image: Tensor) -> Tensor:
    """One picture of an image (C, *spatial): complex as its modulus, of a volume the middle slice."""
    real = image.abs() if image.is_complex() else image
    while real.dim() > 3:
        real = real[:, real.shape[1] // 2]
    return metrics.magnitude(real if real.dim() == 3 else real[:, None]).float()


def _panel(values: np.ndarray, low: float, high: float) -> Image.Image:
    part = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return _sized(np.repeat((255 * part).astype(np.uint8)[..., None], 3, -1))


def _sized(colours: np.ndarray) -> Image.Image:
    return Image.fromarray(colours).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)


def _bars(story: Story, moment: Moment, width: int, top: float) -> Image.Image:
    """The worth of each group as bars; grey where it was measured, yellow where it is measured next."""
    picture = Image.new("RGB", (width, _STRIP), (250, 250, 250))
    scores = moment.scores.numpy()
    if not len(scores) or not np.isfinite(scores).any() or top <= 0:
        return picture
    draw = ImageDraw.Draw(picture)
    told = set(story.sequence[: moment.told])
    following = story.sequence[moment.told : min((m.told for m in story.moments if m.told > moment.told), default=None)]
    for group, score in enumerate(scores):
        left, right = (
            group * width // len(scores),
            max((group + 1) * width // len(scores) - 1, group * width // len(scores)),
        )
        height = round(_STRIP * min(max(float(score) / top, 0), 1)) if np.isfinite(score) else 0
        colour = _NEW if group in following else (170, 176, 190) if group in told else (70, 110, 190)
        draw.rectangle((left, _STRIP - height, right, _STRIP), fill=colour)
    return picture


def frames(story: Story) -> list[Image.Image]:
    """One picture of each moment: mask, mean, standard deviation, error where the truth is known, and scores below."""
    means, stds = ([_shown(getattr(m, name)) for m in story.moments] for name in ("mean", "std"))
    reference = story.truth if story.truth is not None else means[-1]
    low, high = float(reference.min()), float(reference.max())
    spread = float(max(std.max() for std in stds)) or 1.0
    finite = [float(m.scores[m.scores.isfinite()].max()) for m in story.moments if bool(m.scores.isfinite().any())]
    pictures = []
    for moment, mean, std in zip(story.moments, means, stds, strict=True):
        texts = [f"{moment.told} groups", "mean", f"sd, rms {float(std.square().mean().sqrt()):.3g}"]
        panels = [_sized(story.mask(moment.told)), _panel(mean.numpy(), low, high), _panel(std.numpy(), 0, spread)]
        if story.truth is not None:
            error = (mean - story.truth).abs()
            texts.append(f"error, rms {float(error.square().mean().sqrt()):.3g}")
            panels.append(_panel(error.numpy(), 0, spread * 2))
        width = len(panels) * (_SIDE + _GAP) + _GAP
        whole = Image.new("RGB", (width, _LINE + _SIDE + _STRIP + 3 * _GAP + _LINE), (250, 250, 250))
        draw = ImageDraw.Draw(whole)
        for place, (text, panel) in enumerate(zip(texts, panels, strict=True)):
            left = _GAP + place * (_SIDE + _GAP)
            draw.text((left, 2), text, fill=(30, 30, 30))
            whole.paste(panel, (left, _LINE + _GAP // 2))
        draw.text(
            (_GAP, _LINE + _SIDE + _GAP), f"worth of each group, policy {printable(story.policy)}", fill=(30, 30, 30)
        )
        bars = _bars(story, moment, width - 2 * _GAP, max(finite, default=0.0))
        whole.paste(bars, (_GAP, _LINE * 2 + _SIDE + _GAP))
        pictures.append(whole)
    return pictures


def write_story(story: Story, out: Path, name: str) -> None:
    """Write a still picture (.png), an animated one (.apng) or a page with a slider (.html).

    Args:
        story: what is shown.
        out: the file.
        name: the title, any text.
    """
    pictures = frames(story)
    if out.suffix == ".html":
        out.write_text(_page(story, pictures, name), encoding="utf-8")
    elif out.suffix == ".apng":
        pictures[0].save(out, "PNG", save_all=True, append_images=pictures[1:], duration=400, loop=0)
    else:
        chosen = [
            pictures[k]
            for k in sorted({round(k) for k in np.linspace(0, len(pictures) - 1, min(_ROWS, len(pictures)))})
        ]
        whole = Image.new("RGB", (chosen[0].width, sum(p.height for p in chosen)), (250, 250, 250))
        for place, picture in enumerate(chosen):
            whole.paste(picture, (0, place * picture.height))
        whole.save(out, "PNG")


def _page(story: Story, pictures: list[Image.Image], name: str) -> str:
    def encoded(picture: Image.Image) -> str:
        stream = io.BytesIO()
        picture.save(stream, "PNG", optimize=True)
        return base64.b64encode(stream.getvalue()).decode()

    here = resources.files("invsolve.report")
    script, style = (here.joinpath(f"acquired.{end}").read_text(encoding="utf-8") for end in ("js", "css"))
    data: Any = {
        "frames": [encoded(picture) for picture in pictures],
        "told": [moment.told for moment in story.moments],
        "groups": [story.sequence[: moment.told][-8:] for moment in story.moments],
    }
    # In a script element only "<" can end it, and it is not needed in JSON.
    text = json.dumps(data).replace("<", "\\u003c")
    by_script, by_style = (
        base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in (script, style)
    )
    policy = f"default-src 'none'; img-src data:; script-src 'sha256-{by_script}'; style-src 'sha256-{by_style}'"
    title = html.escape(printable(name))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"<p>Acquired by the policy {html.escape(printable(story.policy))}: {len(story.sequence)} groups. In the mask the newest "
        "is yellow; of the bars the yellow ones are measured next, grey ones were measured.</p>\n"
        f'<p><label for="time">Time</label> <input id="time" type="range" min="0" max="{len(pictures) - 1}" value="0" step="1"> '
        '<output id="told" for="time"></output></p>\n<img id="frame" alt="mask, mean, standard deviation and error">\n'
        f'<script type="application/json" id="data">{text}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )
