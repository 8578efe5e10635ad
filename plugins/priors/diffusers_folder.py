"""Hugging Face diffusers folders: a U-Net of images, its safetensors, and the scheduler it was trained with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from invsolve.errors import UserError
from invsolve.networks import vp
from invsolve.plugins.priors._checkpoint import CheckpointPrior, Negated
from invsolve.plugins.priors._class_label import folded
from invsolve.plugins.priors._header import check_network
from invsolve.plugins.priors._weights import fill, plain_weights, read_checkpoint, read_json

_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
#: Projections of attention blocks saved before diffusers 0.17.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class DiffusersPrior(CheckpointPrior):
    """A folder of the package diffusers with a `UNet2DModel`.

    A diffusers folder with a `UNet2DModel`, in the coordinates that its scheduler's configuration says.

    Read are `unet/config.json` or `config.json`, the *.safetensors beside it (one file or shards), and
    `scheduler/scheduler_config.json` or `scheduler_config.json`: DDPM-like schedulers (DDPM, DDIM, PNDM, DPM-Solver, Euler,
    Heun, LMS, UniPC, DEIS) with epsilon, v or sample prediction, EDM, flow matching and score-SDE VE. Sampling settings such
    as clipping and thresholding are left aside.

    Args:
        path: the folder.
        parametrisation: what the network predicts, for folders without a scheduler.
        schedule: name of its beta schedule, for the same.
        network_range: values of the network for black and white, (0, 1) if it was trained on images between 0 and 1;
            default (-1, 1), or (0, 1) with the VE scheduler.
        data_range: physical values of network -1 and +1.
        unit: physical unit of the images.
        class_label: of a class-conditional network, the class whose images it stands for, from 0.

    Raises:
        UserError: a class-conditional network without a class, a text-conditional or latent model, weights that only pickle could
            read, or a scheduler that is not read.
    """

    name = "diffusers"
    latent: ClassVar[bool] = False
    published = (
        r"(unet/)?config\.json|(scheduler/)?scheduler_config\.json|model_index\.json"
        r"|(unet/)?[^/]+\.safetensors(\.index\.json)?"
    )

    def __init__(
        self,
        path: str,
        parametrisation: str | None = None,
        schedule: str | None = None,
        network_range: tuple[float, float] | None = None,
        data_range: tuple[float, float] | None = None,
        unit: str | None = None,
        class_label: int | None = None,
    ) -> None:
        root = Path(path)
        folder = root / "unet" if (root / "unet" / "config.json").is_file() else root
        _refuse_others(root, folder, self.latent)
        config = read_json(folder / "config.json")
        net = _network(config, folder, class_label)
        said = {"parametrisation": parametrisation, "schedule": schedule, "network_range": network_range}
        said |= {"data_range": data_range, "unit": unit}
        if parametrisation is None:
            usual, negated = _coordinates(_scheduler(root), root)
        else:
            usual, negated = {}, False
        raw: nn.Module = Negated(net) if negated else net
        multiple = 2 ** (len(net.config["block_out_channels"]) - 1)  # type: ignore[index]
        self._become(raw, said, usual, root, (int(config.get("in_channels", 3)), None, None), multiple)

    @classmethod
    def opens(cls, path: Path) -> bool:
        if any((path / name / "config.json").is_file() for name in ("vae", "vqvae")):
            return False
        return path.is_dir() and any((path / name).is_file() for name in ("unet/config.json", "config.json"))


def _refuse_others(root: Path, folder: Path, latent_too: bool) -> None:
    where = repr(str(root))
    if not (folder / "config.json").is_file():
        raise UserError(f"{where} is no diffusers folder: neither unet/config.json nor config.json is in it")
    others = ("text_encoder", "transformer") if latent_too else ("vae", "vqvae", "text_encoder", "transformer")
    listed = read_json(root / "model_index.json") if (root / "model_index.json").is_file() else {}
    latent = [name for name in others if (root / name).is_dir() or listed.get(name)]
    if latent:
        raise UserError(f"{where} is a latent or text-conditional pipeline (it has {latent[0]}/), which is not read")
    kind = read_json(folder / "config.json").get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise UserError(f"{where}: the network is a {kind!r}; only 'UNet2DModel' is read")


def _network(config: dict[str, Any], folder: Path, label: int | None) -> nn.Module:
    """The U-Net with its weights."""
    from diffusers import UNet2DModel

    if config.get("class_embed_type"):
        raise UserError(
            f"{str(folder)!r}: the network is told of {config['class_embed_type']!r}; only classes of a table (num_class_embeds) "
            "are read"
        )
    weights = folded(renamed(folder_weights(folder)), label, repr(str(folder)))
    config = {key: value for key, value in config.items() if key != "num_class_embeds"}
    known = inspect.signature(UNet2DModel.__init__).parameters
    options = {key: value for key, value in config.items() if key in known}
    unknown = [key for key in config if key not in known and not key.startswith("_")]
    where = repr(str(folder / "config.json"))
    if unknown:
        raise UserError(f"{where}: unknown settings {', '.join(unknown)}; is a newer diffusers needed?")
    made: Any = UNet2DModel
    check_network(lambda: made(**options), options, weights, where)
    net: Any = made(**options)
    fill(net, weights, folder)
    return net


def folder_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of all safetensors files that belong to the network."""
    index = sorted(folder.glob("*.safetensors.index.json"))
    if index:
        names = sorted(set(read_json(index[0]).get("weight_map", {}).values()))
        # A shard is a file of this folder, whatever the index says.
        files = [folder / Path(str(name)).name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
        full = [f for f in files if ".fp16" not in f.name and ".non_ema" not in f.name]
        files = (full or files)[:1]
    if not files:
        if any(folder.glob("*.bin")):
            raise UserError(
                f"{str(folder)!r} has its weights as .bin, which is a pickle; save them with "
                "UNet2DModel.from_pretrained(folder).save_pretrained(folder, safe_serialization=True), where you trust them"
            )
        raise UserError(f"{str(folder)!r} has no *.safetensors")
    merged: dict[str, Tensor] = {}
    for file in files:
        merged |= read_checkpoint(file)
    return plain_weights(merged)


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in weights.items():
        parts = name.split(".")
        if len(parts) > 2 and "attentions" in parts and parts[-2] in _OLD_NAMES:
            name = ".".join([*parts[:-2], _OLD_NAMES[parts[-2]], parts[-1]])
        renamed[name] = value
    return renamed


def _scheduler(root: Path) -> dict[str, Any]:
    for name in ("scheduler/scheduler_config.json", "scheduler_config.json"):
        if (root / name).is_file():
            return read_json(root / name)
    raise UserError(
        f"{str(root)!r} has no scheduler/scheduler_config.json, so nothing says what the network predicts; add it, or give "
        "parametrisation= (and schedule=)"
    )


def _coordinates(config: dict[str, Any], root: Path) -> tuple[dict[str, Any], bool]:
    """What the scheduler's configuration says of the network, and whether it predicts the negative of that."""
    kind = str(config.get("_class_name", "DDPMScheduler"))
    where = f"{str(root)!r}: scheduler {kind!r}"
    prediction = config.get("prediction_type", "epsilon")
    if kind.startswith("EDM"):
        if prediction not in ("epsilon", "v_prediction"):
            raise UserError(f"{where} with prediction_type {prediction!r} is not read")
        usual: dict[str, Any] = {"parametrisation": "edm", "sigma_data": config.get("sigma_data", 0.5)}
        usual |= {key: config[key] for key in ("sigma_min", "sigma_max") if key in config}
        return usual, prediction == "v_prediction"
    steps = int(config.get("num_train_timesteps", 1000))
    if "FlowMatch" in kind or prediction == "flow_prediction":
        return {"parametrisation": "flow", "time_scale": float(steps)}, False
    if kind.startswith("ScoreSdeVe"):
        # The VE checkpoints of score_sde; their images lie between 0 and 1.
        levels = {"sigma_min": config.get("sigma_min", 0.01), "sigma_max": config.get("sigma_max", 1348.0)}
        return {"parametrisation": "score", "network_range": (0.0, 1.0), **levels}, False
    if "beta_schedule" not in config and "trained_betas" not in config:
        raise UserError(f"{where} has no beta_schedule; known are DDPM-like, EDM, FlowMatch and ScoreSdeVe schedulers")
    if config.get("timestep_type", "discrete") != "discrete":
        raise UserError(f"{where} with timestep_type {config['timestep_type']!r} is not read")
    if prediction not in _PREDICTIONS:
        raise UserError(f"{where} with prediction_type {prediction!r} is not read; known: {', '.join(_PREDICTIONS)}")
    return {"parametrisation": _PREDICTIONS[prediction], "schedule": _betas(config, steps, where)}, False


def _betas(config: dict[str, Any], steps: int, where: str) -> vp.Schedule:
    name = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        schedule = vp.from_betas(config["trained_betas"])
    elif name == "squaredcos_cap_v2":
        schedule = vp.cosine(steps)
    elif name in ("linear", "scaled_linear", "sigmoid"):
        low, high = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        schedule = vp.as_schedule({"name": name, "steps": steps, "beta_start": low, "beta_end": high})
    else:
        raise UserError(f"{where} with beta_schedule {name!r} is not read")
    return vp.rescaled_to_zero_signal(schedule) if config.get("rescale_betas_zero_snr") else schedule
