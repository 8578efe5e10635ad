"""Networks trained with EDM's code (Karras 2022), as state dicts with an optional JSON side file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from invsolve.contracts.paper import Paper
from invsolve.errors import UserError
from invsolve.plugins.priors._checkpoint import COMMON, CheckpointPrior, Negated
from invsolve.plugins.priors._weights import fill, holds_names, read_side_file, read_weights
from invsolve.plugins.priors.nets.edm_unet import EdmUNet

#: Coordinates of each preconditioning of the paper, table 1.
PRECONDITIONINGS: dict[str, dict[str, Any]] = {
    "edm": {"parametrisation": "edm", "sigma_data": 0.5},
    # VE has c_out = +sigma there: the network, told ln(sigma / 2), predicts minus the noise.
    "ve": {"parametrisation": "epsilon", "label": "log(sigma/2)", "sigma_min": 0.02, "sigma_max": 100.0},
    "vp": {"parametrisation": "epsilon", "schedule": {"name": "vp-sde", "time_scale": 999.0}},
}


class EdmPrior(CheckpointPrior):
    """A checkpoint of EDM (Karras 2022).

    A SongUNet or DhariwalUNet, unconditional, in EDM's, VP or VE preconditioning.

    The published .pkl checkpoints hold pickled classes and are refused; docs/priors.md has the script that saves their weights.
    Augmentation labels, which sampling never uses, are left aside.

    Args:
        path: the state dict of the preconditioned network (names `model.enc...`) or of the bare one: .pt or .safetensors.
        config: JSON side file with keys such as precond, sigma_data, data_range; default the checkpoint's name with .json.
        precond: "edm", "vp" or "ve"; default what the side file says, else "edm".
        data_range: physical values of network -1 and +1.
        unit: physical unit of the images.

    Raises:
        UserError: a class-conditional network, weights that do not fit, or a file that would run code.
    """

    name = "edm"
    paper = Paper(
        "Elucidating the Design Space of Diffusion-Based Generative Models",
        ("Tero Karras", "Miika Aittala", "Timo Aila", "Samuli Laine"),
        2022,
        "arXiv:2206.00364",
    )

    def __init__(
        self,
        path: str,
        config: str | None = None,
        precond: Literal["edm", "vp", "ve"] | None = None,
        data_range: tuple[float, float] | None = None,
        unit: str | None = None,
    ) -> None:
        file = Path(path)
        said = read_side_file(file, config, (*COMMON, "precond"), "edm")
        given = {"precond": precond, "data_range": data_range, "unit": unit}
        said |= {key: value for key, value in given.items() if value is not None}
        kind = str(said.pop("precond", "edm")).lower().removesuffix("precond")
        if kind not in PRECONDITIONINGS:
            raise UserError(f"{path!r}: precond {kind!r} is not read; known: {', '.join(PRECONDITIONINGS)}")
        weights = read_weights(file)
        if not any(name.startswith("map_layer0.") for name in weights):
            weights = {n.removeprefix("model."): v for n, v in weights.items() if n.startswith("model.")}
        if not {"map_layer0.weight", "map_layer1.weight"} <= set(weights):
            raise UserError(f"{path!r} is no state dict of an EDM network: 'map_layer0.weight' is missing")
        try:
            net = EdmUNet(weights)
        except (UserError, KeyError) as error:
            raise UserError(f"{path!r}: {error}") from None
        fill(net, weights, file, ignore=("map_augment.",))
        shape = (net.channels, None, None)
        raw = Negated(net) if kind == "ve" else net
        self._become(raw, said, PRECONDITIONINGS[kind], file, shape, 2 ** (net.levels - 1))

    @classmethod
    def opens(cls, path: Path) -> bool:
        return holds_names(path, "map_layer0.weight", "dec.")
