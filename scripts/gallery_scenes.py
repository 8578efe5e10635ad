"""What the gallery shows each operator with: an image of the kind it is for, parameters that suit the image, a prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import skimage
import torch
from torch import Tensor

import invsolve
from invsolve import UserError, registry
from invsolve.contracts.operator import Operator
from invsolve.datasets import phantoms

#: Of each kind of images: the bundled prior, and the physical values of network -1 and +1.
PRIORS: dict[str, tuple[str, tuple[float, float]]] = {
    "photograph": ("natural", (0, 1)),
    "colour photograph": ("natural", (0, 1)),
    "CT slice": ("ct-128", (0, 1)),
    "MR slice": ("mr-complex-128", (-1, 1)),
    "CT volume": ("ct-128", (0, 1)),
    "MR volume": ("mr-128", (0, 1)),
    "complex MR volume": ("mr-complex-128", (-1, 1)),
}


@dataclass(frozen=True)
class Scene:
    """An operator, an image for it, and how both are written.

    Attributes:
        name: of the operator.
        kind: of the image, one of `PRIORS`.
        given: the operator's parameters.
        operator: made from them.
        x: the image (1, C, *spatial).
        sigma: of the noise, Gaussian.
        shows: what x is of.
        files: parameters that are too long to be written, as the names of files.
    """

    name: str
    kind: str
    given: dict[str, Any]
    operator: Operator
    x: Tensor
    sigma: float
    shows: str
    files: dict[str, str] = field(default_factory=dict)

    def call(self) -> str:
        """How the operator is made in Python."""
        told = (f"{key}={self.files.get(key, value)!r}" for key, value in self.given.items())
        return f"invsolve.operator({', '.join([repr(self.name), *told])})".replace("'", '"')

    def measure(self) -> str:
        """How images in x.h5 are measured on the command line, which takes their size from the file."""
        told = (
            f" --set {key}={self.files.get(key, value)}".replace(", ", ",")
            for key, value in self.given.items()
            if key != "image_size"
        )
        return (
            f"invsolve simulate x.h5 -o scan.h5 --operator {self.name}{''.join(told)} --noise gaussian:{self.sigma:g}"
        )

    def sampler(self) -> str:
        """The strategy that samples it: `moment`, but for operators that it refuses."""
        return "dps-fitted" if self.operator.flat else "moment"

    def reconstruct(self) -> str:
        """How the measurement is reconstructed on the command line."""
        prior, (low, high) = PRIORS[self.kind]
        return (
            f"invsolve reconstruct scan.h5 -o recon.h5 --prior {prior} --strategy {self.sampler()} --scale={low}:{high}"
        )


@dataclass(frozen=True)
class Recipe:
    """What a known operator is shown with, at a size of the image.

    Args:
        kind: of the image.
        parameters: by the size of the image.
        sigma: of the noise; by default 2 % of the measurement's root mean square.
        side: of the image, in parts of the gallery's.
    """

    kind: str
    parameters: Callable[[int], dict[str, Any]]
    sigma: float | None = None
    side: float = 1.0


def motion(length: int, degrees: float) -> np.ndarray:
    """The path of a camera that moves evenly, as a kernel (length, length) of sum 1."""
    along = (np.linspace(-1, 1, 20 * length) * (length - 1) / 2)[:, None]
    turn = np.deg2rad(degrees)
    places = (length - 1) / 2 + along * np.array([-np.sin(turn), np.cos(turn)])
    kernel, _, _ = np.histogram2d(places[:, 0], places[:, 1], bins=length, range=[[-0.5, length - 0.5]] * 2)
    return kernel / kernel.sum()


def star(size: int = 21, width: float = 2.0) -> np.ndarray:
    """The picture of a point through a turbulent atmosphere (Moffat 1969), a little beside its middle, on a background."""
    row, column = np.indices((size, size)) - (size - 1) / 2
    return 0.02 + (1 + ((row - 1) ** 2 + (column + 2) ** 2) / width**2) ** -2.5


def coils(size: int, count: int = 4) -> np.ndarray:
    """Maps of coils around a head, (count, size, size), whose squares add up to 1."""
    row, column = (np.indices((size, size)) - (size - 1) / 2) * 2 / size
    turns = 2 * np.pi * (np.arange(count) + 0.5) / count
    distance = np.stack([(row - 1.3 * np.sin(t)) ** 2 + (column - 1.3 * np.cos(t)) ** 2 for t in turns])
    phase = np.stack([1.5 * (row * np.cos(t) - column * np.sin(t)) + t for t in turns])
    maps = np.exp(-distance / 2 + 1j * phase)
    return (maps / np.sqrt((abs(maps) ** 2).sum(0))).astype(np.complex64)


def few(size: int) -> list[int]:
    """The size of a volume that is drawn in seconds: slices as the network takes them, and few of them."""
    return [4, 3 * size // 8, 3 * size // 8]


def every_second_row(size: int) -> np.ndarray:
    """A mask of a volume's k-space, (1, rows, 1): every second row and the middle ones, in all planes.

    Half of the planes' own frequencies would leave them to a prior that knows nothing of neighbours.
    """
    rows = few(size)[1]
    distance = abs(np.arange(rows) - rows // 2)
    return ((distance % 2 == 0) | (distance < 4)).astype(np.float32)[None, :, None]


RECIPES: dict[str, Recipe] = {
    "blur": Recipe("photograph", lambda n: {"sigma": 1.5}),
    "blur-3d": Recipe("MR volume", lambda n: {"sigma": [0.5, 1.0, 1.0]}, sigma=0.01, side=0.5),
    "clip": Recipe("photograph", lambda n: {"gain": 1.6}, sigma=0.01),
    "compressive": Recipe("photograph", lambda n: {"image_size": n, "fraction": 0.25}),
    "crop": Recipe("photograph", lambda n: {"image_size": n, "box": [n // 4, n // 4, n // 2, n // 2]}),
    "ct": Recipe("CT slice", lambda n: {"image_size": n, "angles": 30}, sigma=0.3),
    "downsample": Recipe("photograph", lambda n: {"factor": 4, "kernel": "bicubic"}),
    "inpainting": Recipe("photograph", lambda n: {"image_size": n, "fraction": 0.3}),
    "jpeg": Recipe("photograph", lambda n: {"quality": 30}, sigma=0.02),
    "measured-blur": Recipe("photograph", lambda n: {"picture": star(), "centre": "peak"}, sigma=0.01),
    "mri": Recipe("MR slice", lambda n: {"coil_maps": coils(n), "acceleration": 4}, sigma=0.02),
    "mri-3d": Recipe("complex MR volume", lambda n: {"image_size": few(n), "mask": every_second_row(n)}, sigma=0.02),
    "mri-cine": Recipe(
        "complex MR volume",
        lambda n: {"image_size": few(n), "mask": "uniform", "acceleration": 3},
        sigma=0.02,
    ),
    "mri-noncartesian-3d": Recipe("complex MR volume", lambda n: {"volume_size": few(n), "spokes": 4 * n}, sigma=0.02),
    "nonlinear-blur": Recipe("photograph", lambda n: {"sigma": 1.5}, sigma=0.01),
    "phase-retrieval": Recipe("photograph", lambda n: {"masks": coded(n), "oversampling": 1.0}),
    "ptychography": Recipe("photograph", lambda n: {"image_size": n, "probe_size": n // 4, "step": n // 16}, side=0.5),
    "tiled-blur": Recipe(
        "photograph",
        lambda n: {"kernels": np.stack([[motion(9, 60 * a + 30 * b) for b in range(3)] for a in range(3)])},
    ),
}


def coded(size: int) -> np.ndarray:
    """Three masks of random signs and quarter turns, (3, size, size)."""
    return 1j ** np.random.default_rng(0).integers(0, 4, (3, size, size)).astype(np.complex64)


def scene(name: str, size: int, data: Path | None) -> Scene:
    """What an operator is shown with: its recipe, or for one that has none what its parameters and examples allow.

    Args:
        name: a registered operator.
        size: rows and columns of images.
        data: folder of the reference images; without it phantoms are shown.

    Raises:
        UserError: the operator has no recipe, and its examples take no image.
    """
    cls: Any = registry.find("operator", name)
    recipe = RECIPES.get(name)
    if recipe is not None:
        side = int(size * recipe.side)
        return _made(name, recipe.parameters(side), side, data, recipe.kind, recipe.sigma)
    volume = [size // 8, size // 2, size // 2]
    smaller = [{"image_size": size}, {"image_size": volume}, {"volume_size": volume}]
    resized = [{**e, "image_size": size} for e in cls.examples if "image_size" in e]
    tried = (*smaller, {}, *resized, *cls.examples)
    for given in tried:
        try:
            return _made(name, dict(given), size, data)
        except (UserError, RuntimeError, ValueError):
            continue
    raise UserError(f"gallery: operator {name!r} measures none of the images here; give it a recipe")


def _made(
    name: str, given: dict[str, Any], size: int, data: Path | None, kind: str = "", sigma: float | None = None
) -> Scene:
    operator = invsolve.operator(name, **given)
    tried = type(operator).shapes_tried[0]
    spatial = (size // 8, size, size) if "volume" in kind else (size,) * (len(tried) - 1)
    shape = tuple(operator.image_shape or (tried[0], *spatial))
    kind = kind or _kind(operator, shape)
    x = image(kind, shape[1:], data)
    if kind == "colour photograph" and shape[0] == 1:
        x = x.mean(1, keepdim=True)
    x = x.to(torch.complex64) if operator.complex_image else x
    with torch.no_grad():
        # Of the phantom, so that the page does not depend on the data.
        y = operator(image(kind, shape[1:], None).expand(1, *shape).to(x.dtype))
    level = sigma or float(f"{0.02 * float(y.abs().square().mean().sqrt()):.1g}")
    files = {key: f"{key}.npy" for key, value in given.items() if isinstance(value, np.ndarray)}
    shows = kind if data is not None else "phantom"
    return Scene(name, kind, given, operator, x, level, shows, files)


def _kind(operator: Operator, shape: tuple[int, ...]) -> str:
    if len(shape) == 4:
        return "complex MR volume" if operator.complex_image else "MR volume"
    if operator.complex_image:
        return "MR slice"
    return "colour photograph" if shape[0] == 3 else "photograph"


def image(kind: str, size: tuple[int, ...], data: Path | None) -> Tensor:
    """An image of a kind, (1, C, *size): of the reference data, or phantoms; values from 0 to 1, complex where MR is."""
    side = max(size[-2:])
    colours = [_picture(kind, channel, side, data) for channel in range(3 if kind == "colour photograph" else 1)]
    array = np.stack([skimage.transform.resize(one, size, anti_aliasing=True) for one in colours])
    x = torch.from_numpy(array.astype(np.float32)).clamp(0, 1)[None]
    if "MR" in kind and kind != "MR volume":
        row, column = (torch.linspace(-1, 1, n) for n in size[-2:])
        x = x * torch.polar(torch.ones(()), 1.2 * row[:, None] - 0.8 * column * row[:, None] + 0.4)
    return x


@cache
def _picture(kind: str, channel: int, side: int, data: Path | None) -> np.ndarray:
    """One channel, (rows, columns) or (slices, rows, columns), in the resolution that the priors know, from 0 to 1."""
    if data is None:
        flat = phantoms.render(phantoms.shepp_logan() if "MR" in kind else phantoms.thorax(), side)[0].numpy()
        flat = flat if channel == 0 else np.rot90(flat, channel)
        return np.stack([flat * w for w in np.hanning(18)[1:-1]]) if "volume" in kind else flat
    if "photograph" in kind:
        # Held out from training; of the middle, which has the aeroplane.
        photograph = skimage.io.imread(data / "natural" / "kodim20.jpg")[:, 128:640] / 255.0
        return photograph[..., channel] if "colour" in kind else photograph @ np.array([0.299, 0.587, 0.114])
    if kind == "CT slice":
        with h5py.File(data / "ct_slices_256.h5") as file, h5py.File(data / "slices_128.h5") as known:
            splits = dict(zip(known["group"].asstr()[:], known["split"].asstr()[:], strict=True))
            patients = file["patient_id"].asstr()[:]
            k = next(k for k, patient in enumerate(patients) if splits[patient] == "val")
            return np.clip((file["hu"][k].astype(float) + 1000) / 2200, 0, 1)
    if "MR" in kind:
        with h5py.File(data / "volumes" / "vrd_stroke_T1.h5") as file:
            volume = file["volume"][60:92].astype(float)
        volume = np.clip(volume / np.quantile(volume, 0.997), 0, 1)
        side = max(volume.shape[1:])
        margins = [((side - n) // 2, side - n - (side - n) // 2) for n in volume.shape[1:]]
        volume = np.pad(volume, [(0, 0), *margins])
        return volume if "volume" in kind else volume[len(volume) // 2]
    with h5py.File(data / "ct_slices_256.h5") as file:
        return np.clip((file["hu"][:16].astype(float) + 1000) / 2200, 0, 1)
