"""Result files for tests of reports, written as a run writes them, with numbers that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from invsolve.datasets import hdf5

CONFIG = {
    "strategy": {"name": "dps", "parameters": {"steps": 40, "zeta": 1.0}},
    "prior": {"name": "ct-128", "parameters": {}, "sha256": "ab" * 32, "source": "a test"},
    "operator": {"name": "inpainting", "parameters": {"fraction": 0.5}, "buffers_sha256": "0" * 64},
    "noise": {"name": "gaussian", "sigma": 2.0},
    "scale": {"factor": 1100.0, "offset": 100.0, "origin": "given"},
    "seed": 7,
    "config_sha256": "c" * 64,
    "command": "invsolve reconstruct scan.h5 -o recon.h5",
    "versions": {"invsolve": "0.1.0"},
}


def images(items: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Images (items, *shape) with a blob that wanders from item to item, in HU."""
    rng = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape[1:]), indexing="ij")
    blobs = []
    for item in range(items):
        centre = 0.5 * torch.cos(torch.tensor(item + 1.0))
        distance = torch.stack([(axis - centre).square() for axis in axes]).sum(0)
        blobs.append(900 * torch.exp(-8 * distance) - 800 + 10 * torch.randn(shape, generator=rng))
    return torch.stack(blobs)


def write_result(
    path: Path,
    items: int = 5,
    shape: tuple[int, ...] = (1, 48, 40),
    samples: int = 4,
    truth: bool = True,
    linear: bool = True,
    unit: str = "HU",
    config: dict[str, Any] | None = None,
    ratio: float = 1.0,
    done: int | None = None,
) -> Path:
    """Write a result whose samples scatter around the truth by 30; a partial one where fewer items are done."""
    rng = torch.Generator().manual_seed(1)
    target = images(items, shape)
    result = hdf5.ResultFile.create(path, items, samples, config or CONFIG, unit=unit)
    with result:
        for i in range(items if done is None else done):
            # Truth and samples are draws from one distribution, so the uncertainty is honest.
            centre = target[i] + 30 * torch.randn(shape, generator=rng)
            draws = centre + 30 * torch.randn((samples, *shape), generator=rng)
            arrays = {
                "mean": draws.mean(0),
                "std": draws.std(0) if samples > 1 else torch.zeros(shape),
                "samples": draws,
                "residual": torch.linspace(3, ratio, 12).repeat(samples, 1),
                "discrepancy": torch.full((samples,), ratio),
                "discrepancy_dof": torch.full((samples,), 960.0),
            }
            arrays |= {"truth": target[i]} if truth else {}
            arrays |= {"linear": 0.5 * target[i]} if linear else {}
            result.write(i, arrays, {"network_calls": 40.0, "seconds": 1.5})
        if done is None:
            return result.finish()
    return hdf5.partial_path(path)
