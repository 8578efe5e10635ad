"""A volume in shards: ranges of its items, each with a result file of its own, joined when all are there.

Resuming, several GPUs and clusters are this one mechanism. A shard is an ordinary result file, so it survives a kill and
is continued by whoever gets it next. The shards of OUT lie in the folder OUT.parts, which is removed once OUT is complete.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from invsolve import engine, registry
from invsolve.api.provenance import provenance
from invsolve.datasets import hdf5
from invsolve.errors import InUse, UserError
from invsolve.jobs import cluster
from invsolve.jobs.one_file import run_into_file
from invsolve.jobs.preparation import prepare
from invsolve.jobs.request import Request
from invsolve.jobs.snapshot_file import SnapshotFile
from invsolve.registry.written import with_absolute_files

#: Shards a worker gets, more or less: enough that a slow or lost one costs little, few enough that opening files does.
_SHARDS_A_WORKER = 4
#: Seconds that a shard waits for another process, one thought lost, to let go of its file.
_PATIENCE = 600.0
_NAME = re.compile(r"(\d+)-(\d+)\.h5(\.partial\.h5)?")
# Operators count their calls on themselves: one run at a time in a process.
_ONE_AT_A_TIME = threading.Lock()


def folder(out: Path) -> Path:
    """Where the shards of an output lie."""
    return Path(f"{out}.parts")


def shard_path(out: Path, items: range) -> Path:
    """The result file of a shard."""
    return folder(out) / f"{items.start:06d}-{items.stop:06d}.h5"


def reconstruct_in_shards(
    request: Request, run: engine.Run, record: dict[str, Any], say: Callable[[str], None]
) -> None:
    """Run what no shard has yet, here or by Dask's workers, and join the shards.

    Raises:
        UserError: shards of another configuration are in the way, or a shard failed.
        Interrupted: asked to stop.
    """
    out = request.out
    parts = _parts_so_far(out, run.items, record, request.overwrite)
    done = {item for part in parts for item in part.done}
    if done:
        say(f"continuing: {len(done)} of {len(run.items)} items were done before")
    folder(out).mkdir(exist_ok=True)
    _stop_file(out).unlink(missing_ok=True)
    try:
        if request.workers is None and request.scheduler is None:
            for shard in _shards(out, parts, run, len(run.items)):
                _run_here(run, out, shard, record, request.snapshot_every, say)
        else:
            _run_on_workers(request, run, record, parts, say)
    except engine.Interrupted:
        parts = _parts_so_far(out, run.items, record, request.overwrite)
        kept = len({item for part in parts for item in part.done})
        raise engine.Interrupted(
            f"stopped; {kept} of {len(run.items)} items are kept, run the same command to go on"
        ) from None
    finally:
        if not any(_NAME.fullmatch(path.name) for path in folder(out).iterdir()):
            shutil.rmtree(folder(out))  # nothing begun leaves nothing behind
    files = [part.path for part in _parts_so_far(out, run.items, record, request.overwrite) if part.done]
    folder(out).mkdir(exist_ok=True)
    hdf5.join_results(out, files, run.items, request.overwrite, temporary=folder(out) / "joined.h5")
    hdf5.partial_path(out).unlink(missing_ok=True)
    SnapshotFile(out, record["config_sha256"]).remove()
    shutil.rmtree(folder(out))


def _shards(out: Path, parts: Sequence[hdf5.Part], run: engine.Run, size: int) -> list[range]:
    """Shards still to run; where the slices of a volume are coupled, a shard is a volume, or all of those that interleave."""
    if not run.couples_items:
        return ranges_to_do(out, parts, run.items, size)
    done = {item for part in parts for item in part.done}
    volumes = [volume for volume in run.volumes if not done.issuperset(volume)]
    if any(len(range(volume[0], volume[-1] + 1)) != len(volume) for volume in volumes):
        return [run.items]
    return [range(volume[0], volume[-1] + 1) for volume in volumes]


def ranges_to_do(out: Path, parts: Sequence[hdf5.Part], wanted: range, size: int) -> list[range]:
    """Shards still to run: those begun and not finished, and what no file has, cut into pieces of `size` items."""
    begun = [part for part in parts if part.path.parent == folder(out) and len(part.done) < len(part.items)]
    ranges = [range(part.items[0], part.items[-1] + 1) for part in begun]
    taken = {item for part in parts for item in part.done} | {item for shard in ranges for item in shard}
    piece: list[int] = []
    for item in [*(i for i in wanted if i not in taken), None]:
        if piece and (item is None or item != piece[-1] + 1 or len(piece) == size):
            ranges.append(range(piece[0], piece[-1] + 1))
            piece = []
        if item is not None:
            piece.append(item)
    return sorted(ranges, key=lambda shard: shard.start)


def _parts_so_far(out: Path, wanted: range, record: dict[str, Any], overwrite: bool) -> list[hdf5.Part]:
    """What earlier runs of this configuration left: shards, finished or not, and the partial of a run without shards.

    Raises:
        UserError: they are another configuration's, or of other items, unless overwrite, which removes them.
    """
    there = folder(out)
    paths = sorted(path for path in there.iterdir() if _NAME.fullmatch(path.name)) if there.is_dir() else []
    seen = [(path, hdf5.glance(path)) for path in paths]
    # One that cannot be read now may be in the hands of a worker that outlived its command: it keeps its range.
    parts = [part or _unread(path, record["config_sha256"]) for path, part in seen]
    parts += [part for part in [hdf5.glance(hdf5.partial_path(out))] if part is not None]
    for part in parts:
        same = part.config_sha256 == record["config_sha256"]
        if same and part.items[0] in wanted and part.items[-1] in wanted:
            continue
        if overwrite:
            shutil.rmtree(there, ignore_errors=True)
            hdf5.partial_path(out).unlink(missing_ok=True)
            return []
        what = f"for items {part.items[0]}:{part.items[-1] + 1}" if same else "with another configuration"
        raise UserError(f"{part.path}: was begun {what}; give --overwrite to start anew, or another output name")
    return parts


def belong(out: Path, wanted: range, record: dict[str, Any]) -> bool:
    """Whether all that earlier runs left beside an output is of this configuration, and of these items."""
    try:
        _parts_so_far(out, wanted, record, overwrite=False)
    except UserError:
        return False
    return True


def _unread(path: Path, config_sha256: str) -> hdf5.Part:
    start, stop = (int(number) for number in path.name.split(".")[0].split("-"))
    return hdf5.Part(path, config_sha256, list(range(start, stop)), [])


def _run_here(
    run: engine.Run,
    out: Path,
    shard: range,
    record: dict[str, Any],
    every: float,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Run one shard in this process, unless it is done; waits while another process is writing it."""
    path = shard_path(out, shard)
    deadline = time.monotonic() + _PATIENCE
    while not path.exists():
        try:
            run_into_file(replace(run, only=shard), path, record, overwrite=False, say=say, every=every)
        except InUse:
            # A worker thought lost may still be at it; what it finishes counts.
            if time.monotonic() > deadline:
                raise
            if run.should_stop is not None and run.should_stop():
                raise engine.Interrupted("stopped") from None
            time.sleep(1.0)


def _run_on_workers(
    request: Request, run: engine.Run, record: dict[str, Any], parts: Sequence[hdf5.Part], say: Callable[[str], None]
) -> None:
    out = request.out
    # Workers are told what was found here: estimates of their own could differ in the last digit.
    told = replace(
        request,
        scan=request.scan.resolve(),
        out=out.resolve(),
        options=replace(request.options, scale=run.scale),
        # The slices that are coupled are part of the configuration; others a worker is told one shard at a time.
        slices=request.slices if run.couples_items else None,
        overwrite=False,
        plugins=tuple(path.resolve() for path in request.plugins),
        # Where a worker's folder is another one, a relative path would lead elsewhere.
        prior=str(Path(request.prior).resolve()) if request.prior and Path(request.prior).exists() else request.prior,
        noise=None if request.noise is None else with_absolute_files(request.noise, Path.cwd()),
    )
    with cluster.connect(request.workers, request.scheduler) as pool:
        share = -(-len(run.items) // (_SHARDS_A_WORKER * pool.workers))
        batch = run.items_per_batch
        shards = _shards(out, parts, run, -(-share // batch) * batch)
        busy = max(min(pool.workers, len(shards)), 1)
        threads = max(torch.get_num_threads() // busy, 1) if pool.local else 0
        why = "; the slices of a volume are coupled and go to one worker" if run.couples_items else ""
        say(f"{len(shards)} shards for {pool.workers} workers{why}")
        tasks = [(told, shard, record["config_sha256"], record["command"], threads) for shard in shards]
        try:
            for k, task in enumerate(pool.run(run_shard, tasks, run.should_stop), start=1):
                say(f"items {task[1].start}:{task[1].stop} done, {k} of {len(shards)} shards")
        except cluster.Stopped:
            raise engine.Interrupted("stopped") from None
        except cluster.WorkersLost as error:
            raise UserError(
                f"{error.count} workers died on the same items, one after another (out of memory? see their logs); finished "
                "items are kept, run the same command to go on"
            ) from None
        finally:
            # Workers look for it after each step; those of a cluster outlive this command.
            _stop_file(out).touch()


def run_shard(request: Request, shard: range, config_sha256: str, command: str, threads: int) -> None:
    """One shard, in a worker: what Dask runs.

    Args:
        request: the job.
        shard: the items.
        config_sha256: of the plan, which this process's must equal.
        command: for the record.
        threads: for torch; 0 leaves its setting.
    """
    with _ONE_AT_A_TIME:
        if threads:
            torch.set_num_threads(threads)
        options = replace(request.options, device=_own_device(str(request.options.device)))
        run = _prepared(replace(request, options=options), config_sha256)
        record = provenance(run) | {"command": command}
        if record["config_sha256"] != config_sha256:
            raise UserError(
                f"items {shard.start}:{shard.stop}: a worker finds another configuration than the command did; its files, "
                "invsolve version and plugins must be the same"
            )
        run.should_stop = _stopped_by(_stop_file(request.out))
        _run_here(run, request.out, shard, record, request.snapshot_every)


#: The run that this process prepared last: the network is loaded once, not for each shard.
_kept: dict[tuple[str, str], engine.Run] = {}


def _prepared(request: Request, config_sha256: str) -> engine.Run:
    key = (repr(request), config_sha256)
    if key not in _kept:
        _kept.clear()
        for plugin in request.plugins:
            registry.load_file(plugin)
        _kept[key] = prepare(request)
    return _kept[key]


def _own_device(device: str) -> str:
    """With "cuda", one GPU for each worker of this machine, in turn."""
    index = cluster.worker_index()
    if device != "cuda" or index is None or torch.cuda.device_count() < 2:
        return device
    return f"cuda:{index % torch.cuda.device_count()}"


def _stop_file(out: Path) -> Path:
    return folder(out) / "stop"


def _stopped_by(path: Path) -> Callable[[], bool]:
    """Whether the file is there; looks at most once a second."""
    looked, there = 0.0, False

    def asked() -> bool:
        nonlocal looked, there
        now = time.monotonic()
        if now - looked > 1.0:
            looked, there = now, path.exists()
        return there

    return asked
