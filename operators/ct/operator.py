"""Computed tomography: line integrals along the rays of any geometry, with their exact transpose."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from invsolve.contracts.arguments import as_array, by_parts, rows_and_columns
from invsolve.contracts.maskable import MaskableOperator
from invsolve.contracts.paper import Paper
from invsolve.errors import UserError
from invsolve.numerics.autograd import linear_map
from invsolve.numerics.krylov import CG
from invsolve.operators.ct.fbp import filtered_backprojection, missing_formula
from invsolve.operators.ct.filters import Window
from invsolve.operators.ct.geometry import Geometry
from invsolve.operators.ct.projectors.astra import AstraProjector
from invsolve.operators.ct.projectors.base import Projector
from invsolve.operators.ct.projectors.diffct import DiffctProjector
from invsolve.operators.ct.projectors.folded import FoldedProjector
from invsolve.operators.ct.projectors.fourier import FourierProjector
from invsolve.operators.ct.projectors.joseph import JosephProjector
from invsolve.operators.ct.projectors.joseph3d import Joseph3DProjector

PROJECTORS: dict[str, type[Projector]] = {
    cls.name: cls
    for cls in (
        FoldedProjector,
        JosephProjector,
        Joseph3DProjector,
        FourierProjector,
        AstraProjector,
        DiffctProjector,
    )
}


class CT(MaskableOperator):
    """Line integrals along parallel, fan and cone beams, any angles, detector and rotation centre; matched adjoint.

    y = line integrals of x, by Joseph's weights (1982); x (B, 1, rows, columns) and y (B, angles, detectors), or
    x (B, 1, slices, rows, columns) and y (B, angles, detector rows, detectors). y is in units of x times a length.

    Without a geometry, rays are parallel: x cos(angle) + y sin(angle) = s with x to the right, y up, the image centred on the
    rotation axis. Groups for active acquisition are the angles.

    Args:
        image_size: N for N x N pixels, or [rows, columns].
        angles: a count, equally spaced on [0, 180) degrees, or a list in degrees.
        detectors: detector pixels an angle; default covers the image's diagonal.
        detector_spacing: in the unit of pixel_size; default pixel_size.
        centre: detector index (0-based, may be fractional) onto which the rotation axis projects; default the middle,
            (detectors - 1) / 2.
        pixel_size: side of an image pixel, in a length unit of your choice.
        geometry: instead of all of these, an `invsolve.Geometry`, its arguments as a table, its text, or a file
            (.json, .toml, .xtekct).
        projector: how the integrals are computed: "folded" (a sparse matrix, 2-D), "joseph" (2-D, without a matrix),
            "joseph-3d" (volumes), "fourier" (parallel beams in 2-D: exact for smooth images, rings at edges), or by packages to
            install: "diffct" (exact lengths; its own kernels on CUDA) and "astra" (2-D, flat detectors; GPL). "auto" takes
            what is fastest of Joseph's in the memory that there is.

    Raises:
        UserError: a size, count or spacing that is not positive, fewer than one angle, or a projector that is not for the
            geometry or whose package is not installed.
    """

    name = "ct"
    paper = Paper(
        "An Improved Algorithm for Reprojecting Rays through Pixel Images",
        ("Peter M. Joseph",),
        1982,
        "doi:10.1109/TMI.1982.4307572",
    )
    closed_forms = "filtered back-projection, FDK"
    group_layout = "circle"
    advice = "--set angles=60"

    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"image_size": 12, "angles": 8},
        {"image_size": 11, "angles": [0.0, 17.0, 45.0, 90.0, 133.3], "detectors": 14, "centre": 5.8, "pixel_size": 0.5},
        {"image_size": 10, "angles": 6, "detector_spacing": 1.5, "detectors": 9},
        {"image_size": [7, 10], "angles": 5, "projector": "fourier", "centre": 5.3},
        {"image_size": [8, 13], "angles": [0.0, 21.0, 45.0, 90.0, 135.0, 159.0], "centre": 7.3},
        {"geometry": {"beam": "fan", "image_size": [9, 12], "angles": 7, "source_distance": 20.0, "centre": 6.2}},
        {
            "geometry": {"beam": "fan", "image_size": 10, "angles": 5, "source_distance": 20.0, "curved": True},
            "projector": "joseph",
        },
        {
            "geometry": {
                "beam": "cone",
                "image_size": [4, 6, 5],
                "angles": 5,
                "source_distance": 12.0,
                "row_centre": 3.1,
                "roll": 5.0,
            }
        },
    )

    def __init__(
        self,
        image_size: int | list[int] | None = None,
        angles: int | Tensor | None = None,
        detectors: int | None = None,
        detector_spacing: float | None = None,
        centre: float | None = None,
        pixel_size: float | None = None,
        geometry: Geometry | dict[str, Any] | str | None = None,
        projector: Literal["auto", "folded", "joseph", "joseph-3d", "fourier", "astra", "diffct"] = "auto",
    ) -> None:
        super().__init__()
        simple: dict[str, Any] = {"image_size": image_size, "angles": angles, "detectors": detectors}
        simple |= {"detector_spacing": detector_spacing, "centre": centre, "pixel_size": pixel_size}
        given = {key: value for key, value in simple.items() if value is not None}
        if geometry is None:
            self.geometry = _parallel(given)
        elif given:
            raise UserError(f"operator 'ct': geometry says it all, so leave out {', '.join(given)}")
        else:
            self.geometry = _geometry(geometry)
        self.image_shape = (1, *self.geometry.image_size)
        if self.geometry.unit:
            self.image_unit = f"1/{self.geometry.unit}"
        ones = [1] * (len(self.geometry.measurement_shape) - 1)
        self.group_index = torch.arange(len(self.geometry.angles)).view(-1, *ones)
        self.projector = make_projector(self.geometry, projector)

    def group_coordinates(self) -> dict[str, Tensor]:
        """ "angle" of each view in degrees; of views that are placed by vectors, and have none, their number, "view"."""
        views = len(self.geometry.angles)
        name, values = ("view", range(views)) if self.geometry.vectors else ("angle", self.geometry.angles)
        ones = [1] * (len(self.geometry.measurement_shape) - 1)
        return {name: self.group_mean(torch.tensor(values, dtype=torch.float64).view(-1, *ones))}

    def _project(self, x: Tensor) -> Tensor:
        return self.projector.project(x.detach().reshape(len(x), *self.geometry.image_size))

    def _backproject(self, y: Tensor) -> Tensor:
        image = self.projector.backproject(y.detach().reshape(len(y), *self.geometry.measurement_shape))
        return image.view(len(y), 1, *self.geometry.image_size)

    def forward(self, x: Tensor) -> Tensor:
        return by_parts(lambda part: linear_map(part, self._project, self._backproject), x)

    def adjoint(self, y: Tensor) -> Tensor:
        return by_parts(lambda part: linear_map(part, self._backproject, self._project), y)

    def fbp(self, y: Tensor, window: Window = "hann", extend: bool = True) -> Tensor:
        """Filtered back-projection: Kak & Slaney, chapter 3; of cones after Feldkamp, Davis and Kress (1984).

        On a full turn with the axis off the detector's middle (half acquisition) rays that are measured once count as much
        as those measured twice; half a turn and the fan is weighted after Parker. Projections that the detector cuts off go on
        beyond it, see `extended`.

        Args:
            y: line integrals, as `forward` gives them.
            window: of the ramp filter: "ramp", "shepp-logan", "cosine", "hamming" or "hann".
            extend: whether projections that are cut off go on.

        Raises:
            UserError: views on a helix, tilted, or given by vectors, for which there is no such formula.
        """
        adjoint = self.adjoint if self.projector.name == "fourier" else None
        return by_parts(lambda part: filtered_backprojection(part, self.geometry, adjoint, window, extend)[:, None], y)

    @property
    def baseline_floor(self) -> float | None:
        return 1e-6 if missing_formula(self.geometry) else None

    def baseline(self, y: Tensor, sigma: float | Tensor = 0.0, solver: CG | None = None) -> Tensor:
        """Filtered back-projection with a Hann window; Tikhonov, where the geometry has none."""
        return super().baseline(y, sigma, solver) if missing_formula(self.geometry) else self.fbp(y)


def make_projector(geometry: Geometry, name: str) -> Projector:
    """The projector of a name, or the fastest that is for this geometry.

    Raises:
        UserError: it is not for this geometry.
    """
    if name == "auto":
        if geometry.dimensions == 3:
            return Joseph3DProjector(geometry)
        return FoldedProjector(geometry) if FoldedProjector.is_small(geometry) else JosephProjector(geometry)
    unsupported = PROJECTORS[name].unsupported(geometry)
    if unsupported:
        raise UserError(
            f"operator 'ct': projector {name!r} is not for this geometry: {unsupported}; give projector='auto'"
        )
    return PROJECTORS[name](geometry)


def _geometry(given: Geometry | dict[str, Any] | str) -> Geometry:
    if isinstance(given, Geometry):
        return given
    return Geometry.from_text(given) if isinstance(given, str) else Geometry.from_table(given)


def _parallel(given: dict[str, Any]) -> Geometry:
    """The geometry of the simple keywords, which all are of a parallel beam in 2-D."""
    size = rows_and_columns(given.get("image_size"), "operator 'ct'")
    if size is None:
        raise UserError("operator 'ct' needs image_size= (N, or [rows, columns]), or geometry=")
    angles = given.get("angles", 180)
    if not isinstance(angles, int | np.integer):
        listed = as_array(angles, "operator 'ct': angles")
        if listed.ndim > 1:
            raise UserError(
                f"operator 'ct': angles must be a count or a list of degrees, got shape {tuple(listed.shape)}"
            )
        angles = listed.double().flatten().tolist()
    pixel_size = given.get("pixel_size", 1.0)
    spacing = given.get("detector_spacing", pixel_size)
    for name, value in (("pixel_size", pixel_size), ("detector_spacing", spacing)):
        if not value > 0:
            raise UserError(f"operator 'ct': {name} must be > 0, got {value}")
    if given.get("detectors", 1) < 1:
        raise UserError(f"operator 'ct': detectors must be >= 1, got {given['detectors']}")
    try:
        return Geometry(**given | {"image_size": size, "angles": angles})
    except UserError as error:
        raise UserError(f"operator 'ct': {str(error).removeprefix('geometry: ')}") from None
