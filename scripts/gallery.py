"""Draw the gallery: for every registered operator one picture of x, y, A'y, `linear` and `moment`, and a page around them.

    python scripts/gallery.py                      all of them, into docs/
    python scripts/gallery.py --only ct mri        some of them; the others' pictures stay
    python scripts/gallery.py --page               the page alone
    python scripts/gallery.py --small -o FOLDER    in seconds, at 32 x 32 with few steps

Images are those of --data, the folder of the reference data; without it, phantoms. An operator is drawn because it is registered,
--plugin FILE.py included; `gallery_scenes.py` has what it is drawn with.
"""

from __future__ import annotations

import argparse
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gallery_scenes import PRIORS, Scene, scene  # type: ignore[import-not-found]  # beside this script
from PIL import Image
from torch import Tensor

import invsolve
from invsolve import UserError, registry
from invsolve.api import metrics
from invsolve.errors import NonFinite

ROOT = Path(__file__).resolve().parents[1]
#: Rows and columns, steps and samples of `moment`: of the pictures in the docs, and of the test.
FULL, SMALL = (128, 16, 1), (32, 3, 1)
HEAD = """# Gallery of operators

For each operator, from left to right: the image x, the measurement y with Gaussian noise, A'y, and what `linear` and `moment`
make of it, with their peak signal-to-noise ratio. `moment` draws one sample with a bundled prior in 16 steps; its residual is 1
where it explains the data as well as the noise allows. Of operators that are flat over ranges of x (saturation, rounding), which
`moment` refuses, `dps-fitted` draws in 32. Where a strategy does not take an operator, the picture says why. Of
volumes the middle slice is shown, of complex images the modulus, of several coils or patterns four.

The page and its pictures are made by `python scripts/gallery.py`, from what is registered. The photograph is a Kodak test picture
that the prior `natural` has not seen, the CT slice is of a person (TCGA-LUAD) who was held out from training. The MR priors have
seen slices of the same head."""


@dataclass(frozen=True)
class Panel:
    """One part of a picture: an array to show, or a word on why there is none."""

    title: str
    array: np.ndarray | None
    window: tuple[float, float] = (0.0, 1.0)
    word: str = ""


def panels(drawn: Scene, steps: int, samples: int) -> list[Panel]:
    """The parts of an operator's picture, reconstructions with their PSNR."""
    x, operator = drawn.x, drawn.operator
    noise = invsolve.Gaussian(drawn.sigma)
    y = invsolve.simulate(x, operator, noise)
    window = (0.0, float(x[0].abs().quantile(0.999)))
    parts = [Panel(f"x: {drawn.shows}", still(x[0]), window), measurement(y[0], y.shape == x.shape)]
    if isinstance(operator, invsolve.LinearOperator):
        back = still(operator.adjoint(y)[0])
        parts.append(Panel("A'y", back, (min(0.0, float(back.min())), float(np.quantile(back, 0.999)))))
    else:
        parts.append(Panel("A'y", None, word="not linear"))
    _, scale = PRIORS[drawn.kind]
    sampler = drawn.sampler()
    for strategy, settings in (("linear", {}), (sampler, {"steps": steps if sampler == "moment" else 2 * steps})):
        count = 1 if strategy == "linear" else samples
        parts.append(reconstruction(drawn, y, strategy, settings, count, scale, window))
    return parts


def reconstruction(
    drawn: Scene,
    y: Tensor,
    strategy: str,
    settings: dict[str, Any],
    samples: int,
    scale: tuple[float, float],
    window: tuple[float, float],
) -> Panel:
    """What a strategy makes of the measurement, or why it does not take it."""
    noise = invsolve.Gaussian(drawn.sigma)
    try:
        with warnings.catch_warnings():
            # Few steps miss the noise level; the picture is of the operator.
            warnings.simplefilter("ignore")
            result = invsolve.reconstruct(
                invsolve.Measurement(y, drawn.operator, noise, image_shape=tuple(drawn.x.shape[1:])),
                prior=None if strategy == "linear" else PRIORS[drawn.kind][0],
                strategy=invsolve.strategy(strategy, **settings),
                samples=samples,
                scale=scale,
                progress=False,
            )
    except (UserError, NonFinite) as error:
        return Panel(strategy, None, word=refusal(str(error)))
    mean, truth = result.mean[0], drawn.x[0]
    if drawn.operator.complex_image:
        mean, truth = metrics.as_complex(mean).abs(), truth.abs()
    ratio = float(result.diagnostics["discrepancy"].mean())
    quality = metrics.psnr(mean, truth, float(truth.max() - truth.min()))
    of = f", mean of {samples}" if samples > 1 else ""
    explained = "" if strategy == "linear" else f", residual {ratio:.2g}"
    return Panel(f"{strategy}{of}: {quality:.1f} dB{explained}", still(mean), window)


def refusal(text: str) -> str:
    """The first half of an error's line, short enough for a panel."""
    words = re.split(r"[;:(]", text.partition("\n")[0])
    return (words[0] if len(words[0]) > 20 or len(words) == 1 else words[1]).strip()[:90]


def still(image: Tensor) -> np.ndarray:
    """An image (C, *spatial) as it is shown: its modulus, of a volume the middle slice, three channels as colours."""
    while image.ndim > 3:
        image = image[:, image.shape[1] // 2]
    if image.shape[0] == 3 and not image.is_complex():
        return image.movedim(0, -1).numpy()
    return image.abs().numpy()[0] if image.is_complex() else image.mean(0).numpy()


def measurement(y: Tensor, image_like: bool) -> Panel:
    """A measurement of any shape: as a curve, a picture, colours, or four of many pictures; on a log scale where it needs one.

    Args:
        y: without the batch axis.
        image_like: whether its axes are those of the image.
    """
    title = f"y: {' x '.join(map(str, y.shape))}"
    if image_like:
        picture = still(y)
        return Panel(title, picture, (float(np.quantile(picture, 0.001)), float(np.quantile(picture, 0.999))))
    values = (y.abs() if y.is_complex() else y).squeeze()
    while values.ndim > 3:
        values = values[len(values) // 2]
    array = (mosaic(values) if values.ndim == 3 else values).double().numpy()
    if array.ndim < 2 or array.shape[-1] > 12 * array.shape[0]:
        return Panel(title, array.reshape(-1, array.shape[-1])[0] if array.ndim else array, word="curve")
    known = array[np.isfinite(array)]
    bright, usual = float(abs(known).max()), float(np.median(abs(known[known != 0]))) if known.any() else 1.0
    if bright > 20 * usual and known.min() >= -0.01 * bright:
        return Panel(f"{title}, log", np.log10(np.maximum(array / bright, 1e-4)), (-4.0, 0.0))
    return Panel(title, array, (float(np.quantile(known, 0.001)), float(np.quantile(known, 0.999))))


def mosaic(pictures: Tensor) -> Tensor:
    """Four of many pictures (n, rows, columns), evenly apart, two by two, with nothing between them."""
    empty = pictures.new_full((max(4 - len(pictures), 0), *pictures.shape[1:]), float("nan"))
    chosen = pictures[np.linspace(0, len(pictures) - 1, min(4, len(pictures))).round().astype(int)]
    first, second, third, fourth = torch.cat([chosen, empty])
    gap = pictures.new_full((len(first), 1 + first.shape[1] // 40), float("nan"))
    rows = [torch.cat([left, gap, right], -1) for left, right in ((first, second), (third, fourth))]
    between = rows[0].new_full((gap.shape[1], rows[0].shape[1]), float("nan"))
    return torch.cat([rows[0], between, rows[1]], -2)


def draw(parts: Sequence[Panel], path: Path) -> None:
    """Write the parts side by side as WebP."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(parts), figsize=(2.0 * len(parts), 2.2), layout="constrained")
    for axis, part in zip(axes, parts, strict=True):
        axis.set_title(part.title, fontsize=7)
        if part.array is not None and part.word == "curve":
            axis.plot(part.array, linewidth=0.4, color="black")
            axis.set_box_aspect(1)
            axis.tick_params(labelsize=5)
            continue
        axis.set_axis_off()
        if part.array is None:
            axis.text(0.5, 0.5, part.word, ha="center", va="center", fontsize=6, wrap=True, transform=axis.transAxes)
            axis.set_box_aspect(1)
            continue
        shown = np.clip(part.array, 0, 1) if part.array.ndim == 3 else part.array
        # What is far from square, such as a sinogram of few angles, is stretched to be seen.
        aspect = "equal" if 0.5 <= shown.shape[0] / shown.shape[1] <= 2 else "auto"
        axis.imshow(
            shown, cmap="gray", vmin=part.window[0], vmax=part.window[1], interpolation="nearest", aspect=aspect
        )
        axis.set_box_aspect(1 if aspect == "auto" else None)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(buffer).convert("RGB").save(path, quality=82, method=6)


def formula(name: str) -> str:
    """y = ... as the operator's docstring states it, else its first sentence."""
    text = " ".join((registry.find("operator", name).__doc__ or "").split("Args:")[0].split())
    stated = re.search(r"\by(_\w+)?(\[[^\]]*\])? = .*?(?=\.\s|; |(?<! ): |, \* a |\.$)", text)
    return f"`{stated.group(0)}`" if stated else text.partition(". ")[0].rstrip(".") + "."


def page(names: Sequence[str], size: int) -> str:
    """The page of the operators that have a picture."""
    lines = [HEAD]
    for name in sorted(names):
        one = scene(name, size, None)
        sampler = one.sampler()
        lines += [
            "",
            f"## {name}",
            "",
            f"{formula(name)}",
            "",
            f"![{name}: x, y, A'y, linear, {sampler}](gallery/{name}.webp)",
            "",
            f"- `{one.call()}`",
            f"- `{one.measure()}`",
            f"- `{one.reconstruct()}`",
        ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-o", "--out", type=Path, default=ROOT / "docs", help="folder of the page; pictures go to gallery/"
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="reference data")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="operators to draw")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="a plugin file to load first")
    parser.add_argument("--small", action="store_true", help="32 x 32 pixels of phantoms, few steps")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    given = parser.parse_args(arguments)
    for file in given.plugin:
        registry.load_file(file)
    size, steps, samples = SMALL if given.small else FULL
    data = given.data if given.data.is_dir() and not given.small else None
    folder = given.out / "gallery"
    for name in [] if given.page else given.only or registry.available("operator"):
        drawn = scene(name, size, data)
        parts = panels(drawn, steps, samples)
        draw(parts, folder / f"{name}.webp")
        print(f"{name}: {'; '.join(part.title for part in parts)}", flush=True)
    pictured = [name for name in registry.available("operator") if (folder / f"{name}.webp").is_file()]
    (given.out / "gallery.md").write_text(page(pictured, size), encoding="utf-8")


if __name__ == "__main__":
    main()
