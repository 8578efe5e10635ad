"""Shared fixtures: the reference data, small image files, and the command line as a function."""

import os
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from invsolve import registry
from invsolve.api import verdicts
from invsolve.api.discrepancy import DiscrepancyWarning
from invsolve.cli.app import run
from tests.support import seeding
from tests.support.types import Cli, CliProcess

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data's folder; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    return SHARED


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", metavar="N", help="seed of all that the tests draw (default: INVSOLVE_TEST_SEED, else 0)"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    seeding.configure_hypothesis(config, seeding.chosen(config))


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {seeding.chosen(config)}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # Before every fixture, those of a module included: no test's numbers depend on which tests ran before it.
    seeding.seed_everything(seeding.chosen(item.config))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A test marked `discrepant` must be told that its samples and its noise disagree; others must not.

    The mark's arguments, where there are any, name the cases for which it holds.
    """
    mark = item.get_closest_marker("discrepant")
    if mark is None or (mark.args and item.name.partition("[")[2][:-1] not in mark.args):
        return (yield)
    with pytest.warns(DiscrepancyWarning):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.append(("seed", f"this test ran with --seed {seeding.chosen(item.config)}"))
    return report


# The tests' tensors are small: a second thread costs more than it brings.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_plugin_files_from_other_tests() -> Iterator[None]:
    yield
    registry.unload_files()


@pytest.fixture(autouse=True)
def _no_verdicts_from_elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Self-tests run, and are kept where no other test finds them."""
    place = tmp_path_factory.getbasetemp() / "verdicts" / os.urandom(8).hex()
    monkeypatch.setattr(verdicts, "folder", lambda: place)


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
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
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
def cli_process() -> Iterator[CliProcess]:
    """Start the command line as a process of its own; what still runs when the test ends is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(
        *arguments: object, start_new_session: bool = False, environment: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        command = [sys.executable, "-P", "-m", "invsolve", *(str(a) for a in arguments)]
        started.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=start_new_session,
                env={**os.environ, **(environment or {})},
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        # Reads what is left, closes the pipes and waits.
        process.communicate()
