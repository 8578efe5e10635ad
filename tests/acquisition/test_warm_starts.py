"""Warm starts: particles that go on from the last round's are posterior samples still, survive a kill, and cost what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.errors import UserError
from tests.support.acquisition import SIGMA, Bench, Columns, bench


@pytest.fixture(scope="module")
def case() -> Bench:
    return bench(Columns())


def begin(case: Bench, **settings: Any) -> invsolve.Session:
    given: dict[str, Any] = {"budget": 4, "particles": 4, "initial": [6], "warm": 0.5, "seed": 1, **settings}
    return invsolve.acquire(case.operator, case.prior, noise=invsolve.Gaussian(SIGMA), **given)


@pytest.mark.slow
def test_particles_that_go_on_are_still_of_the_posterior(case: Bench) -> None:
    draws = 64
    session = begin(case, particles=draws, policy="variance", budget=3, warm=1.0)
    for _ in session.rounds(case.measure):
        pass
    samples = session.particles().flatten(1).double().numpy()
    mean, covariance = case.posterior(session.acquired)
    std = np.sqrt(np.diag(covariance))
    # As of 64 independent draws: 1/8 by chance, and what the strategy claims of its bias (0.1) at most.
    assert np.sqrt((((samples.mean(0) - mean) / std) ** 2).mean()) < np.hypot(1 / 8, 0.1) * 1.15
    assert 0.93 < np.sqrt((samples.var(0, ddof=1) / std**2).mean()) < 1.07


def test_they_go_on_from_the_file_after_a_kill(case: Bench, tmp_path: Path) -> None:
    alone = begin(case, calls=8, scout="dds")
    for _ in alone.rounds(case.measure):
        pass
    for _ in range(4):
        session = begin(case, calls=8, scout="dds", file=tmp_path / "s.h5")
        session.tell(session.ask(), case.measure(session.ask()))
        session.ask()
    assert session.acquired == alone.acquired
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["particles"].attrs["drawn_after"] == 3
    with pytest.raises(UserError, match=r"other settings \(pace\)"):
        begin(case, calls=9, scout="dds", file=tmp_path / "s.h5")


def test_calls_are_what_was_asked_for(case: Bench) -> None:
    session = begin(case, calls=8, scout="dds")
    for _ in session.rounds(case.measure):
        pass
    # Three choices, of which none is by particles of the prior.
    assert session.calls == 3 * 8


def test_the_noise_of_one_sweep_is_not_that_of_the_last(case: Bench) -> None:
    session = begin(case, policy="variance", particles=8, calls=8, scout="dds")
    rows = []
    for _ in session.rounds(case.measure):
        rows.append(session.particles().flatten(1) - session.particles().flatten(1).mean(0))
    cosine = torch.nn.functional.cosine_similarity(rows[1], rows[2]).abs().mean()
    assert float(cosine) < 0.9


@pytest.mark.parametrize("scout", ["red-diff", "tds"])
def test_a_scout_that_cannot_go_on_is_refused_in_one_line(case: Bench, scout: str) -> None:
    session = begin(case, scout=scout, calls=4)
    session.tell([6], case.measure([6]))
    session.tell(session.ask(), case.measure(session.ask()))
    with pytest.raises(UserError, match="to go on from"):
        session.ask()


def test_paces_that_cannot_be_are_refused(case: Bench) -> None:
    for settings, match in (
        ({"warm": 0.0}, "warm must be"),
        ({"warm": float("nan")}, "warm must be"),
        ({"calls": 1}, "calls"),
    ):
        with pytest.raises(UserError, match=match):
            begin(case, **settings)
