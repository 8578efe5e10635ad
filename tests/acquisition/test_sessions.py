"""Sessions: what is asked and told, the budget, the file that survives, and the reconstruction against the exact posterior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import invsolve
from invsolve.errors import UserError
from tests.support.acquisition import SIDE, SIGMA, Bench, Columns, bench


@pytest.fixture(scope="module")
def case() -> Bench:
    return bench(Columns())


def begin(case: Bench, **settings: Any) -> invsolve.Session:
    given: dict[str, Any] = {"policy": "centre-out", "budget": 4, "particles": 2, **settings}
    return invsolve.acquire(case.operator, case.prior, noise=invsolve.Gaussian(SIGMA), **given)


def test_what_is_asked_is_told_and_shown(case: Bench) -> None:
    session = begin(case, initial=[1], at_once=2)
    assert session.ask() == [1]
    assert session.ask() == [1]
    session.tell([1], case.measure([1]))
    assert session.ask() == [6, 5]
    # In another order, and one after the other.
    session.tell([5], case.measure([5]))
    assert session.ask() == [6]
    session.tell([6], case.measure([6]))
    assert session.acquired == [1, 5, 6]
    assert session.order.tolist() == [-1, 0, -1, -1, -1, 1, 2, -1, -1, -1, -1, -1]
    assert session.mask.shape == case.y.shape
    assert session.mask[0, 0].nonzero().flatten().tolist() == [1, 5, 6]
    assert torch.equal(session.y, torch.where(session.mask, case.y, 0.0).float())
    assert not session.done
    session.tell(session.ask(), case.y)
    assert session.done
    assert session.spent == 4


def test_a_whole_measurement_gives_only_the_groups_that_were_named(case: Bench) -> None:
    session = begin(case)
    session.tell([3], case.y)
    assert session.y[0, :, 3].tolist() == case.y[0, :, 3].float().tolist()
    assert int((session.y != 0).sum()) == SIDE


def test_a_budget_of_cost_is_kept_to(case: Bench) -> None:
    costs = [1.0 + group % 3 for group in range(SIDE)]
    session = begin(case, costs=costs, budget=7.5)
    session.run(case.measure)
    assert session.spent <= 7.5
    # Nothing that is left would have fitted.
    others = [cost for group, cost in enumerate(costs) if group not in session.acquired]
    assert session.spent + min(others) > 7.5


def test_it_stops_when_little_is_uncertain(case: Bench) -> None:
    session = begin(case, budget=12, policy="variance", particles=16, until=0.12, strategy="moment")
    session.run(case.measure)
    wanted = 0.12
    assert 0 < len(session.acquired) < 12
    _, covariance = case.posterior(session.acquired)
    before = case.posterior(session.acquired[:-1])[1]
    # An rms standard deviation from 16 particles is known to 1 / sqrt(2 (16 - 1)) in each mode, and better over many.
    slack = 1 + 4 / np.sqrt(2 * 15 * 10)
    assert np.sqrt(np.diag(covariance).mean()) < wanted * slack
    assert np.sqrt(np.diag(before).mean()) > wanted / slack


def test_the_reconstruction_is_the_posterior_of_what_was_acquired(case: Bench) -> None:
    draws = 64
    session = begin(case, policy="entropy", budget=4, particles=draws, seed=2)
    result = session.run(case.measure)
    mean, covariance = case.posterior(session.acquired)
    std = np.sqrt(np.diag(covariance))
    samples = result.samples[0].flatten(1).double().numpy()
    error = (samples.mean(0) - mean) / std
    # The mean of 64 draws is 1/8 posterior standard deviation off by chance alone, in rms over the pixels; the 0.13.
    assert np.sqrt((error**2).mean()) < 0.16
    ratio = np.sqrt((samples.var(0, ddof=1) / std**2).mean())
    assert 0.97 < ratio < 1.03
    assert result.diagnostics["acquired_at"].shape == (1, 1, SIDE)
    assert result.diagnostics["acquired_at"][0, 0].tolist() == session.order.tolist()


def test_unknown_or_nonsense_answers_change_nothing(case: Bench) -> None:
    session = begin(case)
    session.tell([2], case.measure([2]))
    before = session.y
    good = case.measure([3])
    bad: list[tuple[Any, Any, str]] = [
        ([2], case.measure([2]), "acquired before"),
        ([12], good, "0 to 11"),
        ([3, 3], case.measure([3, 3]), "twice"),
        (["3"], good, "no whole number"),
        ([3], good[:, :5], "has 12 entries, got 5"),
        ([3, 4], good, "1 rows for 2 groups"),
        ([3], np.full_like(good, np.nan), "NaN or infinity"),
        ([3], good * 1j, "complex"),
        ([3], "many", "no array"),
    ]
    for groups, values, match in bad:
        with pytest.raises(UserError, match=match):
            session.tell(groups, values)
        assert torch.equal(session.y, before)
        assert session.acquired == [2]


def test_settings_that_cannot_be_are_refused(case: Bench) -> None:
    for settings, match in (
        ({"budget": 13}, "within 12"),
        ({"budget": 0}, "above 0"),
        ({"initial": [0, 1, 2, 3, 4]}, "more than the budget"),
        ({"initial": [40]}, "group 40"),
        ({"costs": [1.0]}, "12 positive numbers"),
        ({"policy": "entropy", "particles": 1}, "particles=2"),
        ({"until": 0.1, "particles": 1}, "particles=2"),
        ({"policy": "best"}, "unknown policy"),
        ({"at_once": 0}, "at_once"),
    ):
        with pytest.raises(UserError, match=match):
            begin(case, **settings)
    with pytest.raises(UserError, match="no groups to acquire"):
        invsolve.acquire(invsolve.operator("blur", sigma=1.0), case.prior, noise=invsolve.Gaussian(0.1))
    with pytest.raises(UserError, match="nothing was measured yet"):
        begin(case).reconstruction()


def test_a_session_goes_on_from_its_file(case: Bench, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"policy": "entropy", "budget": 4, "particles": 4, "initial": [6]}
    alone = begin(case, **settings)
    image = alone.run(case.measure).samples
    path = tmp_path / "session.h5"
    for _ in range(3):
        # A new session each time: one round, and what the next one is asked is not told.
        session = begin(case, file=path, **settings)
        session.tell(session.ask(), case.measure(session.ask()))
        asked = session.ask()
    session = begin(case, file=path, **settings)
    assert session.ask() == asked
    assert torch.equal(session.run(case.measure).samples, image)
    assert session.acquired == alone.acquired
    with h5py.File(path) as file:
        assert file["acquired_at"][:].tolist() == alone.order.tolist()


def test_a_file_of_another_session_is_refused(case: Bench, tmp_path: Path) -> None:
    path = tmp_path / "session.h5"
    begin(case, file=path)
    with pytest.raises(UserError, match=r"other settings \(budget\)"):
        begin(case, file=path, budget=5)
    for changed, named in (({"scale": (0.0, 2.0)}, "scale"), ({"strategy": "dds"}, "strategies")):
        with pytest.raises(UserError, match=rf"other settings \({named}\)"):
            begin(case, file=path, **changed)
    other = Bench(case.operator, invsolve.load_prior("gaussian-field", size=SIDE, std=0.4), case.covariance, case.y)
    with pytest.raises(UserError, match=r"other settings \(prior\)"):
        begin(other, file=path)
    with pytest.raises(UserError, match=r"other settings \(noise\)"):
        invsolve.acquire(
            case.operator,
            case.prior,
            noise=invsolve.Gaussian(0.2),
            policy="centre-out",
            budget=4,
            particles=2,
            file=path,
        )
    with h5py.File(path, "a") as file:
        file["acquired_at"][3] = 0
    with pytest.raises(UserError, match="do not fit one another"):
        begin(case, file=path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1]
    with pytest.raises(UserError, match="no session"):
        begin(case, file=tmp_path / "other.h5")


def test_complex_measurements_are_told_by_column() -> None:
    prior = invsolve.load_prior("gaussian-field", size=8, std=0.3)
    operator = invsolve.operator("mri", image_size=8)
    k_space = torch.randn(1, 8, 8, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    session = invsolve.acquire(
        operator, prior, noise=invsolve.Gaussian(0.1), policy="centre-out", budget=2, particles=2, image_shape=(1, 8, 8)
    )
    session.tell([4], k_space[:, :, 4].reshape(1, 8))
    assert torch.equal(session.y[:, :, 4], k_space[:, :, 4])
    assert int((session.y != 0).sum()) == 8


def test_groups_of_different_sizes_are_told_in_one_go() -> None:
    class Uneven(Columns):
        """Two columns of a whole image, and single rows of the rest."""

        def __init__(self) -> None:
            super().__init__(4)
            self.group_index = torch.tensor([[[0, 1, 2, 2], [0, 1, 3, 3], [0, 1, 4, 4], [0, 1, 5, -1]]])

    prior = invsolve.load_prior("gaussian-field", size=4, std=0.3)
    session = invsolve.acquire(Uneven(), prior, noise=invsolve.Gaussian(0.1), policy="random", budget=3, particles=2)
    session.tell([1, 3, 5], [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0], [7.0]])
    assert session.y[0].tolist() == [[0, 1, 0, 0], [0, 2, 5, 6], [0, 3, 0, 0], [0, 4, 7, 0]]
    with pytest.raises(UserError, match="group 0 has 4 entries, got 1"):
        session.tell([2, 0], [[1.0, 2.0], [1.0]])
