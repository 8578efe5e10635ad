"""Network priors: a U-Net in a safetensors file whose JSON header says all that a denoiser must know."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.contracts.prior import Prior, per_row
from invsolve.errors import UserError
from invsolve.networks.gaussian_start import GaussianStart
from invsolve.networks.patches import POSITIONS, Patches
from invsolve.plugins.priors._header import check_header, check_network
from invsolve.plugins.priors._quantised import plain, quantised
from invsolve.plugins.priors._weights import read_checkpoint
from invsolve.plugins.priors.nets.fast_unet import FastUNet
from invsolve.plugins.priors.nets.unet import UNet

HEADER = "invsolve_prior"
#: `UNet2DModel` is of diffusers; `UNet` is ours, for one and three dimensions; `FastUNet` ours for two, the fast one.
NETWORKS = ("UNet2DModel", "UNet", "FastUNet")


class UNetPrior(Prior):
    """A checkpoint of your own: `invsolve train IMAGES.h5 -o PRIOR.safetensors`.

    A U-Net denoiser with EDM preconditioning (Karras 2022, table 1).

    Images of any size: those that the network's down-sampling does not divide are extended by reflection and cropped. A network
    trained on patches and their positions (`--set patch=SIDE`) is for images of the one size that it was trained on.

    Args:
        path: a .safetensors file written by `save`.
        gaussian_above: noise level from which on D is that of the Gaussian in the header instead of the network's, for images of
            the size that it was measured at; 0 for never, None for what the header says.

    Raises:
        UserError: the file is not of this format, its weights do not fit the network that its header describes, or it has no
            Gaussian.
    """

    name = "unet"
    paper = Paper(
        "Elucidating the Design Space of Diffusion-Based Generative Models",
        ("Tero Karras", "Miika Aittala", "Timo Aila", "Samuli Laine"),
        2022,
        "arXiv:2206.00364",
    )
    trainable: ClassVar[bool] = True
    published = r"[^/]+\.safetensors"
    tileable = True
    gaussian: GaussianStart | None = None
    patches: Patches | None = None
    tables: Mapping[str, Tensor] | None = None

    examples: ClassVar[tuple[dict[str, Any], ...]] = ()

    def __init__(self, path: str, gaussian_above: float | None = None) -> None:
        super().__init__()
        self._read(Path(path), gaussian_above)

    def _read(self, path: Path, gaussian_above: float | None) -> None:
        header = read_header(path)
        if header is None:
            raise UserError(f"{str(path)!r} is not an invsolve prior: a .safetensors file with an {HEADER!r} header")
        check_header(header, NETWORKS, repr(str(path)))
        architecture = header["architecture"]
        tables = read_checkpoint(path)
        weights = plain(tables, repr(str(path)))
        check_network(lambda: make_network(architecture), architecture["config"], weights, repr(str(path)))
        self._describe(header)
        # Rounded once: written again they are the same.
        self.tables = tables if header.get("bits") else None
        if header.get("gaussian") is not None:
            self.gaussian = GaussianStart.from_record(header["gaussian"], header["event_shape"][0], repr(str(path)))
        if gaussian_above is not None:
            self._start_with_gaussian(gaussian_above, repr(str(path)))
        self.network.load_state_dict(weights)
        self.eval()

    def _describe(self, header: Mapping[str, Any]) -> None:
        """Take over what a header says; the network has random weights."""
        self.network = make_network(header["architecture"])
        self.header = dict(header)
        self.flow = header["parametrisation"] == "flow"
        # Where the noise was not Gaussian D has no Jacobian that means anything: sigma^2 J is the covariance by Tweedie alone.
        self.differentiable = not header.get("augmented")
        self.sigma_data = float(header["sigma_data"])
        self.noise_label_scale = float(header["noise_label_scale"])
        self.sigma_min, self.sigma_max = float(header["sigma_min"]), float(header["sigma_max"])
        self.event_shape = tuple(header["event_shape"])
        self.data_range = tuple(header["data_range"]) if header.get("data_range") else None
        self.unit = header["unit"]
        self.source = header["source"]
        self.error_curve = header.get("error_curve")
        self.gaussian = None
        halvings = len(header["architecture"]["config"]["block_out_channels"]) - 1
        # The fast network folds the image to half its size before its first level.
        self.multiple = 2 ** (halvings + (header["architecture"]["class"] == "FastUNet"))
        if header.get("patch") is not None:
            self.patches, self.tileable = Patches.from_record(header["patch"], "this prior"), False

    def _start_with_gaussian(self, above: float, where: str) -> None:
        if self.gaussian is None:
            raise UserError(
                f"{where}: gaussian_above needs a Gaussian in the header, as `invsolve train` writes; leave it out"
            )
        if not above >= 0:
            raise UserError(f"gaussian_above is a noise level in network units, or 0 for never, got {above}")
        self.gaussian.above = above or None

    @classmethod
    def create(cls, header: Mapping[str, Any]) -> UNetPrior:
        """An untrained prior, in training mode: random weights, and the header of the file that it will become."""
        prior = cls.__new__(cls)
        prior._describe(header)
        return prior.train()

    def save(self, path: Path, bits: int | None = None) -> None:
        """Write weights and header, in the precision that header["dtype"] names (default bfloat16), or in so many bits.

        Args:
            path: ends in .safetensors.
            bits: 8 or 4: rounded weights, half or a quarter as large on disk as 16 bits, and as fast as before; None leaves
                them as they are.

        Raises:
            UserError: another number of bits, or weights that are rounded already, to another.
        """
        dtype = getattr(torch, self.header.get("dtype", "bfloat16"))
        curve = {} if self.error_curve is None else {"error_curve": self.error_curve}
        start = {} if self.gaussian is None else {"gaussian": self.gaussian.record()}
        header = {**self.header, **curve, **start}
        if self.tables is not None:
            if bits not in (None, header["bits"]):
                raise UserError(
                    f"the weights are of {header['bits']} bits already; round those of the file it was made from"
                )
            _write(path, self.tables, header)
        elif bits is not None:
            _write(path, quantised(self.network.state_dict(), bits, dtype), {**header, "bits": bits})
        else:
            save(path, self.network.state_dict(), header, dtype)

    def passes_at(self, image_shape: Sequence[int], sigma: float) -> int:
        return 0 if self._gaussian_at(image_shape) <= sigma else self.passes

    def error(self, sigma: float) -> float:
        if self.gaussian is not None and self._gaussian_at((len(self.gaussian.mean), *self.gaussian.size)) <= sigma:
            return self.gaussian.error(sigma)
        return super().error(sigma)

    def fingerprint(self) -> str:
        above = None if self.gaussian is None else self.gaussian.above
        if above is None:
            return super().fingerprint()
        assert self.gaussian is not None
        return hashlib.sha256(f"{super().fingerprint()}{self.gaussian.record()}".encode()).hexdigest()

    def _gaussian_at(self, image_shape: Sequence[int]) -> float:
        """Noise level from which on D is the Gaussian's for images (C, *spatial) of this shape."""
        known = self.gaussian
        return math.inf if known is None or known.above is None or not known.stands_for(image_shape) else known.above

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        above = self._gaussian_at(x.shape[1:])
        if above == math.inf:
            return self._through_network(x, sigma)
        assert self.gaussian is not None
        # Which rows it is asks the device; without a Gaussian nothing does.
        early = (sigma >= above).expand(len(x))
        if bool(early.all()):
            return self.gaussian.denoise(x, sigma)
        late = self._through_network(x, sigma)
        return torch.where(per_row(early, x), self.gaussian.denoise(x, sigma), late) if bool(early.any()) else late

    def _through_network(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.patches is None:
            return self._denoised(x, sigma, x.new_zeros(len(x), 0, *x.shape[2:]))
        if x.shape[1] == self.event_shape[0]:
            return self.patches.denoise(self._through_network, x, sigma)
        return self._denoised(x[:, :-POSITIONS], sigma, x[:, -POSITIONS:])

    def _denoised(self, x: Tensor, sigma: Tensor, positions: Tensor) -> Tensor:
        s = per_row(sigma, x).float()
        scale = 1 + s if self.flow else (s**2 + self.sigma_data**2).sqrt()
        size = x.shape[2:]
        inside = extended(torch.cat([x.float() / scale, positions.float()], 1), self.multiple)
        label = (self.noise_label_scale * sigma.float().log()).expand(len(x))
        raw = self.network(inside, label, return_dict=False)[0]
        raw = raw[(..., *(slice(length) for length in size))].float()
        if self.flow:
            # The velocity n - x0 at x_t = x / (1 + sigma), t = sigma / (1 + sigma).
            return ((x - s * raw) / (1 + s)).to(x.dtype)
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
    _write(path, {name: value.to(dtype).contiguous() for name, value in weights.items()}, header)


def _write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    from safetensors.torch import save as serialise

    # safetensors' own writer leaves a file that nobody else may read.
    path.write_bytes(serialise(dict(tensors), metadata={HEADER: json.dumps(dict(header), sort_keys=True)}))
