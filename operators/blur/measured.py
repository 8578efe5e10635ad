"""Blur with a measured point-spread function: the picture of a star, a bead or a pinhole, made ready."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from invsolve.contracts.arguments import as_array
from invsolve.errors import UserError
from invsolve.operators.blur.uniform import Blur


def prepared(picture: Tensor, background: float, centre: str) -> Tensor:
    """A point-spread function from a picture of a point: no background, nothing negative, its centre in the middle, sum 1.

    Args:
        picture: (rows, columns), real.
        background: subtracted first.
        centre: what becomes the middle element (rows // 2, columns // 2): the picture's own "middle", its "peak" (the
            brightest pixel), or the pixel next to its centre of "mass".
    """
    light = (picture.double() - background).clamp_min(0)
    light = light / light.sum()
    if centre == "middle":
        return light.float()
    rows, columns = light.shape
    if centre == "peak":
        place = divmod(int(light.argmax()), columns)
    else:
        place = (
            round(float(light.sum(1) @ torch.arange(rows, dtype=torch.float64))),
            round(float(light.sum(0) @ torch.arange(columns, dtype=torch.float64))),
        )
    # Widened to both sides rather than cut, so that no light is lost.
    reach = [max(p, n - 1 - p) for p, n in zip(place, light.shape, strict=True)]
    wide = light.new_zeros(2 * reach[0] + 1, 2 * reach[1] + 1)
    top, left = reach[0] - place[0], reach[1] - place[1]
    wide[top : top + rows, left : left + columns] = light
    return wide.float()


class MeasuredBlur(Blur):
    """The image convolved with a measured point-spread function: the picture of a point, from a file.

    y = k * x with k the picture less its background, without what is negative then, centred, of sum 1; else as `blur`.

    Args:
        picture: of a point (rows, columns): an array, or the path of a .npy, .tif or .png file. A picture for each item is
            (items, rows, columns).
        background: of the picture, subtracted from it; by default the median along its edge.
        centre: what of the picture is the point's place: its middle, its brightest pixel or its centre of mass.
        boundary: what lies outside the image: its periodic repetition, its mirror image, or zeros.

    Raises:
        UserError: no picture of one channel, or no light in it above the background.
    """

    name = "measured-blur"
    advice = ""
    item_axes: ClassVar[Mapping[str, int]] = {"picture": 2}
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "picture": [[1.0, 1.0, 1.0, 1.0], [1.0, 5.0, 9.0, 1.0], [1.0, 2.0, 3.0, 1.0], [1.0, 1.0, 1.0, 1.0]],
            "centre": "peak",
        },
        {"picture": [[0.0, 0.3, 0.1], [0.2, 0.8, 0.1]], "background": 0.05, "boundary": "zero"},
    )

    def __init__(
        self,
        picture: Tensor,
        background: float | None = None,
        centre: Literal["middle", "peak", "mass"] = "middle",
        boundary: Literal["circular", "reflect", "zero"] = "circular",
    ) -> None:
        picture = as_array(picture, "operator 'measured-blur': picture")
        if picture.ndim != 2 or 0 in picture.shape or picture.is_complex():
            raise UserError(
                "operator 'measured-blur': picture must be real, (rows, columns), or with items in front by invsolve.operator, "
                f"got {picture.dtype} {tuple(picture.shape)}; give one channel of it"
            )
        if not bool(picture.isfinite().all()):
            raise UserError(
                "operator 'measured-blur': picture has NaN or infinite pixels; fill them with their neighbours"
            )
        if background is None:
            edge = torch.cat([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
            background = float(edge.double().median())
        if not float(picture.max()) > background:
            raise UserError(
                f"operator 'measured-blur': nothing in picture is brighter than the background, {background:g}; give background="
            )
        super().__init__(prepared(picture, background, centre), boundary=boundary)

    @classmethod
    def carries_items(cls, parameter: str, value: Tensor) -> bool:
        # Of a colour picture, the last axis has the colours; no point-spread function is that narrow.
        colours = parameter == "picture" and value.ndim == 3 and value.shape[-1] in (3, 4)
        return super().carries_items(parameter, value) and not colours
