"""What every prior read from a foreign checkpoint shares: its side file, its coordinates, and the registry's two doors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from invsolve.errors import UserError
from invsolve.networks.coordinates import Coordinates, first_output
from invsolve.networks.network_prior import NetworkPrior
from invsolve.networks.vp import as_schedule

#: Keys of a side file that every format knows; each is an argument of `invsolve.prior_from`.
COORDINATES = ("parametrisation", "schedule", "sigma_data", "label", "time_scale", "integer_times")
COMMON = (*COORDINATES, "sigma_min", "sigma_max", "network_range", "data_range", "unit", "source", "event_shape")


class CheckpointPrior(NetworkPrior):
    """A prior whose network comes out of a file; formats subclass this and give it an __init__ with `path` first."""

    def _become(
        self,
        net: nn.Module | Callable[[Tensor, Tensor], Any],
        said: dict[str, Any],
        usual: dict[str, Any],
        path: Path,
        event_shape: tuple[int | None, ...],
        multiple: int,
    ) -> None:
        """Set up from what was said (side file and parameters, None for not said) and else from what is usual."""
        choice = usual | {key: value for key, value in said.items() if value is not None}
        options: dict[str, Any] = {key: choice[key] for key in COORDINATES if choice.get(key) is not None}
        if "schedule" in options:
            options["schedule"] = as_schedule(options["schedule"])
        if "parametrisation" not in options:
            raise UserError(f"{str(path)!r}: nothing says what the network predicts; give parametrisation=")
        try:
            NetworkPrior.__init__(
                self,
                net,
                Coordinates(**options),
                event_shape=tuple(choice.get("event_shape") or event_shape),
                data_range=_pair(choice.get("data_range"), "data_range"),
                unit=choice.get("unit") or "",
                network_range=_pair(choice.get("network_range"), "network_range") or (-1.0, 1.0),
                sigma_min=choice.get("sigma_min"),
                sigma_max=choice.get("sigma_max"),
                multiple=multiple,
                source=choice.get("source") or str(path),
            )
        except UserError as error:
            raise UserError(f"{str(path)!r}: {error}") from None

    @classmethod
    def load(cls, path: Path) -> Self:
        prior = cls(str(path))  # type: ignore[arg-type, call-arg]
        prior.name = path.name
        prior.parameters_given = {"path": str(path)}
        return prior


class Negated(nn.Module):
    """A network that predicts minus what its parametrisation says."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return -first_output(self.net(x, label), x)


def drop_schedule(usual: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """`usual` without its schedule when the file says that the network is one of those that have none."""
    if said.get("parametrisation") in ("edm", "flow", "flow-to-data", "denoiser"):
        return {key: value for key, value in usual.items() if key != "schedule"}
    return usual


def _pair(value: Any, name: str) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise UserError(f"{name} must be a pair (low, high), got {value!r}")
    return float(value[0]), float(value[1])
