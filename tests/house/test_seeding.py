"""The suite itself: the seed decides every draw, and a failing test names it."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.seeding import chosen, seed_everything

ROOT = Path(__file__).resolve().parents[2]

FAILING = """
import random, numpy, torch

def test_draws():
    assert not ("drew", random.random(), float(numpy.random.rand()), float(torch.rand(())))
"""


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002 - what is tested


def test_every_test_starts_from_the_seed(pytestconfig: pytest.Config) -> None:
    seen = draws()
    seed_everything(chosen(pytestconfig))
    assert seen == draws()
    seed_everything(chosen(pytestconfig) + 1)
    assert not set(seen) & set(draws())


def test_hypothesis_draws_from_the_seed_alone(pytestconfig: pytest.Config) -> None:
    settings = pytest.importorskip("hypothesis").settings
    assert pytestconfig.getoption("--hypothesis-seed") is not None
    # Neither what failed before nor how fast this machine is has a say.
    assert settings().database is None
    assert settings().deadline is None


def test_a_failure_names_its_seed(tmp_path: Path) -> None:
    (tmp_path / "test_failing.py").write_text(FAILING)
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.conftest"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "--seed", "3", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "this test ran with --seed 3" in done.stdout
    seed_everything(3)
    assert f"('drew', {', '.join(map(repr, draws()))})" in done.stdout
