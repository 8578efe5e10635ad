"""The priors that come with invsolve, each a file of weights beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from invsolve.contracts.prior import Prior
from invsolve.plugins.priors.unet import UNetPrior


class Bundled(UNetPrior):
    """A prior that comes with invsolve: `weights` names its file, whose header says on what it was trained.

    Args:
        gaussian_above: see the classes.
    """

    trainable: ClassVar[bool] = False
    weights: ClassVar[str] = ""

    def __init__(self, gaussian_above: float | None = None) -> None:
        Prior.__init__(self)
        self._read(Path(__file__).parent / "weights" / f"{self.weights}.safetensors", gaussian_above)


class Ct128(Bundled):
    """CT of chest, abdomen, pelvis and limbs in Hounsfield units, any image size (bundled).

    Axial slices in Hounsfield units, -1000 (air) to 1200; trained at 128 x 128, any size works.

    1647 slices and lung crops of about 800 people, listed in docs/bundled-priors.md. Do not read patients with it.

    Args:
        gaussian_above: noise level from which on D is that of the Gaussian of the training images, without a network call, for
            images of 128 x 128; 0 for never, None for what the file says (never).
    """

    name = "ct-128"
    advised_for: ClassVar[tuple[str, ...]] = ("ct",)

    weights = "ct-128"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)


class Mr128(Bundled):
    """MR magnitudes of heads, limbs, spine, breast and abdomen, any image size (bundled).

    1 at the 99.7 % quantile of a slice; trained at 128 x 128, any size works.

    2298 slices of about 290 people, listed in docs/bundled-priors.md. Do not read patients with it.

    Args:
        gaussian_above: noise level from which on D is that of the Gaussian of the training images, without a network call, for
            images of 128 x 128; 0 for never, None for what the file says (never).
    """

    name = "mr-128"

    weights = "mr-128"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)


class MrComplex128(Bundled):
    """Complex MR images in two channels, any image size (bundled).

    Real and imaginary part: magnitudes of MR slices with smooth random phases.

    Args:
        gaussian_above: noise level from which on D is that of the Gaussian of the training images, without a network call, for
            images of 128 x 128; 0 for never, None for what the file says (never).
    """

    name = "mr-complex-128"
    advised_for: ClassVar[tuple[str, ...]] = ("mri", "mri-noncartesian")

    weights = "mr-complex-128"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)


class Natural(Bundled):
    """Grey photographs, any image size (bundled).

    0 (black) to 1 (white); trained on parts of 128 x 128, any size works.

    Args:
        gaussian_above: noise level from which on D is that of the Gaussian of the training images, without a network call, for
            images of 128 x 128; 0 for never, None for what the file says (never).
    """

    name = "natural"
    advised_for: ClassVar[tuple[str, ...]] = ("*",)

    weights = "natural"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)
