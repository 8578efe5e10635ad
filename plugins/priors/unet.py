"""Network priors: a U-Net in a safetensors file whose JSON header says all that a denoiser must know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from invsolve.contracts.prior import Prior, per_row
from invsolve.errors import UserError
from invsolve.plugins.priors._header import check_header, check_network
from invsolve.plugins.priors._weights import read_checkpoint
from invsolve.plugins.priors.nets.fast_unet import FastUNet
from invsolve.plugins.priors.nets.unet import UNet

HEADER = "invsolve_prior"
#: `UNet2DModel` is of diffusers; `UNet` is ours, for one and three dimensions; `FastUNet` ours for two, the fast one.
NETWORKS = ("UNet2DModel", "UNet", "FastUNet")


class UNetPrior(Prior):
    """A checkpoint of your own: `invsolve train IMAGES.h5 -o PRIOR.safetensors`.

    A U-Net denoiser with EDM preconditioning (Karras 2022, table 1).

    Images of any size: those that the network's down-sampling does not divide are extended by reflection and cropped.

    Args:
        path: a .safetensors file written by `save`.

    Raises:
        UserError: the file is not of this format, or its weights do not fit the network that its header describes.
    """

    name = "unet"
    trainable: ClassVar[bool] = True
    published = r"[^/]+\.safetensors"
    tileable = True

    examples: ClassVar[tuple[dict[str, Any], ...]] = ()

    def __init__(self, path: str) -> None:
        super().__init__()
        self._read(Path(path))

    def _read(self, path: Path) -> None:
        header = read_header(path)
        if header is None:
            raise UserError(f"{str(path)!r} is not an invsolve prior: a .safetensors file with an {HEADER!r} header")
        check_header(header, NETWORKS, repr(str(path)))
        architecture = header["architecture"]
        weights = {name: value.float() for name, value in read_checkpoint(path).items()}
        check_network(lambda: make_network(architecture), architecture["config"], weights, repr(str(path)))
        self._describe(header)
        self.network.load_state_dict(weights)
        self.eval()

    def _describe(self, header: Mapping[str, Any]) -> None:
        """Take over what a header says; the network has random weights."""
        self.network = make_network(header["architecture"])
        self.header = dict(header)
        self.sigma_data = float(header["sigma_data"])
        self.noise_label_scale = float(header["noise_label_scale"])
        self.sigma_min, self.sigma_max = float(header["sigma_min"]), float(header["sigma_max"])
        self.event_shape = tuple(header["event_shape"])
        self.data_range = tuple(header["data_range"]) if header.get("data_range") else None
        self.unit = header["unit"]
        self.source = header["source"]
        self.error_curve = header.get("error_curve")
        halvings = len(header["architecture"]["config"]["block_out_channels"]) - 1
        # The fast network folds the image to half its size before its first level.
        self.multiple = 2 ** (halvings + (header["architecture"]["class"] == "FastUNet"))

    @classmethod
    def create(cls, header: Mapping[str, Any]) -> UNetPrior:
        """An untrained prior, in training mode: random weights, and the header of the file that it will become."""
        prior = cls.__new__(cls)
        prior._describe(header)
        return prior.train()

    def save(self, path: Path) -> None:
        """Write weights and header, in the precision that header["dtype"] names (default bfloat16)."""
        dtype = getattr(torch, self.header.get("dtype", "bfloat16"))
        curve = {} if self.error_curve is None else {"error_curve": self.error_curve}
        save(path, self.network.state_dict(), {**self.header, **curve}, dtype)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = per_row(sigma, x).float()
        scale = (s**2 + self.sigma_data**2).sqrt()
        size = x.shape[2:]
        inside = extended(x.float() / scale, self.multiple)
        label = (self.noise_label_scale * sigma.float().log()).expand(len(x))
        raw = self.network(inside, label, return_dict=False)[0]
        raw = raw[(..., *(slice(length) for length in size))].float()
        return ((self.sigma_data / scale) ** 2 * x + s * self.sigma_data / scale * raw).to(x.dtype)

    @classmethod
    def opens(cls, path: Path) -> bool:
        return cls is UNetPrior and path.suffix == ".safetensors" and read_header(path) is not None

    @classmethod
    def load(cls, path: Path) -> UNetPrior:
        prior = cls(str(path))
        prior.name = path.name
        prior.parameters_given = {"path": str(path)}
        return prior


def extended(x: Tensor, multiple: int) -> Tensor:
    """Images (B, C, *spatial) continued by reflection, at the end of each axis, to sizes that `multiple` divides."""
    size = x.shape[2:]
    more = [-length % multiple for length in size]
    if all(amount < length for amount, length in zip(more, size, strict=True)):
        pad = [part for amount in reversed(more) for part in (0, amount)]
        return F.pad(x, pad, mode="reflect") if any(pad) else x
    for axis, (length, amount) in enumerate(zip(size, more, strict=True)):
        if amount:
            # To and fro as often as it takes: an image may be smaller than what it lacks.
            turn = max(1, 2 * (length - 1))
            place = torch.arange(length + amount, device=x.device) % turn
            x = x.index_select(2 + axis, torch.minimum(place, turn - place) if length > 1 else 0 * place)
    return x


def make_network(architecture: Mapping[str, Any]) -> torch.nn.Module:
    """The network that a header's `architecture` names, on the CPU with random weights."""
    if architecture["class"] == "UNet":
        return UNet(**architecture["config"])
    network: Any
    if architecture["class"] == "FastUNet":
        network = FastUNet(**architecture["config"])
    else:
        from diffusers import UNet2DModel

        network = UNet2DModel(**architecture["config"])
    return network.to(memory_format=torch.channels_last)


def read_header(path: Path) -> dict[str, Any] | None:
    """The JSON header of a prior file, or None when the file is no prior of ours. Reads no weights, runs nothing.

    Raises:
        UserError: it has one, which is no JSON object.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER)
    except (SafetensorError, OSError):
        return None
    if text is None:
        return None
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{str(path)!r}: its header is no JSON object; write the file again")
    return header


def save(
    path: Path, weights: Mapping[str, Tensor], header: Mapping[str, Any], dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write a prior file.

    Args:
        path: ends in .safetensors.
        weights: state dict of the network.
        header: parametrisation, architecture (class, config), sigma_data, noise_label_scale, sigma_min, sigma_max,
            event_shape, data_range, unit, source, training and error_curve, as `UNetPrior` reads them.
        dtype: precision of the stored weights.
    """
    from safetensors.torch import save as serialise

    stored = {name: value.to(dtype).contiguous() for name, value in weights.items()}
    # safetensors' own writer leaves a file that nobody else may read.
    path.write_bytes(serialise(stored, metadata={HEADER: json.dumps(dict(header), sort_keys=True)}))


class Bundled(UNetPrior):
    """A prior that comes with invsolve: `weights` names its file, whose header says on what it was trained."""

    trainable: ClassVar[bool] = False
    weights: ClassVar[str] = ""

    def __init__(self) -> None:
        Prior.__init__(self)
        self._read(Path(__file__).parent / "weights" / f"{self.weights}.safetensors")


class Ct128(Bundled):
    """CT of chest, abdomen, pelvis and limbs in Hounsfield units, any image size (bundled).

    Axial slices in Hounsfield units, -1000 (air) to 1200; trained at 128 x 128, any size works.

    1647 slices and lung crops of about 800 people, listed in docs/bundled-priors.md. Do not read patients with it.
    """

    name = "ct-128"
    advised_for: ClassVar[tuple[str, ...]] = ("ct",)

    weights = "ct-128"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)


class Mr128(Bundled):
    """MR magnitudes of heads, limbs, spine, breast and abdomen, any image size (bundled).

    1 at the 99.7 % quantile of a slice; trained at 128 x 128, any size works.

    2298 slices of about 290 people, listed in docs/bundled-priors.md. Do not read patients with it.
    """

    name = "mr-128"

    weights = "mr-128"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)


class MrComplex128(Bundled):
    """Complex MR images in two channels, any image size (bundled).

    Real and imaginary part: magnitudes of MR slices with smooth random phases.
    """

    name = "mr-complex-128"
    advised_for: ClassVar[tuple[str, ...]] = ("mri", "mri-noncartesian")

    weights = "mr-complex-128"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)


class Natural(Bundled):
    """Grey photographs, any image size (bundled).

    0 (black) to 1 (white); trained on parts of 128 x 128, any size works.
    """

    name = "natural"
    advised_for: ClassVar[tuple[str, ...]] = ("*",)

    weights = "natural"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)
