"""A prior before its training: the network and the header that the settings ask for, and weights to begin with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

import invsolve
from invsolve import registry
from invsolve.contracts.prior import Prior
from invsolve.errors import UserError
from invsolve.networks.patches import POSITIONS
from invsolve.training import data
from invsolve.training.batches import SIGMA_MIN
from invsolve.training.patched import patches_of
from invsolve.training.settings import Settings

_NOISE_LABEL_SCALE = 250.0
#: Channels of each level of the fast network over the width that is set.
_FAST_WIDTHS = (2, 3, 4, 6)


def untrained(images: data.Images, settings: Settings, limits: tuple[float, float], record: Mapping[str, Any]) -> Prior:
    """An untrained prior for images, in training mode.

    Args:
        images: to train on.
        settings: of the network.
        limits: physical values of network -1 and +1.
        record: what the header says about the images.

    Raises:
        UserError: a network that these images cannot have.
    """
    channels, dimensions = images.shape[0], len(images.spatial)
    fast = settings.network == "fast"
    # Air is the lower end of magnitudes and of HU, and the middle where signs mean something.
    outside = 0.0 if limits[0] == -limits[1] else -1.0
    patches = patches_of(images, settings, outside, 2 ** (settings.levels - 1 + fast))
    network: dict[str, Any] = {
        "in_channels": channels + (POSITIONS if patches else 0),
        "out_channels": channels,
        "block_out_channels": [settings.width * (k + 1) for k in range(settings.levels)],
        "layers_per_block": settings.blocks,
        "norm_num_groups": 8,
        "dropout": settings.dropout,
    }
    if fast:
        if dimensions != 2:
            raise UserError(f"{images.where}: network 'fast' is for images; leave it out for {dimensions} dimensions")
        if settings.levels > len(_FAST_WIDTHS):
            raise UserError(f"training: network 'fast' has at most {len(_FAST_WIDTHS)} levels, got {settings.levels}")
        # Its finest level works on the folded image, so that the same width has twice as many channels.
        widths = [int(settings.width * part) for part in _FAST_WIDTHS[: settings.levels]]
        taken = ("in_channels", "out_channels", "dropout")
        config = {key: network[key] for key in taken} | {
            "block_out_channels": widths,
            "layers_per_block": 2 * settings.blocks,
        }
        architecture: dict[str, Any] = {"class": "FastUNet", "config": config}
    elif dimensions == 2:
        kinds = {
            "down_block_types": ["DownBlock2D"] * settings.levels,
            "up_block_types": ["UpBlock2D"] * settings.levels,
        }
        # Without attention the network is fully convolutional, and takes images of any size.
        architecture = {"class": "UNet2DModel", "config": network | kinds | {"add_attention": False}}
    else:
        architecture = {"class": "UNet", "config": network | {"dimensions": dimensions}}
    header = {
        "format": 1,
        "architecture": architecture,
        "parametrisation": "flow" if settings.kind == "flow" else "edm",
        "sigma_data": settings.sigma_data,
        "augmented": settings.augmented if settings.kind == "pfgm++" else None,
        "noise_label_scale": _NOISE_LABEL_SCALE,
        "sigma_min": SIGMA_MIN,
        "sigma_max": settings.sigma_max,
        "event_shape": [channels, *(patches.size if patches else [None] * dimensions)],
        "patch": patches.record() if patches else None,
        "data_range": list(limits),
        "unit": images.unit,
        "dtype": settings.store,
        "source": f"trained on {images.path.name} by invsolve {invsolve.__version__}",
        "training": {"settings": asdict(settings), "data": {**record, "file": images.path.name}},
    }
    torch.manual_seed(settings.seed)
    return _trainable().create(header)  # type: ignore[attr-defined]


def _trainable() -> type[Prior]:
    """The registered prior that can be made untrained."""
    for cls in registry.available("prior").values():
        if issubclass(cls, Prior) and cls.trainable:
            return cls
    raise UserError(
        "no registered prior can be trained: the plugin that brings one is broken or missing; install it again"
    )


def begin_with(prior: Prior, other: Prior, name: str | None, say: Callable[[str], None]) -> None:
    """Take over the weights of another prior wherever names and shapes agree.

    Raises:
        UserError: too little of it fits: another architecture.
    """
    theirs, mine = other.state_dict(), prior.state_dict()
    fitting = {k: v.clone() for k, v in theirs.items() if k in mine and v.shape == mine[k].shape}
    share = sum(v.numel() for v in fitting.values()) / sum(v.numel() for v in mine.values())
    if share < 0.5:
        raise UserError(
            f"start {name!r}: only {share:.0%} of the network's weights fit; give the width, levels and blocks of that prior"
        )
    prior.load_state_dict({**mine, **fitting})
    say(f"beginning with {share:.1%} of the weights of {name!r}")
