"""What a result must say about itself to be made again: versions, parameters, seed, scale, prior and its hash."""

from __future__ import annotations

import hashlib
import json
import platform
from typing import Any

import numpy as np
import torch
from torch import Tensor

import invsolve
from invsolve import registry
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.contracts.paper import papers_of
from invsolve.contracts.strategy import settings
from invsolve.engine.run import Run
from invsolve.errors import UserError


def plain(value: Any) -> Any:
    """Turn a parameter into JSON: arrays become their shape and hash."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.size <= 8:
            return value.tolist() if not np.iscomplexobj(value) else [str(v) for v in value.flat]
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return {"shape": list(value.shape), "sha256": digest}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)


def operator_record(operator: Operator) -> dict[str, Any]:
    """Name, parameters and a hash of the buffers (mask, kernel, coil maps)."""
    digest = hashlib.sha256()
    for name, buffer in sorted(operator.state_dict().items()):
        digest.update(name.encode())
        digest.update(buffer.cpu().contiguous().numpy().tobytes())
    return {
        "name": operator.name or type(operator).__name__,
        "parameters": plain(operator.parameters_given or {}),
        "buffers_sha256": digest.hexdigest(),
    }


def noise_record(noise: Noise) -> dict[str, Any]:
    """Name and parameters."""
    return {"name": noise.name or type(noise).__name__, **plain(noise.settings())}


def _coupled(run: Run) -> dict[str, Any]:
    """The slices that were a volume by themselves, where they are only some: others, and all, make other images of them."""
    if not run.couples_items or run.only is None or len(run.items) == len(run.measurement.y):
        return {}
    return {"slices": [run.items.start, run.items.stop]}


def provenance(run: Run) -> dict[str, Any]:
    """The record of a run. Everything that the samples depend on is under "config"; the rest is for information."""
    prior, noise = run.prior, run.measurement.noise
    strategy = run.strategy
    scale = {"factor": plain(run.scale.factor), "offset": plain(run.scale.offset), "origin": run.scale.origin}
    config = {
        "operator": operator_record(run.measurement.operator),
        "noise": noise_record(noise) if noise is not None else None,
        "prior": None
        if prior is None
        else {
            "name": prior.name or type(prior).__name__,
            "parameters": plain(prior.parameters_given or {}),
            "sha256": prior.fingerprint(),
            "source": prior.source,
        },
        "strategy": {"name": strategy.name or type(strategy).__name__, "parameters": plain(settings(strategy))},
        **run.options.record(scale=scale),
        "image_shape": list(run.image_shape),
        **_coupled(run),
        "input": {"fingerprint": run.measurement.fingerprint},
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    return {
        **config,
        "config_sha256": digest,
        # A run goes on only where these agree; what compares them need not know their names.
        "compared": list(config),
        # The name is not part of the configuration: a run goes on after its input was moved.
        "input": {"fingerprint": run.measurement.fingerprint, "file": run.measurement.source},
        "notes": run.measurement.notes,
        "doubt": run.doubt,
        "draws": strategy.draws,
        "papers": [
            paper.record() for thing in (strategy, run.measurement.operator, prior) for paper in papers_of(thing)
        ],
        "versions": {
            "invsolve": invsolve.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": platform.platform(),
        "device": str(run.device),
        "threads": torch.get_num_threads(),
    }


def scatters_like_posterior(config: dict[str, Any]) -> bool:
    """Whether the strategy of this record draws from the posterior, so that its spread is an uncertainty.

    False for point estimates, however often they were repeated. Records of before it was noted tell by the strategy's name;
    True where that is not known here.
    """
    if "draws" in config:
        return bool(config["draws"])
    try:
        strategy: Any = registry.find("strategy", config["strategy"]["name"])
        return bool(strategy.draws)
    except (KeyError, TypeError, UserError):
        return True
