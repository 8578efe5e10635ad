"""Noise of each entry in files: on the command line, in scans, in the record of a result, and in pipelines."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.datasets import hdf5
from invsolve.jobs.origin import find_scan
from invsolve.pipeline import steps
from invsolve.pipeline.files import Hashes, files_of, locate
from invsolve.pipeline.keys import ingredients, key_of
from invsolve.registry.written import read_written, with_absolute_files
from tests.support.types import Cli, narrow

SIZE = 16


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images of zeros, and a map of noise from 0.5 to 2 with an entry a pixel."""
    monkeypatch.chdir(tmp_path)
    with h5py.File("truth.h5", "w") as file:
        file["x"] = np.zeros((2, 1, SIZE, SIZE), np.float32)
    np.save("sigma.npy", np.geomspace(0.5, 2.0, SIZE * SIZE, dtype=np.float32).reshape(1, SIZE, SIZE))
    return tmp_path


def test_a_map_goes_from_the_command_through_the_scan_to_the_result_and_its_report(folder: Path, cli: Cli) -> None:
    given = ("--operator", "blur", "--set", "sigma=1.0")
    code, _, err = cli("simulate", "truth.h5", "-o", "scan.h5", *given, "--noise", "gaussian:sigma.npy")
    assert code == 0, err
    code, _, err = cli("simulate", "truth.h5", "-o", "unit.h5", *given, "--noise", "gaussian:1")
    assert code == 0, err
    sigma = np.load("sigma.npy")
    with h5py.File("scan.h5") as file, h5py.File("unit.h5") as unit:
        np.testing.assert_allclose(file["y"], sigma * unit["y"][:], rtol=1e-6)
        np.testing.assert_array_equal(file["noise/sigma"], sigma)
    Path("sigma.npy").unlink()  # the scan holds the numbers themselves
    code, _, err = cli("reconstruct", "scan.h5", "-o", "out.h5", "--strategy", "linear")
    assert code == 0, err
    with h5py.File("out.h5") as file:
        assert json.loads(file.attrs["config"])["noise"]["sigma"]["shape"] == [1, SIZE, SIZE]
    result = hdf5.read_result(folder / "out.h5")
    noise = find_scan(result).noise
    assert isinstance(noise, invsolve.Gaussian)
    assert torch.equal(torch.as_tensor(noise.sigma), torch.from_numpy(sigma))
    # The same command with another map is another run.
    np.save("other.npy", 2 * sigma)
    code, _, err = cli(
        "reconstruct", "scan.h5", "-o", "other.h5", "--strategy", "linear", "--noise", "gaussian:other.npy"
    )
    assert code == 0, err
    assert find_scan(hdf5.read_result(folder / "other.h5")).noise is None, "the scan's is not that of the run"


def test_a_map_that_does_not_fit_is_one_line_on_the_command_line(folder: Path, cli: Cli) -> None:
    np.save("sigma.npy", np.ones(5))
    given = ("--operator", "blur", "--set", "sigma=1.0", "--noise", "gaussian:sigma.npy")
    code, _, err = cli("simulate", "truth.h5", "-o", "scan.h5", *given)
    assert code == 2
    assert "noise gaussian: sigma (5,) does not broadcast against y (1, 1, 16, 16)" in err
    assert len(err.strip().splitlines()) == 1


def test_a_pipeline_follows_what_is_in_the_array_and_not_where_it_lies(folder: Path) -> None:
    def key(base: Path, text: str) -> str:
        step = narrow(steps.Simulate, locate(steps.Simulate(input="x", operator="blur", noise=text), base))
        assert files_of(step) == {base / "sigma.npy"}
        return key_of(ingredients(step, {}, [], Hashes(None)))

    first = key(folder, "gaussian:sigma.npy")
    moved = folder / "a=b"
    moved.mkdir()
    (moved / "sigma.npy").write_bytes((folder / "sigma.npy").read_bytes())
    # The folder's name is no key of a parameter, and the same array elsewhere is the same noise.
    assert key(moved, "gaussian:sigma.npy") == first
    assert key(moved, "gaussian:sigma=sigma.npy") == key(folder, "gaussian:sigma=sigma.npy")
    np.save(moved / "sigma.npy", 3 * np.load("sigma.npy"))
    assert key(moved, "gaussian:sigma.npy") != first
    text = with_absolute_files("gaussian:sigma.npy", moved)
    assert read_written("noise", text) == ("gaussian", {"sigma": str(moved / "sigma.npy")})
    assert with_absolute_files("gaussian:0.1", moved) == "gaussian:0.1"
    assert with_absolute_files("gaussian:none.npy", moved) == "gaussian:none.npy"
