"""The training job: from a file of images to a prior file that knows its units, its origin and its own error."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

import invsolve
from invsolve import api
from invsolve.api.sampling import draw
from invsolve.contracts.prior import Prior
from invsolve.contracts.scale import Scale
from invsolve.datasets.hdf5 import check_target, replace
from invsolve.errors import Interrupted, UserError
from invsolve.networks.gaussian_start import GaussianStart
from invsolve.training import data
from invsolve.training.batches import Batches, crop_size, held_out
from invsolve.training.early_phase import early_phase
from invsolve.training.error_curve import MEASURED, error_curve
from invsolve.training.limits import begin_limits, measure_limits
from invsolve.training.loop import Training
from invsolve.training.parallel import join
from invsolve.training.patched import source_of
from invsolve.training.phases import fixed_phases, turn
from invsolve.training.resident import make_batches
from invsolve.training.settings import Request, Settings, digest
from invsolve.training.sheet import sample_sheet
from invsolve.training.snapshot import LossCurve, read_snapshot, remove
from invsolve.training.split import Split, divide
from invsolve.training.untrained import begin_with, untrained

#: Held-out images of a validation during training, and of the sample sheet.
VALIDATED, SHOWN = 32, 8


def train_file(
    request: Request,
    say: Callable[[str], None] = lambda line: None,
    should_stop: Callable[[], bool] = lambda: False,
    command: str = "",
) -> dict[str, Any]:
    """Train a prior on a file of images; the same call goes on after a kill.

    Started by `torchrun` in several processes, these share each batch; the first writes, and is the only one to say
    anything. All must see the same files.

    Args:
        request: what to do.
        say: told one line at a time what was found and decided.
        should_stop: asked after each step; True writes a snapshot and ends.
        command: the command line, for the record.

    Returns:
        Facts for the user; empty on all processes but the first.

    Raises:
        UserError: bad data, or settings that do not fit them.
        Interrupted: when asked to stop.
        NonFinite: the loss became no number.
    """
    settings = request.settings
    _check_output(request)
    images = data.Images(request.images, settings)
    rows = images.select(settings.where)
    pool, note = data.examine(images, rows)
    low, high, origin = data.settle_range(images, pool, settings.range)
    split = divide(images, rows, settings)
    scale = Scale.from_range(low, high)
    team = join(request.device)
    if not team.leads:
        say = lambda line: None  # noqa: E731
    try:
        if settings.batch_size % team.world:
            raise UserError(f"batch_size {settings.batch_size} must be a multiple of the {team.world} processes")
        batches = make_batches(images, split.train, settings, scale, team.rank, team.world, team.device)
        record = _data_record(images, split, (low, high))
        other = api.load_prior(settings.start) if settings.start else None
        if other is not None:
            record["start"] = other.fingerprint()
        prior = untrained(images, settings, (low, high), record)
        begin_limits(prior, other)
        if other is not None:
            begin_with(prior, other, settings.start, say)
        config = settings.config(record)
        saved = read_snapshot(request.snapshot, config, request.overwrite)
        _explain(images, split, (low, high, origin), prior, note, settings, say)
        # Nobody may write before everybody has read.
        team.wait()
        measured = data.spread(split.validation, MEASURED)
        prepare = partial(prepared, scale=scale, settings=settings)
        seen = held_out(images, measured.tolist(), batches.size, prepare)
        few = seen[data.spread(torch.arange(len(seen)).numpy(), VALIDATED)]
        training = Training(prior, request, config, source_of(batches, prior), few, team)
        if saved is not None:
            training.restore(saved)
            of = f" of {settings.total}" if settings.total else ""
            say(f"continuing after step {training.step}{of}")
        curve = LossCurve(request.curve, training.step) if team.leads else None
        training.run(curve, should_stop)
        if not team.leads:
            return {}
        return _finish(training, batches, request, seen, prepare, images.complex, should_stop, say, command)
    finally:
        team.leave()


def _check_output(request: Request) -> None:
    check_target(request.out, request.images)
    if request.out.suffix != ".safetensors":
        raise UserError(f"{request.out}: a prior file ends in .safetensors; give it such a name")
    if request.out.exists() and not request.overwrite:
        raise UserError(f"{request.out} exists; give --overwrite to replace it")


def prepared(x: Tensor, scale: Scale, settings: Settings) -> Tensor:
    if settings.phase:
        x = turn(x, fixed_phases(len(x), tuple(x.shape[2:]), settings.phase, settings.seed))
    return scale.to_network(x.clamp(*scale.range) if settings.clip else x)


def _data_record(images: data.Images, split: Split, limits: tuple[float, float]) -> dict[str, Any]:
    """What the configuration and the header say about the images; no path, so that a moved file can be resumed from."""
    return {
        "fingerprint": images.fingerprint,
        "dataset": images.name,
        "shape": list(images.shape),
        "range": list(limits),
        "complex": images.complex,
        "split": split.record(),
    }


def _explain(
    images: data.Images,
    split: Split,
    limits: tuple[float, float, str],
    prior: Prior,
    note: str,
    settings: Settings,
    say: Callable[[str], None],
) -> None:
    low, high, origin = limits
    size = " x ".join(map(str, images.shape))
    unit = f" {images.unit}" if images.unit else ""
    say(f"{len(split.train)} images of {size} to train on, {len(split.validation)} held out ({split.kind})")
    say(f"network range -1 .. 1 is {low:g} .. {high:g}{unit} ({origin})")
    if note:
        say(note)
    if split.kind.startswith("a block"):
        say("held-out slices are of the same volume as the others: the error on other volumes will be larger")
    if not images.in_memory:
        say("the images are read from the file as they are needed; damage is found when it is met")
    crop = crop_size(images, settings)
    weights = sum(p.numel() for p in prior.parameters()) / 1e6
    shown = crop if settings.patch is None else (settings.patch, settings.patch)
    say(
        f"network of {weights:.2f} M weights, trained on {'patches of ' if settings.patch else ''}"
        f"{' x '.join(map(str, shown))}, batches of {settings.batch_size}"
    )


def _finish(
    training: Training,
    batches: Batches,
    request: Request,
    seen: Tensor,
    prepare: Callable[[Tensor], Tensor],
    complex_: bool,
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
    command: str,
) -> dict[str, Any]:
    """Store the averaged weights, measure them as stored, draw the sheet, and remove the snapshot."""
    averaged: Any = training.chosen()
    team, settings = training.team, request.settings
    averaged.header["training"] |= {
        "steps": training.step,
        "minutes": round(training.elapsed / 60, 2),
        "processes": team.world,
        "device": str(team.device),
        "precision": "bf16" if training.half else "float32",
        "command": command,
        "config_sha256": digest(training.config),
        "versions": {
            "invsolve": invsolve.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        **training.last,
    }
    # Dropout is a matter of training; the network that is used has none.
    averaged.header["architecture"]["config"]["dropout"] = 0.0
    measure_limits(averaged, seen, settings.batch_size, team.device)
    temporary = request.out.with_name(f".{request.out.stem}.tmp.safetensors")
    try:
        averaged.save(temporary)
        prior: Any = api.load_prior(temporary).to(team.device)
        say("measuring the error at each noise level")
        try:
            curve = error_curve(prior, seen, settings.batch_size, team.device, should_stop)
            measured = early_phase(batches, prepare, seen, curve, should_stop)
            # As the file has it, with rounded numbers.
            prior.gaussian = GaussianStart.from_record(measured.record(), len(measured.mean), str(request.out))
            if prior.gaussian.above is not None:
                # The curve is of what the file denoises with, which is no longer the network alone.
                curve = error_curve(prior, seen, settings.batch_size, team.device, should_stop)
        except Interrupted:
            raise Interrupted(
                f"stopped after step {training.step}, before the file was written; run the same command to go on"
            ) from None
        prior.error_curve = curve
        prior.save(temporary)
        shown = seen[:: max(1, len(seen) // SHOWN)][:SHOWN]
        drawn = draw(prior, settings.seed, 24, len(shown), tuple(seen.shape[1:]), team.device)
        sample_sheet(drawn, shown, complex_, request.sheet)
        replace(temporary, request.out)
    finally:
        with suppress(OSError):
            temporary.unlink()
    remove(request.snapshot)
    remove(request.preview)
    return {
        "output": str(request.out),
        "steps": training.step,
        "minutes": round(training.elapsed / 60, 3),
        **training.last,
        "error_curve": prior.error_curve,
        "data_range": list(prior.data_range or ()),
        "images": {k: averaged.header["training"]["data"]["split"][k] for k in ("train", "validation")},
        "curve": str(request.curve),
        "sheet": str(request.sheet),
    }
