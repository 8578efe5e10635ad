"""The functions that users call: operator, strategy, load_prior, simulate, reconstruct."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve import choice, discrepancy, engine, fit, prior_check, registry, volume
from invsolve.contracts.layout import Layout, Measurement, Sink
from invsolve.contracts.network_prior import NetworkPrior
from invsolve.contracts.noise import Noise
from invsolve.contracts.operator import Operator
from invsolve.contracts.prior import Prior, is_error_curve
from invsolve.contracts.random import ChainRandom
from invsolve.contracts.result import Reconstruction
from invsolve.contracts.scale import Scale
from invsolve.contracts.strategy import Strategy
from invsolve.errors import UserError, suggestion
from invsolve.needs import check_needs
from invsolve.parameters import build, parameters
from invsolve.provenance import provenance


def _make_operator(name: str, given: dict[str, Any]) -> Operator:
    return operator(name, **given)


# Layouts may import no registry; this is how they come by the operator that a file names.
Layout.make_operator = staticmethod(_make_operator)


def operator(name: str, **parameters_: Any) -> Operator:
    """Make a registered operator, such as `operator("ct", image_size=128, angles=60)`.

    Raises:
        UserError: unknown name or parameter, or a value of the wrong type.
    """
    return build(registry.find("operator", name), "operator", name, parameters_)


def strategy(name: str, **parameters_: Any) -> Strategy:
    """Make a registered strategy, such as `strategy("dps", steps=200)`.

    Raises:
        UserError: unknown name or parameter, or a value of the wrong type.
    """
    return build(registry.find("strategy", name), "strategy", name, parameters_)


def load_prior(name: str | Path, *, self_test: bool = True, **parameters_: Any) -> Prior:
    """Load a prior by registered name, or from a checkpoint file. Never runs code from the file.

    Args:
        name: a registered name, with its parameters, or a file or folder that a registered format opens.
        self_test: let a network of a foreign format denoise reference images first (a second or more), and warn where it
            seems to be read otherwise than it was trained; `invsolve.self_test` tells more.
        parameters_: of the registered prior; with a file, of its format, such as `num_head_channels=32`.

    Raises:
        UserError: neither a known name nor a file that a registered format opens.
    """
    prior = _load_prior(name, parameters_)
    if self_test and isinstance(prior, NetworkPrior):
        report = prior_check.self_test(prior)
        if not report:
            warnings.warn(f"{str(name)!r}: {report}", prior_check.PriorWarning, stacklevel=2)
    return prior


def _load_prior(name: str | Path, parameters_: dict[str, Any]) -> Prior:
    known = registry.available("prior")
    if str(name) in known:
        return build(known[str(name)], "prior", str(name), parameters_)
    path = Path(name)
    if not path.exists():
        raise UserError(f"unknown prior {str(name)!r}, and no file of that name.{suggestion(str(name), known)}")
    for kind, cls in known.items():
        if cls.opens(path):  # type: ignore[attr-defined]
            if parameters_:
                return _with_error_curve(build(cls, "prior", kind, {"path": str(path), **parameters_}), path)
            return _with_error_curve(cls.load(path), path)  # type: ignore[attr-defined]
    raise UserError(
        f"{str(name)!r} is no checkpoint that a registered prior opens; invsolve's own are .safetensors with a header. "
        "Pickled modules (.pkl, whole .pt objects) are refused because loading them runs code: save the state dict instead "
        "(docs/priors.md says how, and which other formats are read)"
    )


def _with_error_curve(prior: Prior, path: Path) -> Prior:
    """Take over the curve that `invsolve prior calibrate` wrote beside a foreign checkpoint, if there is one."""
    beside = path.with_name(f"{path.name}.error_curve.json")
    if beside.is_file():
        try:
            curve = json.loads(beside.read_text(encoding="utf-8"))["error_curve"]
        except (OSError, ValueError, KeyError, TypeError):
            curve = None
        if not is_error_curve(curve):
            raise UserError(f"{beside}: is no error curve; remove it, or write it again with invsolve prior calibrate")
        prior.error_curve = curve
    return prior


def simulate(
    truth: Tensor | np.ndarray, operator: Operator | str, noise: Noise, seed: int = 0, *, first: int = 0
) -> Tensor:
    """Measure known images: y = A(truth) + noise.

    Args:
        truth: (N, C, *spatial), physical units; for complex operators complex with one channel, or real with one
            channel (real part) or two (real and imaginary part).
        operator: an Operator, or the name of one that needs no parameters.
        noise: `Gaussian(sigma)` or `Poisson(gain)`.
        seed: the noise of item i depends on (seed, i) alone.
        first: the number of the first item, where `truth` is a part of more.

    Returns:
        y (N, *measurement), float32 (complex64 for complex operators); zero where nothing is measured.
    """
    images = _tensor(truth, "truth")
    images = images.to(torch.complex64 if images.is_complex() else torch.float32)
    forward = resolve_operator(operator)
    if forward.complex_image and not images.is_complex():
        imaginary = images[:, 1:] if images.shape[1] == 2 else torch.zeros_like(images[:, :1])
        images = torch.complex(images[:, :1], imaginary)
    if forward.image_shape is not None and tuple(images.shape[1:]) != tuple(forward.image_shape):
        raise UserError(
            f"truth has images (channels, *size) of {tuple(truth.shape[1:])}, but the operator measures "
            f"{tuple(forward.image_shape)}; truth must be (items, channels, *size)"
        )
    measured = forward.measured()
    rows = []
    with torch.no_grad():
        for item in range(len(images)):
            # Keyed apart from the samplers' draws, so that a run with the same seed never reuses the noise it fights.
            noisy = noise.sample(forward(images[item : item + 1]), ChainRandom(seed, [(first + item, 2**32 - 2)]))
            rows.append(noisy if measured is None else noisy * measured)
    return torch.cat(rows)


def reconstruct(
    y: Tensor | np.ndarray | Measurement,
    operator: Operator | str | None = None,
    prior: Prior | str | Path | None = None,
    *,
    noise: Noise | None = None,
    strategy: Strategy | str = choice.AUTO,
    samples: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    scale: Scale | tuple[float, float] | str | None = None,
    coherence: float = 0.0,
    slicings: int = 1,
    precision: str = "float32",
    callback: engine.Callback | None = None,
    progress: bool | None = None,
) -> Reconstruction:
    """Draw samples of the image given what was measured.

    Args:
        y: measurements (N, *measurement), in the instrument's units.
        operator: an Operator, or the name of one that needs no parameters; a Measurement brings its own.
        prior: a Prior, a registered name or a checkpoint file; not needed by strategies such as "tv".
        noise: how y scatters, `Gaussian(sigma)` or `Poisson(gain)`.
        strategy: a Strategy or the name of one with its default parameters. "auto" is "moment" where prior and operator can
            be differentiated (a linear operator with Gaussian noise always can), else "red-diff", with a warning.
        samples: S, samples an item.
        seed: a sample depends on (inputs, prior, parameters, seed, item, sample) alone.
        batch_size: chains, or slices of a volume, that go through the network at once; memory grows with it. Default 8, on
            a GPU 16.
        device: "cpu", "cuda", "cuda:1", ...
        dtype: precision of operators and states.
        scale: how network units map to physical ones: a (low, high) pair or a Scale; "auto" estimates it from the data;
            None takes the prior's own data range.
        coherence: how alike the noise of neighbouring items is, so that slices sampled one by one do not flicker: the width,
            in items, of a Gaussian window; 0 not at all, infinite the same noise for all.
        slicings: 3 lets the prior denoise a volume's slices along all three axes and averages the estimates, at three times
            the network calls; for strategies that couple slices, and operators of volumes. Voxels should be cubes.
        precision: "bf16" lets the network calculate in bfloat16, faster where the hardware has it; the rest stays in `dtype`.
        callback: called with a `StepInfo` after each step; return True to end the batch early.
        progress: a bar on the terminal; None shows it only where standard error is a terminal.

    Returns:
        Reconstruction: mean, std (N, C, *spatial), samples (N, S, C, *spatial), diagnostics, provenance.

    Raises:
        UserError: the parts do not fit one another; the message says how to mend it.
        NonFinite: a chain diverged; says at which step and the likely cause.

    Warns:
        DiscrepancyWarning: the samples' residual does not fit the noise; says what to change.
    """
    if isinstance(y, Measurement):
        measurement = y if noise is None else replace(y, noise=noise)
    else:
        measurement = Measurement(_tensor(y, "y"), resolve_operator(operator), noise)
    run = plan(
        measurement,
        prior,
        strategy,
        samples,
        seed,
        batch_size,
        device,
        dtype,
        scale,
        None,
        coherence,
        slicings,
        precision,
    )
    run.callback = callback
    sink = Memory(len(measurement.y))
    execute(run, sink, progress)
    diagnostics = sink.diagnostics()
    found = discrepancy.examine(diagnostics["discrepancy"], diagnostics["discrepancy_numbers"], run)
    if found.warning:
        warnings.warn(found.warning, discrepancy.DiscrepancyWarning, stacklevel=2)
    return Reconstruction(
        mean=sink.stack("mean"),
        std=sink.stack("std"),
        samples=sink.stack("samples"),
        diagnostics=diagnostics | {"discrepancy_report": str(found)},
        provenance=provenance(run),
    )


def plan(
    measurement: Measurement,
    prior: Prior | str | Path | None,
    strategy_: Strategy | str,
    samples: int,
    seed: int,
    batch_size: int | None,
    device: str | torch.device,
    dtype: torch.dtype = torch.float32,
    scale: Scale | tuple[float, float] | str | None = None,
    parameters_: Mapping[str, Any] | None = None,
    coherence: float = 0.0,
    slicings: int = 1,
    precision: str = "float32",
) -> engine.Run:
    """Put the parts of a run together and check that they fit, before anything is computed or written.

    Args:
        parameters_: of the strategy, where `strategy_` is a name.
    """
    if samples < 1:
        raise UserError(f"samples must be at least 1, got {samples}")
    if seed < 0:
        raise UserError(f"seed must be at least 0, got {seed}")
    if not coherence >= 0:
        raise UserError(f"coherence must be 0 (every item its own noise) or more, got {coherence}")
    if precision not in ("float32", "bf16"):
        raise UserError(f"precision must be float32 or bf16, got {precision!r}")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    if measurement.noise is None:
        raise UserError(
            "the noise is not known: give noise=, such as Gaussian(0.01) (command line: --noise gaussian:0.01)"
        )
    place = resolve_device(device)
    given = dict(parameters_ or {})
    automatic = strategy_ == choice.AUTO
    if isinstance(strategy_, str):
        # What "auto" stands for is known only once there is a problem.
        chosen = strategy(choice.PREFERENCE[0]) if automatic else strategy(strategy_, **given)
    else:
        chosen = strategy_
    knowledge = load_prior(prior) if isinstance(prior, str | Path) else prior
    forward = measurement.operator.to(place)
    rows = batch_size or (16 if place.type == "cuda" else 8)
    if knowledge is not None:
        knowledge.requires_grad_(False).eval().to(place)
        knowledge = volume.for_images(knowledge, forward, rows, place, slicings)
    shape = fit.image_shape(measurement, knowledge)
    fit.check_measurement(measurement, shape)
    run = engine.Run(
        measurement,
        knowledge,
        chosen,
        shape,
        Scale(),
        samples,
        seed,
        rows,
        place,
        dtype,
        coherence=coherence,
        slicings=slicings,
        precision=precision,
    )
    if automatic:
        run.strategy = chosen = strategy(choice.default_strategy(run.problem([(0, 0)])), **given)
    named = chosen.name or type(chosen).__name__
    if precision == "bf16" and not (knowledge and any(True for _ in knowledge.parameters())):
        raise UserError("precision=bf16 is for network priors; this run has no network: leave it out")
    volume.check_slicings(slicings, knowledge, shape, run.couples_items, named)
    if run.couples_items:
        volume.volumes_of(measurement)
        if measurement.operators is not None:
            raise UserError(
                f"strategy {named!r} couples the slices of a volume, which must share one "
                "operator; here each has its own (coil maps, say): take a strategy that takes slices one by one, such as dds"
            )
    check_needs(chosen, run.problem([(0, s) for s in range(samples if chosen.couples_samples else 1)]))
    run.scale = fit.choose_scale(measurement, forward, knowledge, scale, shape, place, dtype)
    return run


def execute(run: engine.Run, sink: Sink, progress: bool | None = None) -> None:
    """Run with a progress bar: items, step, residual against its expected value, time left."""
    from invsolve.progress import Bar

    with Bar(run, sink, disable=None if progress is None else not progress):
        run.execute(sink)


def resolve_operator(given: Operator | str | None) -> Operator:
    """An operator, from itself or from its name."""
    if isinstance(given, str):
        return operator(given)
    if not isinstance(given, Operator):
        raise UserError(f"operator must be an invsolve.Operator or a name, got {type(given).__name__}")
    return given


def fill_image_size(name: str, given: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Add `image_size` to an operator's parameters where it takes one and none is given."""
    takes = {p.name for p in parameters(registry.find("operator", name))}
    missing = "image_size" in takes and "image_size" not in given and "mask" not in given
    return {**given, "image_size": size} if missing else dict(given)


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


def _tensor(value: Any, name: str) -> Tensor:
    array = torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
    if not isinstance(array, Tensor) or array.ndim < 2:
        raise UserError(
            f"{name} must be a tensor or array with the items along its first axis, got {type(value).__name__}"
        )
    return array


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of this name, once it has proved to work here."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return place
