"""Volumes: some of their items, parts that are joined, shards, killed and resumed runs, and what a run would take."""

import json
import multiprocessing
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve import engine, jobs
from invsolve.api.provenance import provenance
from invsolve.contracts.problem import Problem
from invsolve.datasets import hdf5
from invsolve.datasets.hdf5 import LazyRows
from invsolve.jobs import dryrun, shards
from invsolve.jobs.preparation import prepare
from tests.support.stops import kill_before_call, stop_at
from tests.support.types import Cli, CliProcess
from tests.support.volumes import ITEMS, plugin, request, samples_of, scan, whole

__all__ = ["plugin", "scan", "whole"]


def test_slices_are_those_of_the_whole_run(scan: Path, tmp_path: Path, whole: np.ndarray, cli: Cli) -> None:
    out = tmp_path / "some.h5"
    jobs.reconstruct_file(request(scan, out, slices="5:9"))
    np.testing.assert_allclose(samples_of(out), whole[5:9], atol=1e-5)
    view = hdf5.read_result(out)
    assert view.items == [5, 6, 7, 8]
    assert view.input_items == ITEMS
    # Scored and drawn against the truth of its own items, from the file of all of them.
    scores = [jobs.evaluate_file(out, truth, None)["items"] for truth in (tmp_path / "truth.h5", None)]
    assert scores[0] == scores[1]
    assert "item 5" in cli("evaluate", out)[1]


def test_a_part_is_resumed_as_that_part_only(scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "some.h5"
    stop = iter([False] * 20)
    with pytest.raises(engine.Interrupted, match=r"[123] of 4 items are kept"):
        jobs.reconstruct_file(request(scan, out, slices="5:9"), should_stop=lambda: next(stop, True))
    with pytest.raises(invsolve.UserError, match="items 5:9 -> 6:10"):
        jobs.reconstruct_file(request(scan, out, slices="6:10"))
    said: list[str] = []
    jobs.reconstruct_file(request(scan, out, slices="5:9"), said.append)
    assert any("continuing" in line for line in said)
    assert hdf5.read_result(out).items == [5, 6, 7, 8]


@pytest.mark.parametrize("text", ["9:5", "0:99", "a:b", "5:5", "-3:2", "99"])
def test_wrong_slices_are_one_line(text: str, scan: Path, tmp_path: Path) -> None:
    with pytest.raises(invsolve.UserError, match="--slices") as caught:
        jobs.reconstruct_file(request(scan, tmp_path / "r.h5", slices=text))
    assert "\n" not in str(caught.value)


def test_some_slices_of_a_coupled_volume_are_one_by_themselves(scan: Path, tmp_path: Path) -> None:
    """The same samples as of a file of these slices alone; not those of the whole, and never joined with others."""
    coupled: dict[str, Any] = {"prior": None, "strategy": "tv-3d", "parameters": {"steps": 5}, "samples": 1}
    coupled["scale"] = (-1.0, 1.0)
    said: list[str] = []
    jobs.reconstruct_file(request(scan, tmp_path / "some.h5", slices="4:10", **coupled), said.append)
    assert "items 4:10 are coupled with one another only, as a volume of their own" in said
    alone = tmp_path / "alone.h5"
    with h5py.File(scan) as file, h5py.File(alone, "w") as other:
        for name in ("operator", "noise"):
            file.copy(name, other)
        other["y"] = file["y"][4:10]
    jobs.reconstruct_file(request(alone, tmp_path / "alone_r.h5", **coupled))
    some = samples_of(tmp_path / "some.h5")
    np.testing.assert_allclose(some, samples_of(tmp_path / "alone_r.h5"), atol=1e-5)
    jobs.reconstruct_file(request(scan, tmp_path / "all.h5", slices=f"0:{ITEMS}", **coupled))
    jobs.reconstruct_file(request(scan, tmp_path / "whole.h5", **coupled))
    whole = samples_of(tmp_path / "whole.h5")
    assert np.array_equal(samples_of(tmp_path / "all.h5"), whole)
    assert not np.array_equal(some[0], whole[4])
    jobs.reconstruct_file(request(scan, tmp_path / "rest.h5", slices="10:16", **coupled))
    with pytest.raises(invsolve.UserError, match=r"another configuration.*slices"):
        hdf5.join_results(tmp_path / "joined.h5", [tmp_path / "some.h5", tmp_path / "rest.h5"])


def test_coupled_volumes_are_shards(scan: Path, tmp_path: Path) -> None:
    """What workers are told, run here as they run it."""
    coupled: dict[str, Any] = {"prior": None, "strategy": "tv-3d", "parameters": {"steps": 3}, "samples": 1}
    with h5py.File(scan, "r+") as file:
        file["volume"] = np.repeat([0, 1, 2], ITEMS // 3)
    job = request(scan, tmp_path / "r.h5", slices="4:20", **coupled)
    run = prepare(job)
    assert shards._shards(job.out, [], run, 1) == [range(4, 8), range(8, 16), range(16, 20)]
    record = provenance(run)
    assert record["slices"] == [4, 20]
    jobs.reconstruct_file(request(scan, tmp_path / "whole.h5", slices="4:20", **coupled))
    shards.folder(job.out).mkdir()
    for shard in (range(8, 16), range(4, 8)):
        shards.run_shard(
            replace(job, options=replace(job.options, scale=run.scale)), shard, record["config_sha256"], "", 0
        )
    jobs.reconstruct_file(job)
    assert np.array_equal(samples_of(job.out), samples_of(tmp_path / "whole.h5"))


def test_dry_run_of_coupled_volumes_counts_them(scan: Path, tmp_path: Path) -> None:
    with h5py.File(scan, "r+") as file:
        file["volume"] = np.repeat([0, 1, 2], ITEMS // 3)
    job = request(scan, tmp_path / "r.h5", strategy="dds-3d", parameters={"steps": 6})
    plan = dryrun.dry_run(job)
    assert (plan["batches"], plan["batch_size"], plan["remaining"]) == (3 * 2, ITEMS // 3, ITEMS)
    jobs.reconstruct_file(job)
    told = hdf5.read_result(tmp_path / "r.h5").diagnostics
    assert plan["network_calls"] == told["network_calls"].sum() * 2


def test_what_a_killed_part_left_is_not_taken_up_by_another(scan: Path, tmp_path: Path, whole: np.ndarray) -> None:
    out = tmp_path / "some.h5"
    stop = iter([False] * 12)
    with pytest.raises(engine.Interrupted):
        jobs.reconstruct_file(request(scan, out, slices="5:9"), should_stop=lambda: next(stop, True))
    assert Path(f"{out}.partial.state").exists()
    jobs.reconstruct_file(request(scan, out, slices="12:16", overwrite=True))
    assert hdf5.read_result(out).items == [12, 13, 14, 15]
    np.testing.assert_allclose(samples_of(out), whole[12:16], atol=1e-5)
    assert not Path(f"{out}.partial.state").exists()


def test_open_slices(tmp_path: Path) -> None:
    assert jobs.read_slices(":7", 24, tmp_path) == range(7)
    assert jobs.read_slices("20:", 24, tmp_path) == range(20, 24)
    assert jobs.read_slices("3", 24, tmp_path) == range(3, 4)


def test_joined_parts_are_the_whole(scan: Path, tmp_path: Path, whole: np.ndarray, cli: Cli) -> None:
    parts = [tmp_path / f"part{k}.h5" for k in range(3)]
    for part, slices in zip(parts, ("0:7", "7:20", "20:"), strict=True):
        jobs.reconstruct_file(request(scan, part, slices=slices))
    out = tmp_path / "joined.h5"
    code, printed, err = cli("join", *reversed(parts), "-o", out)
    assert code == 0, err
    assert "items 0:24 of 24" in printed
    np.testing.assert_allclose(samples_of(out), whole, atol=1e-5)
    with h5py.File(out) as joined, h5py.File(tmp_path / "whole.h5") as single:
        assert sorted(joined) == sorted(single)
        assert sorted(joined.attrs) == sorted(single.attrs)
        assert joined.attrs["config_sha256"] == single.attrs["config_sha256"]
        for name in ("mean", "std", "linear", "truth", "diagnostics/residual"):
            assert joined[name].chunks == single[name].chunks
            assert joined[name].fletcher32
            assert dict(joined[name].attrs) == dict(single[name].attrs)
            np.testing.assert_allclose(joined[name][:], single[name][:], atol=1e-5)
    code, _, err = cli("join", parts[0], parts[2], "-o", tmp_path / "gap.h5")
    assert code == 2
    assert "items 7:20 are in none of the parts" in err
    jobs.reconstruct_file(request(scan, tmp_path / "seed.h5", slices="7:20", seed=1))
    code, _, err = cli("join", parts[0], tmp_path / "seed.h5", "-o", tmp_path / "mixed.h5")
    assert code == 2
    assert "seed 0 -> 1" in err
    code, _, err = cli("join", scan, "-o", tmp_path / "mixed.h5")
    assert code == 2
    assert "is no result file" in err
    assert not list(tmp_path.glob("mixed*"))


# Shards.


def test_ranges_to_do(tmp_path: Path) -> None:
    out = tmp_path / "recon.h5"
    assert shards.ranges_to_do(out, [], range(2, 12), 4) == [range(2, 6), range(6, 10), range(10, 12)]
    finished = hdf5.Part(shards.shard_path(out, range(2, 6)), "", [2, 3, 4, 5], [2, 3, 4, 5])
    begun = hdf5.Part(shards.shard_path(out, range(7, 9)), "", [7, 8], [8])
    before = hdf5.Part(hdf5.partial_path(out), "", list(range(2, 12)), [10])
    ranges = shards.ranges_to_do(out, [finished, begun, before], range(2, 12), 4)
    assert ranges == [range(6, 7), range(7, 9), range(9, 10), range(11, 12)]


def test_a_run_without_workers_goes_on_with_shards_and_with_its_own_partial(
    scan: Path, tmp_path: Path, whole: np.ndarray
) -> None:
    out = tmp_path / "recon.h5"
    stop = iter([False] * 30)
    with pytest.raises(engine.Interrupted):
        jobs.reconstruct_file(request(scan, out), should_stop=lambda: next(stop, True))
    kept = hdf5.read_result(hdf5.partial_path(out)).items
    assert kept
    # As a run with workers would have left them: one shard done, one begun.
    folder = shards.folder(out)
    folder.mkdir()
    jobs.reconstruct_file(request(scan, folder / "000012-000016.h5", slices="12:16"))
    stop = iter([False] * 12)
    with pytest.raises(engine.Interrupted):
        jobs.reconstruct_file(
            request(scan, folder / "000016-000020.h5", slices="16:20"), should_stop=lambda: next(stop, True)
        )
    with pytest.raises(invsolve.UserError, match=r"another configuration.*--overwrite"):
        jobs.reconstruct_file(request(scan, out, seed=3))
    with pytest.raises(invsolve.UserError, match=r"for items .*--overwrite"):
        jobs.reconstruct_file(request(scan, out, slices="0:14"))
    said: list[str] = []
    jobs.reconstruct_file(request(scan, out), said.append)
    assert any(line.startswith("continuing") for line in said)
    np.testing.assert_allclose(samples_of(out), whole, atol=1e-5)
    assert not list(tmp_path.glob("recon.h5.*"))


# Killed.


def _reconstruct_and_log(job: jobs.Request, log: Path, moment: int) -> None:
    real = hdf5.ResultFile.write

    def write(self: hdf5.ResultFile, item: int, *rest: object) -> None:
        real(self, item, *rest)  # type: ignore[arg-type]
        with log.open("a") as stream:
            stream.write(f"{item}\n")

    hdf5.ResultFile.write = write  # type: ignore[method-assign, assignment]  # in a forked child
    kill_before_call(
        moment, (h5py.Dataset, "__setitem__"), (h5py.File, "flush"), (LazyRows, "__getitem__"), (os, "replace")
    )
    jobs.reconstruct_file(job)


def test_killed_ten_times_at_random_and_resumed(scan: Path, tmp_path: Path, whole: np.ndarray) -> None:
    """SIGKILL while items are read, computed and written in three threads; the same call goes on each time."""
    chance = random.Random(2)
    context = multiprocessing.get_context("fork")
    out, log = tmp_path / "recon.h5", tmp_path / "log.txt"
    log.touch()
    job = request(scan, out, parameters={"steps": 8})
    kills = 0
    for _ in range(11):
        # Between any two writes to the file: some before it has done anything, most after one or two more items.
        moment = chance.randrange(1, 60) if kills < 10 else 0
        process = context.Process(target=_reconstruct_and_log, args=(job, log, moment))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        assert not out.exists()
    assert kills == 10
    np.testing.assert_allclose(samples_of(out), whole, atol=1e-5)
    done = [int(item) for item in log.read_text().split()]
    assert len(done) == len(set(done)), "an item was done twice"
    # Between the mark in the file and the line in the log a kill may fall.
    assert len(set(range(ITEMS)) - set(done)) <= kills


def test_ctrl_c_leaves_everything_resumable(scan: Path, tmp_path: Path, plugin: Path, cli_process: CliProcess) -> None:
    out = tmp_path / "recon.h5"
    options = [
        "--strategy",
        "dps-fitted",
        "--prior",
        "small",
        "--plugin",
        plugin,
        "--set",
        "steps=20",
        "--samples",
        2,
        "--batch-size",
        2,
    ]
    process = cli_process(
        *("reconstruct", scan, "-o", out, *options), environment=stop_at("item written", signal.SIGINT, count=2)
    )
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "run the same command" in err
    assert "Traceback" not in err
    assert 2 <= len(hdf5.read_result(hdf5.partial_path(out)).items) < ITEMS


# What it would take.


def test_dry_run_writes_nothing_and_counts(scan: Path, tmp_path: Path, plugin: Path, cli: Cli) -> None:
    before = sorted(os.listdir(tmp_path))
    options = (
        "--strategy",
        "dps-fitted",
        "--prior",
        "small",
        "--plugin",
        plugin,
        "--set",
        "steps=40",
        "--samples",
        2,
        "--batch-size",
        3,
    )
    arguments = ("reconstruct", scan, "-o", tmp_path / "r.h5", *options, "--slices", "4:12", "--dry-run")
    code, out, err = cli(*arguments, "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert plan["items"] == [4, 12]
    assert plan["remaining"] == 8
    assert plan["batches"] == 6
    assert plan["steps"] == 40
    code, out, _ = cli(*arguments)
    assert "nothing was written" in out
    assert sorted(os.listdir(tmp_path)) == before
    job = request(scan, tmp_path / "r.h5", parameters={"steps": 40}, slices="4:12")
    jobs.reconstruct_file(job)
    told = hdf5.read_result(tmp_path / "r.h5").diagnostics
    assert plan["network_calls"] == told["network_calls"].sum() * 2
    assert plan["vjp_calls"] == told["vjp_calls"].sum() * 2
    size = (tmp_path / "r.h5").stat().st_size
    assert 0.3 * size < plan["output_bytes"] < size


class Clock:
    """A clock that goes on only while a network is called: a quarter of a second per call, and nothing else takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_dry_run_estimates_the_time(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, real = Clock(), Problem.denoise

    def timed(self: Problem, x: torch.Tensor, sigma: float) -> torch.Tensor:
        clock.now += 0.25
        return real(self, x, sigma)

    monkeypatch.setattr(Problem, "denoise", timed)
    monkeypatch.setattr(dryrun, "time", clock)
    job = request(scan, tmp_path / "r.h5", parameters={"steps": 25}, slices="0:6")
    plan = dryrun.dry_run(job)
    # Thirteen calls pass three seconds: the other steps were not run.
    assert clock.now <= 13 * 0.25
    clock.now = 0.0
    jobs.reconstruct_file(job)
    assert plan["seconds"] == pytest.approx(clock.now, rel=1e-9)
