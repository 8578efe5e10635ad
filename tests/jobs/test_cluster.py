"""Shards on Dask's workers: the same numbers, whoever is killed, and one line for what goes wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

import invsolve
from invsolve import jobs
from invsolve.jobs import cluster, shards
from tests.support.stops import Pipe, stop_at, tell_at
from tests.support.volumes import ITEMS, plugin, request, samples_of, scan, whole

__all__ = ["plugin", "scan", "whole"]

Client = pytest.importorskip("distributed").Client
STEPS = 60


@pytest.fixture
def slow_whole(scan: Path, tmp_path: Path) -> np.ndarray:
    """The samples of an uninterrupted run in one process, long enough to be killed in the middle."""
    jobs.reconstruct_file(request(scan, tmp_path / "whole.h5", parameters={"steps": STEPS}))
    return samples_of(tmp_path / "whole.h5")


def options(plugin: Path, *more: object) -> list[object]:
    return [
        "--strategy",
        "dps-fitted",
        "--prior",
        "small",
        "--plugin",
        plugin,
        "--set",
        f"steps={STEPS}",
        "--samples",
        2,
        "--batch-size",
        3,
        *more,
    ]


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and three workers, each a process, as on a cluster: the address, and the workers."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", f"distributed.cli.{arguments[0]}", *arguments[1:], "--no-dashboard"]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if arguments[0] == "dask_scheduler" else subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
        processes.append(process)
        return process

    try:
        scheduler = start("dask_scheduler", "--host", "127.0.0.1", "--port", "0")
        assert scheduler.stderr is not None
        (address,) = next(match for line in scheduler.stderr if (match := re.findall(rb"Scheduler at: *(\S+)", line)))
        options = (address.decode(), "--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path))
        # The second is killed in the middle of its first shard.
        ends: list[Mapping[str, str]] = [{}, stop_at("item written", signal.SIGKILL), {}]
        yield address.decode(), [start("dask_worker", *options, environment=end) for end in ends]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_three_workers_one_of_them_killed(
    scan: Path, plugin: Path, tmp_path: Path, slow_whole: np.ndarray, cli_process: Callable, loopback: tuple
) -> None:
    out = tmp_path / "recon.h5"
    address, workers = loopback
    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(3, timeout=300)
    process = cli_process("reconstruct", scan, "-o", out, *options(plugin, "--scheduler", address))
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert workers[1].wait(300) == -signal.SIGKILL
    assert "for 3 workers" in err
    assert "Traceback" not in err
    np.testing.assert_allclose(samples_of(out), slow_whole, atol=1e-4)
    assert not shards.folder(out).exists()


@pytest.mark.slow
def test_a_killed_command_goes_on_from_its_shards(
    scan: Path, plugin: Path, tmp_path: Path, slow_whole: np.ndarray, cli_process: Callable
) -> None:
    """Killed, then stopped by Ctrl-C in all its processes at once, then with another number of workers."""
    out = tmp_path / "recon.h5"
    pipe = Pipe(tmp_path / "items")
    for workers, end in ((2, signal.SIGKILL), (2, signal.SIGINT), (1, None)):
        process = cli_process(
            *("reconstruct", scan, "-o", out, *options(plugin, "--workers", workers)),
            start_new_session=True,
            environment=tell_at("item written", pipe.path),
        )
        # Workers that outlived the first command may finish items before the second listens to signals.
        heard = ""
        for line in process.stderr:
            heard += line
            if "shards for" in line:
                break
        if end is not None:
            pipe.wait(3)
            os.killpg(process.pid, end) if end == signal.SIGINT else process.kill()
        err = heard + process.stderr.read()
        process.wait()
        if end == signal.SIGINT:
            assert process.returncode == 130
            assert err.splitlines()[-1].endswith("run the same command to go on")
            assert "Traceback" not in err
        if end is None:
            assert process.returncode == 0, err
            assert "continuing" in err
    pipe.close()
    np.testing.assert_allclose(samples_of(out), slow_whole, atol=1e-4)


def test_workers_are_asked_for_one_way(scan: Path, tmp_path: Path) -> None:
    for changes, text in (
        ({"workers": 2, "scheduler": "tcp://127.0.0.1:1"}, "give one of them"),
        ({"workers": 0}, "at least 1"),
    ):
        with pytest.raises(invsolve.UserError, match=text):
            jobs.reconstruct_file(request(scan, tmp_path / "r.h5", **changes))
    assert not list(tmp_path.glob("r.h5*"))


def test_our_own_workers_do_nothing_for_a_stranger() -> None:
    """Another user of the machine reaches the loopback: neither plain nor with a certificate of his own may he speak."""
    stranger = pytest.importorskip("distributed.security").Security.temporary()
    with cluster.connect(1, None) as pool:
        assert list(pool.run(len, [("abc",)])) == [("abc",)]
        scheduler = pool.client.scheduler.address
        for address in (scheduler, *pool.client.scheduler_info()["workers"]):
            assert address.startswith("tls://")
        for address, security in ((scheduler.replace("tls://", "tcp://"), None), (scheduler, stranger)):
            with pytest.raises((OSError, TimeoutError)):
                Client(address, timeout=2, security=security)


def test_no_scheduler_is_one_line(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE", 0.5)
    for address in ("tcp://127.0.0.1:1", "nonsense"):
        with pytest.raises(invsolve.UserError, match="no Dask scheduler answers") as caught:
            jobs.reconstruct_file(request(scan, tmp_path / "r.h5", scheduler=address))
        assert "\n" not in str(caught.value)


def test_without_dask_the_extra_is_named(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(invsolve.UserError, match=r"invsolve\[cluster\]"):
        jobs.reconstruct_file(request(scan, tmp_path / "r.h5", workers=2))


def test_a_shard_of_another_configuration_is_refused(scan: Path, tmp_path: Path) -> None:
    """As when a worker has other files, plugins or another version than the command."""
    job = request(scan, tmp_path / "r.h5")
    with pytest.raises(invsolve.UserError, match="items 0:4: a worker finds another configuration"):
        shards.run_shard(job, range(4), "0" * 64, "", 0)


def test_shards_run_as_a_worker_runs_them_are_the_whole(scan: Path, tmp_path: Path, whole: np.ndarray) -> None:
    from invsolve.api.provenance import provenance

    out = tmp_path / "r.h5"
    job = request(scan, out)
    run = jobs.prepare(job)
    digest = provenance(run)["config_sha256"]
    shards.folder(out).mkdir()
    for start in (12, 0):
        shards.run_shard(job, range(start, start + 12), digest, "", 0)
    # Again: what is there is left alone.
    before = {path: path.stat().st_mtime_ns for path in shards.folder(out).iterdir()}
    shards.run_shard(job, range(12), digest, "", 0)
    assert before == {path: path.stat().st_mtime_ns for path in shards.folder(out).iterdir()}
    jobs.reconstruct_file(job)
    assert len(samples_of(out)) == ITEMS
    np.testing.assert_allclose(samples_of(out), whole, atol=1e-5)


def test_a_shard_in_another_hand_is_waited_for(
    scan: Path, tmp_path: Path, whole: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker thought lost still writes it: the second waits, and takes what the first finishes."""
    from invsolve.api.provenance import provenance
    from invsolve.datasets import hdf5

    out = tmp_path / "r.h5"
    run = jobs.prepare(request(scan, out))
    shards.folder(out).mkdir()
    path = shards.shard_path(out, range(4))
    tries = 0

    def busy(*arguments: object, **options: object) -> None:
        nonlocal tries
        tries += 1
        if tries == 2:
            path.touch()
        raise invsolve.errors.InUse("another process is writing it")

    monkeypatch.setattr(shards, "run_into_file", busy)
    monkeypatch.setattr(shards.time, "sleep", lambda seconds: None)
    shards._run_here(run, out, range(4), provenance(run), every=60.0)
    assert tries == 2
    assert hdf5.glance(path) is None
