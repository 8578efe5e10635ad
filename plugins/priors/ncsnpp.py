"""score_sde checkpoints: NCSN++ and DDPM++, VE and VP, as the DiffusionMBIR and score-MRI papers use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from invsolve.contracts.paper import Paper
from invsolve.errors import UserError
from invsolve.plugins.priors._bounds import check_bounds
from invsolve.plugins.priors._checkpoint import COMMON, CheckpointPrior
from invsolve.plugins.priors._weights import (
    fill,
    find_state_dict,
    holds_names,
    plain_weights,
    read_checkpoint,
    read_side_file,
)
from invsolve.plugins.priors.nets.ncsnpp import UNTRAINED, NCSNpp


class ScoreSdePrior(CheckpointPrior):
    """An NCSN++ or DDPM++ checkpoint (Song 2021).

    An NCSN++ or DDPM++ network (Song 2021) with its configuration in a JSON side file.

    The side file is the training configuration itself, `json.dumps(config.to_dict())`: sections `model`, `data`, `training`.
    VE networks ("vesde", continuous) predict the score, VP ones ("vpsde") the noise. The running means of the weights are
    taken where the checkpoint has them. Networks trained on images from 0 to 1 (data.centered false) are shown those.

    Args:
        path: the checkpoint (.pth with model, ema, step; or a state dict), or .safetensors.
        config: JSON side file; default the file of the same name with .json.
        data_range: physical values of network -1 and +1.
        unit: physical unit of the images.

    Raises:
        UserError: no side file, a setting that is not read, weights that do not fit, or a file that would run code.
    """

    name = "ncsnpp"
    paper = Paper(
        "Score-Based Generative Modeling through Stochastic Differential Equations",
        ("Yang Song", "Jascha Sohl-Dickstein", "Diederik P. Kingma", "Abhishek Kumar", "Stefano Ermon", "Ben Poole"),
        2021,
        "arXiv:2011.13456",
    )

    def __init__(
        self,
        path: str,
        config: str | None = None,
        data_range: tuple[float, float] | None = None,
        unit: str | None = None,
    ) -> None:
        file = Path(path)
        known = (*COMMON, "model", "data", "training", "sampling", "eval", "optim", "seed", "device")
        said = read_side_file(file, config, known, "score-sde")
        if "model" not in said or "data" not in said:
            raise UserError(
                f"{path!r} needs a side file {file.with_suffix('.json').name!r} with the training configuration: "
                '{"model": {"nf": 128, "ch_mult": [1, 2, 2, 2], ...}, "data": {"image_size": 256, "num_channels": 1, '
                '"centered": false}, "training": {"sde": "vesde", "continuous": true}}'
            )
        said |= {key: value for key, value in {"data_range": data_range, "unit": unit}.items() if value is not None}
        content = read_checkpoint(file)
        check_bounds({"model": said["model"], "data": said["data"]}, find_state_dict(content, file), repr(path))
        try:
            net = NCSNpp(said["model"], said["data"])
            usual = _usual(said["model"], said["data"], said.get("training", {}), net)
        except UserError as error:
            raise UserError(f"{path!r}: {error}") from None
        fill(net, _averaged(content, net, file), file, ignore=("sigmas",))
        common = {key: value for key, value in said.items() if key in COMMON}
        self._become(net, common, usual, file, (net.channels, None, None), 2 ** (net.levels - 1))

    @classmethod
    def opens(cls, path: Path) -> bool:
        return holds_names(path, "all_modules.0.")


def _usual(model: dict[str, Any], data: dict[str, Any], training: dict[str, Any], net: NCSNpp) -> dict[str, Any]:
    """The coordinates that follow from the kind of stochastic differential equation."""
    kind = str(training.get("sde", "vesde" if net.fourier else "vpsde")).lower()
    continuous = bool(training.get("continuous", True))
    usual: dict[str, Any] = {"network_range": (-1.0, 1.0) if net.centered else (0.0, 1.0)}
    if kind == "vesde":
        if not (net.fourier and continuous):
            raise UserError("only continuous VE networks are read (training.continuous, embedding_type 'fourier')")
        # Without scale_by_sigma it is the loss that was scaled, and the network still predicts the score.
        low, high = float(model.get("sigma_min", 0.01)), float(model.get("sigma_max", 50.0))
        return usual | {"parametrisation": "score", "sigma_min": low, "sigma_max": high}
    if kind != "vpsde":
        raise UserError(f"training.sde = {kind!r} is not read; known: 'vesde', 'vpsde'")
    low, high = float(model.get("beta_min", 0.1)), float(model.get("beta_max", 20.0))
    if continuous:
        schedule: dict[str, Any] = {"name": "vp-sde", "beta_min": low, "beta_max": high, "t_min": 1e-3}
    else:
        steps = int(model.get("num_scales", 1000))
        schedule = {"name": "linear", "steps": steps, "beta_start": low / steps, "beta_end": high / steps}
    return usual | {"parametrisation": "epsilon", "schedule": schedule}


def _averaged(content: Any, net: nn.Module, path: Path) -> dict[str, Tensor]:
    """The state dict, with the trained weights replaced by their running means (a list, in order) where these are kept."""
    weights = plain_weights(find_state_dict(content, path))
    ema = content.get("ema") if isinstance(content, Mapping) else None
    means = ema.get("shadow_params") if isinstance(ema, Mapping) else ema
    if not isinstance(means, Sequence) or not len(means):
        return weights
    frozen = {f"{n}.{p}" for n, m in net.named_modules() if isinstance(m, UNTRAINED) for p, _ in m.named_parameters()}
    # The file's own order is that in which its trainer listed the parameters.
    parameters = {n for n, _ in net.named_parameters()}
    trained = [n for n in weights if n in parameters and n not in frozen]
    if len(trained) != len(means) or any(weights[n].shape != m.shape for n, m in zip(trained, means, strict=False)):
        raise UserError(
            f"{str(path)!r}: its {len(means)} running means (ema) do not fit the {len(trained)} trained weights; save the "
            "averaged state dict alone"
        )
    return weights | {n: m.float() for n, m in zip(trained, means, strict=True)}
