"""What a reconstruction would take: the plan, and a time from one batch whose first steps are really run. Writes nothing."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from invsolve import engine
from invsolve.datasets import hdf5
from invsolve.engine.determinism import deterministic
from invsolve.engine.reading import read_rows
from invsolve.engine.snapshot import Chain
from invsolve.engine.streaming import AHEAD
from invsolve.errors import UserError
from invsolve.jobs import shards
from invsolve.jobs.preparation import prepare
from invsolve.jobs.request import Request, refuse_existing

#: Timing ends after the step at which both are reached, or with the schedule.
_STEPS, _SECONDS = 4, 3.0


def dry_run(request: Request, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Plan a reconstruction, time the first steps of its first batch, and say what the whole would take.

    Returns:
        items (of the file, to run, remaining), batches, chains a batch, steps, network and backward calls in all, seconds
        a batch, to read an item and in all (one process), memory_bytes (peak of this process or of the GPU), and
        output_bytes.

    Raises:
        UserError: whatever would stop the run before its first step.
    """
    refuse_existing(request.out, request.overwrite, request.scan)
    run = prepare(request, say)
    names = shards.folder(request.out).glob("*.h5") if shards.folder(request.out).is_dir() else []
    parts = [part for part in map(hdf5.glance, [*names, hdf5.partial_path(request.out)]) if part is not None]
    done = {item for part in parts for item in part.done}
    remaining = [item for item in run.items if item not in done]
    first = next(run.batches(remaining or list(run.items)[:1]))
    began = time.perf_counter()
    read_rows(run.measurement, first[0][0], first[0][0] + 1)
    reading = time.perf_counter() - began
    timed = _time(run, first)
    batches = len(list(run.batches(remaining)))
    per_image = 4 * torch.Size(run.image_shape).numel()
    images = run.options.samples + 2 + int(run.linear_too) + int(run.measurement.truth is not None)
    count = len(remaining) * run.options.samples
    return {
        "input_items": len(run.measurement.y),
        "items": [run.items.start, run.items.stop],
        "remaining": len(remaining),
        "samples": run.options.samples,
        "batches": batches,
        "batch_size": len(first),
        "steps": timed["steps"],
        "network_calls": round(count * timed["network"]),
        "vjp_calls": round(count * timed["vjp"]),
        "seconds_a_batch": timed["seconds"],
        "seconds_to_read_an_item": reading,
        # Reading goes on beside the computing; the slower of the two counts.
        "seconds": max(batches * timed["seconds"], len(remaining) * reading),
        "memory_bytes": _peak(run.device),
        "output_bytes": len(run.items) * images * per_image,
        "device": str(run.device),
    }


def as_text(plan: Mapping[str, Any], request: Request) -> str:
    """The plan for people."""
    start, stop = plan["items"]
    lines = [
        f"items       {start}:{stop} of {plan['input_items']}; {plan['remaining']} left to do, {plan['samples']} samples each",
        f"batches     {plan['batches']} of up to {plan['batch_size']} samples, {plan['steps']} steps",
        f"calls       about {plan['network_calls']} of the network and {plan['vjp_calls']} back through it",
        f"memory      about {plan['memory_bytes'] / 2**30:.2f} GiB on {plan['device']}, whatever the number of items",
        f"output      {request.out}, about {plan['output_bytes'] / 2**30:.2f} GiB",
        f"time        about {_duration(plan['seconds'])} in one process ({plan['seconds_a_batch']:.3g} s a batch)",
        "nothing was written",
    ]
    return "\n".join(lines)


def _time(run: engine.Run, chains: list[Chain]) -> dict[str, float]:
    """Seconds of a whole batch, and calls a sample, from its first steps; what repeats a step is extrapolated."""
    marks: list[tuple[float, int, int]] = []
    steps = 1
    problem = run.problem(chains)
    calls = problem.calls

    def mark(info: engine.StepInfo) -> bool:
        nonlocal steps
        steps = info.steps
        _wait(run.device)
        marks.append((time.perf_counter() - began, calls.network, calls.vjp))
        return info.step >= _STEPS and marks[-1][0] >= _SECONDS

    began = time.perf_counter()
    try:
        with deterministic(run.options.deterministic):
            engine.run_batch(problem, run.strategy, run.random(chains), mark)
    except (torch.OutOfMemoryError, MemoryError):
        raise UserError(
            f"out of memory with {len(chains)} samples at once: the run would halve its batch; try a smaller --batch-size"
        ) from None
    _wait(run.device)
    total = (time.perf_counter() - began, calls.network, calls.vjp)
    missing = steps - len(marks)
    if missing > 0:
        # The first step is left out: it warms up.
        each = [(b - a) / (len(marks) - 1) for a, b in zip(marks[0], marks[-1], strict=True)]
        total = tuple(value + missing * step for value, step in zip(total, each, strict=True))  # type: ignore[assignment]
    seconds, network, vjp = total
    rows = len(chains)
    return {
        "seconds": seconds,
        "steps": steps,
        "network": network / rows,
        "vjp": vjp / rows,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device) -> int:
    """Peak memory so far, plus what reading ahead may still take: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + AHEAD


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
