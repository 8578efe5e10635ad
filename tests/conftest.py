"""Shared fixtures: the reference data, small image files, and the command line as a function."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from invsolve import registry
from invsolve.cli.app import run

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data's folder; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED


# The tests' tensors are small: a second thread costs more than it brings.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_plugin_files_from_other_tests() -> Iterator[None]:
    yield
    registry.unload_files()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A file of five 16 x 16 images drawn from smoothed noise."""
    rng = np.random.default_rng(0)
    x = np.cumsum(np.cumsum(rng.normal(size=(5, 1, 16, 16)), -1), -2).astype("f4") * 0.05
    path = tmp_path / "truth.h5"
    with h5py.File(path, "w") as file:
        file["x"] = x
    return path


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = run([str(a) for a in arguments])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def cli_process() -> Callable[..., "subprocess.Popen[str]"]:
    """Start the command line as a process of its own."""

    def start(*arguments: object, start_new_session: bool = False) -> "subprocess.Popen[str]":
        command = [sys.executable, "-P", "-m", "invsolve", *(str(a) for a in arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, **pipes, text=True, start_new_session=start_new_session)

    return start
