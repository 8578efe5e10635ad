"""`reconstruct`: samples of the image given what was measured, from Python."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from invsolve import engine
from invsolve.api import choice, closing, discrepancy
from invsolve.api.inputs import as_rows, resolve_noise, resolve_operator
from invsolve.api.planning import execute, plan
from invsolve.api.provenance import provenance
from invsolve.contracts.measurement import Measurement
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.contracts.prior import Prior
from invsolve.contracts.result import Reconstruction
from invsolve.contracts.strategy import Strategy
from invsolve.engine.options import Keywords, make_options, with_options


@with_options
def reconstruct(
    y: Tensor | np.ndarray | Measurement,
    operator: Operator | str | None = None,
    prior: Prior | str | Path | None = None,
    *,
    noise: Noise | str | None = None,
    strategy: Strategy | str = choice.AUTO,
    callback: engine.Callback | None = None,
    progress: bool | None = None,
    **options: Unpack[Keywords],
) -> Reconstruction:
    """Draw samples of the image given what was measured.

    Args:
        y: measurements (N, *measurement), in the instrument's units.
        operator: an Operator, or the name of one that needs no parameters; a Measurement brings its own.
        prior: a Prior, a registered name or a checkpoint file; not needed by strategies such as "tv".
        noise: how y scatters: an `invsolve.Noise`, such as `Gaussian(sigma)`, or text such as "gaussian:0.01".
        strategy: a Strategy or the name of one with its default parameters. "auto" is "mmps" where prior and operator can
            be differentiated (a linear operator with Gaussian noise always can), else "red-diff", with a warning.
        callback: called with a `StepInfo` after each step; return True to end the batch early.
        progress: a bar on the terminal; None shows it only where standard error is a terminal.
        **options: samples, seed, device and the rest, as `invsolve.engine.Options` says.

    Returns:
        Reconstruction: mean, std (N, C, *spatial), samples (N, S, C, *spatial), diagnostics, provenance.

    Raises:
        UserError: the parts do not fit one another; the message says how to mend it.
        NonFinite: a chain diverged; says at which step and the likely cause.

    Warns:
        DiscrepancyWarning: the samples' residual does not fit the noise; says what to change.
    """
    chosen = make_options(options, "reconstruct")
    # Gradients are needed, also by a caller who needs none.
    with torch.inference_mode(False):
        if isinstance(y, Measurement):
            measurement = y if noise is None else replace(y, noise=resolve_noise(noise))
            if isinstance(measurement.y, np.ndarray | Tensor):
                measurement = replace(measurement, y=as_rows(measurement.y, "y"))
        else:
            measurement = Measurement(as_rows(y, "y"), resolve_operator(operator), resolve_noise(noise))
        run = plan(measurement, prior, strategy, chosen)
        run.callback = callback
        sink = Memory(len(measurement.y))
        execute(run, sink, progress)
        diagnostics = sink.diagnostics()
        report = discrepancy.examine(diagnostics, run)
        result = Reconstruction(
            mean=sink.stack("mean"),
            std=sink.stack("std"),
            samples=sink.stack("samples"),
            diagnostics=diagnostics
            | {"discrepancy_report": str(report), "remarks": closing.remarks(diagnostics, run.strategy)},
            provenance=provenance(run),
        )
    groups = closing.modes(diagnostics, run.strategy) if run.strategy.unimodal else ""
    if groups:
        warnings.warn(groups, stacklevel=2)
    if report.warning:
        warnings.warn(report.warning, discrepancy.DiscrepancyWarning, stacklevel=2)
    return result


class Memory:
    """A sink that keeps everything, for runs from Python."""

    def __init__(self, items: int) -> None:
        self.arrays: list[Mapping[str, Tensor] | None] = [None] * items
        self.facts: list[Mapping[str, float]] = [{}] * items

    def is_done(self, item: int) -> bool:
        return self.arrays[item] is not None

    def write(self, item: int, arrays: Mapping[str, Tensor], facts: Mapping[str, float]) -> None:
        self.arrays[item], self.facts[item] = arrays, facts

    def stack(self, name: str) -> Tensor:
        return torch.stack([a[name] for a in self.arrays if a is not None])

    def diagnostics(self) -> dict[str, Any]:
        first = next(a for a in self.arrays if a is not None)
        arrays = {name: self.stack(name) for name in first if name not in ("mean", "std", "samples")}
        return arrays | {name: [f[name] for f in self.facts] for name in self.facts[0]}
