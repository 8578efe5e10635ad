"""Hugging Face diffusers folders of latent diffusion: an autoencoder in vae/ or vqvae/, and a U-Net of its latents in unet/."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from invsolve.contracts.latent import LatentPrior
from invsolve.contracts.prior import Prior
from invsolve.errors import UserError
from invsolve.plugins.priors._header import check_network
from invsolve.plugins.priors._weights import fill, read_json
from invsolve.plugins.priors.diffusers_folder import DiffusersPrior, folder_weights, renamed

#: Folder of the autoencoder -> its class.
AUTOENCODERS = {"vae": "AutoencoderKL", "vqvae": "VQModel"}


class _OfLatents(DiffusersPrior):
    """The U-Net of such a folder."""

    latent: ClassVar[bool] = True

    @classmethod
    def opens(cls, path: Path) -> bool:
        return False


class LatentDiffusers(LatentPrior):
    """A folder of the package diffusers with an autoencoder and an unconditional U-Net of its latents.

    Read are `vae/` (`AutoencoderKL`) or `vqvae/` (`VQModel`), configuration and safetensors, and the rest as for "diffusers".
    Latents are scaled as the autoencoder's `scaling_factor` and `shift_factor` say; an image has the mean of its encoding.

    Args:
        path: the folder.
        data_range: physical values of network -1 and +1.
        unit: physical unit of the images.
        class_label: of a class-conditional network, the class whose images it stands for, from 0.
        parametrisation: what the network predicts, for folders without a scheduler.
        schedule: name of its beta schedule, for the same.

    Raises:
        UserError: a text-conditional model, an autoencoder of another kind, or weights that do not fit.
    """

    name = "latent-diffusers"
    published = r"(vae|vqvae)/(config\.json|[^/]+\.safetensors(\.index\.json)?)"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ()

    def __init__(
        self,
        path: str,
        data_range: tuple[float, float] | None = None,
        unit: str | None = None,
        class_label: int | None = None,
        parametrisation: str | None = None,
        schedule: str | None = None,
    ) -> None:
        super().__init__()
        root = Path(path)
        folder = next((root / name for name in AUTOENCODERS if (root / name / "config.json").is_file()), None)
        if folder is None:
            raise UserError(
                f"{path!r} is no folder of a latent model: neither vae/config.json nor vqvae/config.json is in it"
            )
        self.inner = _OfLatents(path, parametrisation, schedule, class_label=class_label)
        self.coder = _autoencoder(folder)
        config = self.coder.config
        if config["latent_channels"] != self.inner.event_shape[0]:
            here, there = config["latent_channels"], self.inner.event_shape[0]
            raise UserError(
                f"{path!r}: the autoencoder has {here} latent channels, the network {there}; copy both again"
            )
        self.scaling, self.shift = float(config.get("scaling_factor") or 1.0), float(config.get("shift_factor") or 0.0)
        if not self.scaling > 0:
            raise UserError(
                f"{str(folder)!r}: scaling_factor is {self.scaling:g}, expected a number > 0; write it again"
            )
        self.factor = 2 ** (len(config["block_out_channels"]) - 1)
        self.event_shape = (int(config.get("in_channels", 3)), None, None)
        self.sigma_min, self.sigma_max = self.inner.sigma_min, self.inner.sigma_max
        self.data_range = (float(data_range[0]), float(data_range[1])) if data_range else None
        self.unit, self.source = unit or "", path

    def decode(self, latents: Tensor) -> Tensor:
        # The fused attention has no second derivative, which a tangent of the decoder takes.
        with sdpa_kernel(SDPBackend.MATH):
            return self.coder.decode(latents / self.scaling + self.shift, return_dict=False)[0]

    def encode(self, images: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            coded = self.coder.encode(images, return_dict=False)[0]
        return ((coded if isinstance(coded, Tensor) else coded.mean) - self.shift) * self.scaling

    @classmethod
    def opens(cls, path: Path) -> bool:
        found = any((path / name / "config.json").is_file() for name in AUTOENCODERS)
        return found and (path / "unet" / "config.json").is_file()

    @classmethod
    def load(cls, path: Path) -> Prior:
        prior = cls(str(path))
        prior.name = path.name
        prior.parameters_given = {"path": str(path)}
        return prior


def _autoencoder(folder: Path) -> Any:
    """The autoencoder with its weights.

    Raises:
        UserError: of another class, or weights that do not fit.
    """
    import diffusers

    wanted, config = AUTOENCODERS[folder.name], read_json(folder / "config.json")
    kind = config.get("_class_name", wanted)
    if kind != wanted:
        raise UserError(f"{str(folder)!r}: the autoencoder is a {kind!r}; only {wanted!r} is read there")
    made: Any = getattr(diffusers, wanted)
    known = inspect.signature(made.__init__).parameters
    options = {key: value for key, value in config.items() if key in known}
    unknown = [key for key in config if key not in known and not key.startswith("_")]
    where = repr(str(folder / "config.json"))
    if unknown:
        raise UserError(f"{where}: unknown settings {', '.join(unknown)}; is a newer diffusers needed?")
    weights = renamed(folder_weights(folder))
    check_network(lambda: made(**options), options, weights, where)
    net: nn.Module = made(**options)
    fill(net, weights, folder)
    return net
