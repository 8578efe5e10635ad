"""Result files: nothing is lost by a kill, resuming gives the same content, and no wrong resume is possible."""

import errno
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from invsolve.contracts.sink import Sink
from invsolve.datasets.hdf5 import ResultFile, partial_path, read_result
from invsolve.errors import UserError
from tests.support.stops import kill_before_call

ITEMS, SAMPLES = 12, 2


def record(**changes: Any) -> dict[str, Any]:
    config = {
        "operator": {"name": "ct", "parameters": {"angles": 60}},
        "noise": {"name": "gaussian", "sigma": 0.01},
        "prior": None,
        "strategy": {"name": "dps", "parameters": {"steps": 100}},
        "scale": {"factor": 1.0, "offset": 0.0},
        "samples": SAMPLES,
        "seed": 0,
        "dtype": "float32",
        "input": {"file": "scan.h5", "fingerprint": "sha256:1"},
    } | changes
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    return {**config, "config_sha256": digest, "compared": list(config), "versions": {"invsolve": "0.1.0"}}


def content(item: int, size: int = 24) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    generator = torch.Generator().manual_seed(item)
    samples = torch.randn(SAMPLES, 1, size, size, generator=generator)
    arrays = {
        "mean": samples.mean(0),
        "std": samples.std(0),
        "samples": samples,
        "linear": samples[0] + 1,
        "residual": torch.rand(SAMPLES, 7, generator=generator),
        "acquired_at": torch.randint(-1, 30, (SAMPLES, 9), generator=generator),
    }
    return arrays, {"seconds": item + 0.5, "network_calls": 7.0}


def fill(path: Path, items: Iterable[int] = range(ITEMS), **options: Any) -> ResultFile:
    with ResultFile.create(path, ITEMS, SAMPLES, record(), **options) as result:
        for item in items:
            result.write(item, *content(item))
    return result


def refuse(*arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        ResultFile.create(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recon.h5"


def test_complete_file(path: Path) -> None:
    with ResultFile.create(path, ITEMS, SAMPLES, record(), unit="1/cm") as result:
        sink: Sink = result
        for item in reversed(range(ITEMS)):
            assert not sink.is_done(item)
            sink.write(item, *content(item))
            assert sink.is_done(item)
            assert not path.exists()
        assert result.finish() == path
    assert os.listdir(path.parent) == ["recon.h5"]
    with h5py.File(path) as file:
        assert file["mean"].shape == file["std"].shape == (ITEMS, 1, 24, 24)
        assert file["samples"].shape == (ITEMS, SAMPLES, 1, 24, 24)
        assert file["samples"].chunks == (1, SAMPLES, 1, 24, 24)
        assert file["samples"].fletcher32
        assert file["done"].dtype == bool
        assert file["done"][:].all()
        assert file["diagnostics/acquired_at"].dtype == np.int64
        assert file["diagnostics/seconds"][3] == 3.5
        assert file.attrs["seed"] == 0
        assert file.attrs["invsolve_version"] == "0.1.0"
        assert file.attrs["unit"] == "1/cm"
        assert file.attrs["input_fingerprint"] == "sha256:1"
        assert json.loads(file.attrs["config"])["strategy"]["name"] == "dps"
        assert file["samples"].attrs["axes"] == "item sample channel row column"


def test_a_result_states_its_format_and_another_one_is_refused(path: Path) -> None:
    fill(path).close()
    with h5py.File(partial_path(path), "a") as file:
        assert file.attrs["format"] == "invsolve-result/1"
        file.attrs["format"] = "invsolve-result/2"
    with pytest.raises(
        UserError, match=r"is written as 'invsolve-result/2', and this version reads 'invsolve-result/1'"
    ):
        read_result(partial_path(path))


def test_reading(path: Path) -> None:
    fill(path).close()
    view = read_result(partial_path(path))
    assert view.complete
    with ResultFile.create(path, ITEMS, SAMPLES, record()) as result:
        result.finish({"truth": torch.ones(ITEMS, 1, 24, 24)})
    assert os.listdir(path.parent) == ["recon.h5"]
    view = read_result(path)
    assert view.mean.shape == (ITEMS, 1, 24, 24)
    assert torch.equal(view.samples[4:5][0], content(4)[0]["samples"])
    assert torch.equal(view.linear[4:5][0], content(4)[0]["linear"])
    assert torch.equal(view.truth[:], torch.ones(ITEMS, 1, 24, 24))
    assert view.diagnostics["residual"].shape == (ITEMS, SAMPLES, 7)
    assert view.diagnostics["seconds"].tolist() == [i + 0.5 for i in range(ITEMS)]
    assert view.config == record()
    assert view.items == list(range(ITEMS))


def test_partial_file_shows_the_items_that_are_done(path: Path) -> None:
    fill(path, [7, 2])
    with pytest.raises(UserError, match="is not finished; run the same command again"):
        read_result(path)
    view = read_result(partial_path(path))
    assert not view.complete
    assert view.items == [2, 7]
    assert torch.equal(view.mean[1:2][0], content(7)[0]["mean"])
    assert view.diagnostics["seconds"].tolist() == [2.5, 7.5]
    with h5py.File(partial_path(path)) as file:
        assert np.isnan(file["mean"][0]).all()
        assert (file["diagnostics/acquired_at"][0] == -2).all()


def test_nothing_finished_and_no_result(path: Path, tmp_path: Path) -> None:
    ResultFile.create(path, ITEMS, SAMPLES, record()).close()
    with pytest.raises(UserError, match="no item of it is finished"):
        read_result(partial_path(path))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(UserError, match="is no result file: it lacks mean, std, samples, done and holds x"):
        read_result(tmp_path / "x.h5")


def test_writing_an_item_changes_no_structure(path: Path) -> None:
    """Why a kill is harmless: after the first item only numbers change, at their places."""
    partial = partial_path(path)
    with ResultFile.create(path, ITEMS, SAMPLES, record()) as result:
        result.write(0, *content(0))
        before = np.frombuffer(partial.read_bytes(), np.uint8)
        result.write(5, *content(5))
        after = np.frombuffer(partial.read_bytes(), np.uint8)
    assert len(before) == len(after)
    arrays, facts = content(5)
    raw = sum(v.numel() * v.element_size() + 4 for v in arrays.values()) + 8 * len(facts) + 1
    assert 0 < int((before != after).sum()) <= raw


def test_resume_goes_on(path: Path) -> None:
    fill(path, range(4))
    with ResultFile.create(path, ITEMS, SAMPLES, record()) as result:
        assert [result.is_done(i) for i in range(ITEMS)] == [True] * 4 + [False] * 8
        with pytest.raises(RuntimeError, match="8 of 12 items are not done"):
            result.finish()


def test_an_exception_keeps_the_partial(path: Path) -> None:
    def diverging() -> Iterator[int]:
        yield 0
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill(path, diverging())
    assert read_result(partial_path(path)).items == [0]


def test_items_that_are_not_finite_or_damaged_are_redone(path: Path) -> None:
    fill(path, range(4))
    with h5py.File(partial_path(path), "r+") as file:
        file["mean"][1, 0, 3, 3] = np.nan
    data = bytearray(partial_path(path).read_bytes())
    data[data.find(content(2)[0]["mean"].numpy().tobytes()) + 30] ^= 8
    partial_path(path).write_bytes(data)
    with ResultFile.create(path, ITEMS, SAMPLES, record()) as result:
        assert [result.is_done(i) for i in range(4)] == [True, False, False, True]
        for item in [1, 2, *range(4, ITEMS)]:
            result.write(item, *content(item))
        result.finish()
    assert torch.equal(read_result(path).mean[2:3][0], content(2)[0]["mean"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed 0 -> 1"),
        ({"samples": 3}, "samples 2 -> 3"),
        ({"dtype": "float64"}, 'dtype "float32" -> "float64"'),
        ({"noise": {"name": "gaussian", "sigma": 0.02}}, "noise.sigma 0.01 -> 0.02"),
        ({"strategy": {"name": "dps", "parameters": {"steps": 50}}}, "strategy.parameters.steps 100 -> 50"),
        ({"operator": {"name": "mri", "parameters": {"angles": 60}}}, 'operator.name "ct" -> "mri"'),
        ({"prior": {"name": "unet"}}, 'prior null -> {"name": "unet"}'),
        ({"scale": {"factor": 2.0, "offset": 0.0}}, "scale.factor 1.0 -> 2.0"),
        ({"input": {"file": "scan.h5", "fingerprint": "sha256:2"}}, "input.fingerprint"),
    ],
)
def test_another_configuration_is_refused_and_says_what_differs(path: Path, changes: dict[str, Any], said: str) -> None:
    fill(path, [0])
    text = refuse(path, ITEMS, SAMPLES, record(**changes))
    assert said in text
    assert "--overwrite" in text
    with ResultFile.create(path, ITEMS, SAMPLES, record(**changes), overwrite=True) as result:
        assert not result.is_done(0)


def test_a_big_configuration_is_a_dataset(path: Path) -> None:
    big = record(strategy={"name": "dps", "parameters": {"schedule": list(range(20000))}})
    with ResultFile.create(path, 1, SAMPLES, big) as result:
        result.write(0, *content(0))
        result.finish()
    with h5py.File(path) as file:
        assert "config" not in file.attrs
    assert read_result(path).config == big


def test_existing_result_stays_until_the_new_one_is_complete(path: Path) -> None:
    with ResultFile.create(path, 1, SAMPLES, record()) as result:
        result.write(0, *content(0))
        result.finish()
    old = path.read_bytes()
    assert refuse(path, 1, SAMPLES, record()) == f"{path} exists; give --overwrite to replace it"
    with ResultFile.create(path, 1, SAMPLES, record(seed=1), overwrite=True) as result:
        result.write(0, *content(1))
    assert path.read_bytes() == old
    # The same command, run again after a kill, goes on although it says --overwrite.
    with ResultFile.create(path, 1, SAMPLES, record(seed=1), overwrite=True) as result:
        assert result.is_done(0)
        result.finish()
    assert torch.equal(read_result(path).mean[0:1][0], content(1)[0]["mean"])


def test_unreadable_partial(path: Path) -> None:
    partial_path(path).write_bytes(b"rubbish")
    text = refuse(path, ITEMS, SAMPLES, record())
    assert str(partial_path(path)) in text
    assert "--overwrite" in text
    fill(path, [0], overwrite=True)
    assert read_result(partial_path(path)).items == [0]


def test_paths_that_cannot_be_written(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = tmp_path / "scan.h5"
    scan.write_bytes(b"data")
    own_input = record(input={"file": str(scan), "fingerprint": ""})
    assert "is the input itself" in refuse(tmp_path / "." / "scan.h5", 1, 1, own_input, overwrite=True)
    assert "does not exist; make it first" in refuse(tmp_path / "no" / "recon.h5", 1, 1, record())
    assert "is a folder" in refuse(tmp_path, 1, 1, record())
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "is not writable" in refuse(path, 1, 1, record())
    assert sorted(os.listdir(tmp_path)) == ["scan.h5"]


def test_full_disk_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ResultFile.create(path, ITEMS, SAMPLES, record()) as result:
        result.write(0, *content(0))
        real = h5py.File.flush

        def full(self: h5py.File) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(h5py.File, "flush", full)
        with pytest.raises(UserError, match=r"writing item 1 failed .*No space left.*finished items are kept"):
            result.write(1, *content(1))
        monkeypatch.setattr(h5py.File, "flush", real)
        assert not result.is_done(1)


def _hold(path: Path, ready: Event, done: Event) -> None:
    with ResultFile.create(path, ITEMS, SAMPLES, record()):
        ready.set()
        done.wait(120)


def test_two_writers_at_once(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    writer = context.Process(target=_hold, args=(path, ready, done))
    writer.start()
    try:
        assert ready.wait(120)
        assert "another process is writing it" in refuse(path, ITEMS, SAMPLES, record())
        assert "another process is writing it" in refuse(path, ITEMS, SAMPLES, record(), overwrite=True)
    finally:
        done.set()
        writer.join(120)


def test_a_partial_that_was_taken_away_is_noticed(path: Path) -> None:
    with ResultFile.create(path, 1, SAMPLES, record()) as result:
        result.write(0, *content(0))
        shutil.copy(partial_path(path), path.parent / "other.h5")
        os.replace(path.parent / "other.h5", partial_path(path))
        with pytest.raises(UserError, match="replaced by another process"):
            result.finish()
    assert not path.exists()


MANY = 40


def _work(path: Path, moment: int) -> None:
    kill_before_call(moment, (h5py.Dataset, "__setitem__"), (h5py.File, "flush"), (os, "replace"), (Path, "unlink"))
    with ResultFile.create(path, MANY, SAMPLES, record()) as result:
        for item in range(MANY):
            if not result.is_done(item):
                result.write(item, *content(item, 64))
        result.finish({"truth": torch.ones(MANY, 1, 64, 64)})


def test_killed_at_random_moments(path: Path) -> None:
    """SIGKILL before a random write, again and again: what was done stays, and the same command completes it."""
    chance = random.Random(1)
    context = multiprocessing.get_context("fork")
    kept, kills = 0, 0
    for _ in range(200):
        # Some before the first byte, most while items are being written.
        writer = context.Process(target=_work, args=(path, chance.randrange(1, 60)))
        writer.start()
        writer.join()
        if path.exists():
            break
        assert writer.exitcode == -signal.SIGKILL, "the same command must go on after a kill"
        kills += 1
        if partial_path(path).exists():
            with h5py.File(partial_path(path)) as file:
                done = np.flatnonzero(file["done"][:] if "mean" in file else [])
            assert len(done) >= kept, "a finished item was lost"
            kept = len(done)
            for item in done[-3:]:
                arrays = content(int(item), 64)[0]
                view = read_result(partial_path(path))
                assert torch.equal(view.samples[:][view.items.index(item)], arrays["samples"])
    assert kills >= 5
    view = read_result(path)
    assert view.complete
    for item in range(MANY):
        arrays, facts = content(item, 64)
        assert torch.equal(view.mean[item : item + 1][0], arrays["mean"])
        assert torch.equal(view.samples[item : item + 1][0], arrays["samples"])
        assert np.array_equal(view.diagnostics["acquired_at"][item], arrays["acquired_at"].numpy())
        assert view.diagnostics["seconds"][item] == facts["seconds"]
    # Only a kill between the last two steps of finish() leaves the partial beside the result.
    assert set(os.listdir(path.parent)) <= {"recon.h5", partial_path(path).name}


@pytest.mark.parametrize("bytes_left", [1, 3000, 100_000, 400_000])
def test_a_disk_that_is_full_when_space_is_allocated_is_one_line(bytes_left: int, tmp_path: Path) -> None:
    """The limit of a file's size stands for the disk: the system refuses the same calls in the same places."""
    code = f"""
import resource, signal, torch
from invsolve.datasets import hdf5
from invsolve.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_left}, {bytes_left}))
try:
    with hdf5.ResultFile.create("a.h5", 4, 1, {{"config_sha256": "x"}}) as file:
        file.write(0, {{"mean": torch.zeros(1, 512, 512)}}, {{"a": 1.0}})
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert "File too large" in done.stdout
    assert "make space" in done.stdout
    assert not list(tmp_path.glob("*.new"))
