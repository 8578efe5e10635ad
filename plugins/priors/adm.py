"""ADM / guided-diffusion state dicts: the FFHQ-256 and ImageNet-256 unconditional models of the inverse-problem papers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from invsolve.contracts.paper import Paper
from invsolve.errors import UserError
from invsolve.plugins.priors._checkpoint import COMMON, CheckpointPrior, drop_schedule
from invsolve.plugins.priors._weights import fill, holds_names, read_side_file, read_weights
from invsolve.plugins.priors.nets.adm_unet import AdmUNet

#: What a published model's weights must look like: (model channels, residual blocks a level, levels, attention at 1/..).
PRESETS = {
    "ffhq-256": (128, 1, 6, [16]),
    "imagenet-256": (256, 2, 6, [8, 16, 32]),
}


class AdmPrior(CheckpointPrior):
    """A guided-diffusion checkpoint (Dhariwal 2021).

    A guided-diffusion U-Net (Dhariwal 2021), unconditional: epsilon prediction on the linear schedule of 1000 steps.

    The network is read off the weights; images of any size, 256 x 256 being what the published models were trained on.
    Learned variances (twice the channels) are left aside. A side file (JSON) may say otherwise, such as
    {"parametrisation": "flow", "time_scale": 1.0} for a rectified flow on this network.

    Args:
        path: the state dict: .pt, .pth or .safetensors.
        config: JSON side file; default the file of the same name with .json, where there is one.
        preset: refuse weights that are not of this published model: "ffhq-256" or "imagenet-256".
        num_head_channels: channels of one attention head, which the weights do not tell.
        num_heads: or the number of heads, for models that were made with that.
        new_attention_order: q, k, v lie one after the other rather than head by head.
        image_size: rows and columns, to take images of that size only.
        data_range: physical values of network -1 and +1.
        unit: physical unit of the images.

    Raises:
        UserError: a class-conditional, super-resolution or latent model; weights that do not fit; a file that would run code.
    """

    name = "adm"
    paper = Paper(
        "Diffusion Models Beat GANs on Image Synthesis",
        ("Prafulla Dhariwal", "Alexander Nichol"),
        2021,
        "arXiv:2105.05233",
    )

    def __init__(
        self,
        path: str,
        config: str | None = None,
        preset: Literal["ffhq-256", "imagenet-256"] | None = None,
        num_head_channels: int | None = None,
        num_heads: int | None = None,
        new_attention_order: bool | None = None,
        image_size: int | None = None,
        data_range: tuple[float, float] | None = None,
        unit: str | None = None,
    ) -> None:
        file = Path(path)
        known = (*COMMON, "preset", "num_head_channels", "num_heads", "new_attention_order", "image_size")
        said = read_side_file(file, config, known, "adm")
        given: dict[str, Any] = {
            "preset": preset,
            "num_head_channels": num_head_channels,
            "num_heads": num_heads,
            "unit": unit,
        }
        given |= {"new_attention_order": new_attention_order, "image_size": image_size, "data_range": data_range}
        said |= {key: value for key, value in given.items() if value is not None}
        weights = read_weights(file)
        _refuse_others(weights, file)
        try:
            net = AdmUNet(
                weights,
                said.get("num_head_channels", 64),
                said.get("num_heads"),
                said.get("new_attention_order", False),
            )
        except UserError as error:
            raise UserError(f"{path!r}: {error}") from None
        fill(net, weights, file)
        if said.get("preset") is not None:
            _check_preset(net, said["preset"], file)
        size = said.get("image_size")
        usual = {"parametrisation": "epsilon", "schedule": "linear"}
        self._become(net, said, drop_schedule(usual, said), file, (net.channels, size, size), 2 ** (net.levels - 1))

    @classmethod
    def opens(cls, path: Path) -> bool:
        return holds_names(path, "input_blocks.0.0.weight", "time_embed.0.weight")


def _refuse_others(weights: Mapping[str, Tensor], path: Path) -> None:
    where = repr(str(path))
    if any("diffusion_model.input_blocks" in name for name in weights):
        raise UserError(f"{where} is a latent diffusion model; only models of the images themselves are read")
    if any(name.startswith("label_emb.") for name in weights):
        raise UserError(f"{where} is class-conditional (it has label_emb); only unconditional models are read")
    wanted = ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.2.weight", "out.2.weight")
    missing: list[Any] = [name for name in wanted if name not in weights]
    if missing:
        raise UserError(f"{where} is no state dict of guided-diffusion's U-Net: {missing[0]!r} is missing")
    if weights["input_blocks.0.0.weight"].ndim != 4:
        raise UserError(f"{where}: its convolutions are not two-dimensional; only 2-D models are read")
    channels, out = weights["input_blocks.0.0.weight"].shape[1], len(weights["out.2.weight"])
    if out not in (channels, 2 * channels) or channels == 6:
        raise UserError(
            f"{where} takes {channels} channels and returns {out}: a super-resolution or otherwise conditional model; only "
            "unconditional ones are read"
        )


def _check_preset(net: AdmUNet, preset: Any, path: Path) -> None:
    if preset not in PRESETS:
        raise UserError(f"{str(path)!r}: unknown preset {preset!r}; known: {', '.join(PRESETS)}")
    layout = (net.width, net.blocks_per_level, net.levels, net.attention_at)
    if layout != PRESETS[preset]:
        names = ("channels", "blocks a level", "levels", "attention at 1/")
        text = ", ".join(
            f"{n} {a} instead of {b}" for n, a, b in zip(names, layout, PRESETS[preset], strict=True) if a != b
        )
        raise UserError(f"{str(path)!r} is not the model of preset {preset!r}: {text}; leave the preset out")
