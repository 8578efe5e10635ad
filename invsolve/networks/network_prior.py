"""A prior made of any raw network: its coordinates, its own value range, its padding, brought to D(x, sigma)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invsolve.contracts.prior import Prior
from invsolve.errors import UserError
from invsolve.networks.coordinates import Coordinates, first_output
from invsolve.networks.vp import Schedule, as_schedule


class NetworkPrior(Prior):
    """A network `net(input, label)` in the coordinates that it was trained in, as a denoiser.

    Args:
        net: called with its input (B, C, *spatial) and a label (B,), as `coordinates` say; returns its prediction.
        coordinates: what it is fed and what it predicts.
        event_shape: (C, *spatial), None where the size is free.
        data_range: physical values of network -1 and +1; None when network units are the physical units.
        unit: physical unit of the images.
        network_range: the values by which the raw network itself stands for network -1 and +1: (-1, 1) for most, (0, 1) for
            those trained on images between 0 and 1.
        sigma_min, sigma_max: noise levels that the network was trained for, in its own units (those of `network_range`).
            None: what follows from the coordinates.
        multiple: sizes are extended by reflection to a multiple of this before the network, and cropped after.
        source: where it came from.

    Raises:
        UserError: the noise levels are neither given nor to be had from the coordinates, or an empty range.
    """

    examples: ClassVar[tuple[dict[str, Any], ...]] = ()
    tileable = True

    def __init__(
        self,
        net: nn.Module | Callable[[Tensor, Tensor], Any],
        coordinates: Coordinates,
        event_shape: tuple[int | None, ...] = (1, None, None),
        data_range: tuple[float, float] | None = None,
        unit: str = "",
        network_range: tuple[float, float] = (-1.0, 1.0),
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        multiple: int = 1,
        source: str = "",
    ) -> None:
        super().__init__()
        low, high = network_range
        if not high > low:
            raise UserError(f"network_range must be (low, high) with low < high, got {network_range}")
        usual = coordinates.sigma_range()
        if usual is None and (sigma_min is None or sigma_max is None):
            raise UserError(
                f"parametrisation {coordinates.parametrisation!r} without a schedule: give sigma_min= and sigma_max=, the "
                "noise levels that the network was trained for, in the units of its input"
            )
        least, most = usual or (math.nan, math.nan)
        self.network_range = (float(low), float(high))
        self.sigma_min = (least if sigma_min is None else sigma_min) * 2 / (high - low)
        self.sigma_max = (most if sigma_max is None else sigma_max) * 2 / (high - low)
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise UserError(f"sigma_min and sigma_max must be 0 < min < max, got {sigma_min} and {sigma_max}")
        self.net = net
        self.coordinates = coordinates
        self.event_shape = tuple(event_shape)
        self.data_range = (float(data_range[0]), float(data_range[1])) if data_range else None
        self.unit = unit
        self.multiple = multiple
        self.source = source
        if isinstance(net, nn.Module):
            self.eval()

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.to(x.dtype).expand(len(x))
        out = self.raw_output(self.coordinates, self.network_range, x, level)
        return self.denoised(self.coordinates, self.network_range, x, level, out)

    def fingerprint(self) -> str:
        """SHA-256 of class, parameters and weights, and of how the network is read."""
        schedule = self.coordinates.schedule
        digest = hashlib.sha256(f"{super().fingerprint()}{self.coordinates}{self.network_range}".encode())
        if schedule is not None:
            digest.update(schedule.alpha_bar.tobytes() + schedule.times.tobytes())
        return digest.hexdigest()

    def raw_output(
        self, coordinates: Coordinates, network_range: tuple[float, float], x: Tensor, sigma: Tensor
    ) -> Tensor:
        """What the network returns, in the dtype of x, if these are its coordinates and range; sigma (B,)."""
        inner, level = _to_range(network_range, x, sigma)
        return self._run(*coordinates.feed(inner, level)).to(x.dtype)

    def denoised(
        self, coordinates: Coordinates, network_range: tuple[float, float], x: Tensor, sigma: Tensor, out: Tensor
    ) -> Tensor:
        """D(x, sigma) from what `raw_output` returned; apart from it, so that the self-test may read one output many ways."""
        low, high = network_range
        inner = coordinates.denoised(*_to_range(network_range, x, sigma), out)
        return inner if (low, high) == (-1.0, 1.0) else (2 * inner - (low + high)) / (high - low)

    def _run(self, fed: Tensor, label: Tensor) -> Tensor:
        """Call the network in its own precision, with sizes that it can take."""
        dtype = self._precision(fed)
        if label.is_floating_point():
            # Half precision cannot tell timestep 998 from 999.
            label = label.to(dtype if dtype.itemsize > 2 else torch.float32)
        sizes = fed.shape[2:]
        missing = [-size % self.multiple for size in sizes]
        inside = fed.to(dtype)
        if any(missing):
            pad = [amount for size in reversed(missing) for amount in (0, size)]
            inside = F.pad(inside, pad, mode="reflect" if self._reflects(sizes, missing) else "replicate")
        out = first_output(self.net(inside, label), inside)
        for axis, size in enumerate(sizes, start=2):
            out = out.narrow(axis, 0, size)
        return out

    @staticmethod
    def _reflects(sizes: torch.Size, missing: list[int]) -> bool:
        return all(more < size for more, size in zip(missing, sizes, strict=True))

    def _precision(self, x: Tensor) -> torch.dtype:
        if isinstance(self.net, nn.Module):
            for value in self.net.parameters():
                if value.is_floating_point():
                    return value.dtype
        return x.dtype


def _to_range(network_range: tuple[float, float], x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """x and sigma in the values of the raw network."""
    low, high = network_range
    if (low, high) == (-1.0, 1.0):
        return x, sigma
    return (low + high) / 2 + (high - low) / 2 * x, (high - low) / 2 * sigma


def prior_from(
    module: nn.Module | Callable[[Tensor, Tensor], Any],
    parametrisation: str,
    *,
    event_shape: tuple[int | None, ...] = (1, None, None),
    schedule: Schedule | str | Mapping[str, Any] | Sequence[float] | Tensor | None = None,
    sigma_data: float = 0.5,
    data_range: tuple[float, float] | None = None,
    unit: str = "",
    network_range: tuple[float, float] = (-1.0, 1.0),
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    label: str | Callable[[Tensor], Tensor] | None = None,
    time_scale: float = 1.0,
    integer_times: bool = False,
    multiple: int = 1,
    source: str = "",
) -> Prior:
    """Make a prior of a network or function of your own, `module(input, label)`.

    Args:
        module: called with its input (B, C, *spatial) and a label (B,): the timestep of a network with a schedule, else sigma
            or what `label` says. Returns its prediction: a tensor, a tuple that starts with it, or an object with `.sample`.
            Of 2 C channels (learned variances) the first C are taken.
        parametrisation: what it predicts: "epsilon", "v", "sample", "score", "edm", "flow", "flow-to-data" or "denoiser"
            (`invsolve.contracts.parametrisation.PARAMETRISATIONS` says what each means).
        event_shape: (C, *spatial) of an image, None where the size is free; by default grey images of any size.
        schedule: of a VP network: "linear", "scaled_linear", "cosine", "sigmoid", "vp-sde", a mapping such as
            {"name": "linear", "steps": 1000, "beta_end": 0.02} or {"betas": [...]}, or alpha_bar (T,) itself.
        sigma_data: of "edm".
        data_range: physical values of network -1 and +1; None when network units are the physical units.
        unit: physical unit of the images.
        network_range: the values of the raw network for network -1 and +1, (0, 1) for networks of images between 0 and 1.
        sigma_min, sigma_max: noise levels that it was trained for, in its own units; needed for VE networks only.
        label: what a network without schedule is told of sigma, if not the usual: "sigma", "log_sigma", "log_sigma/4",
            "log(sigma/2)", "t", "1-t", or a function of sigma (B,).
        time_scale: the label is multiplied by this, such as 1000 for flow networks that count timesteps.
        integer_times: feed the nearest integer timestep.
        multiple: image sizes are extended by reflection to a multiple of this, and cropped after.
        source: where it came from, for the record.

    Raises:
        UserError: the parts contradict one another. Whether they fit the network, `self_test` of the result tells.
    """
    steps = None if schedule is None else as_schedule(schedule)
    coordinates = Coordinates(parametrisation, steps, sigma_data, label, time_scale, integer_times)
    return NetworkPrior(
        module, coordinates, event_shape, data_range, unit, network_range, sigma_min, sigma_max, multiple, source
    )
