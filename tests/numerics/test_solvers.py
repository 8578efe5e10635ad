"""Solvers: measured orders of convergence, the last step, the width of stochastic ones, calls, and the memory's form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from torch import Tensor

import invsolve
from invsolve.numerics import schedules
from invsolve.numerics.ode.base import remember
from invsolve.numerics.ode.solvers import DDIM, DEIS, GHVB, PNDM, SOLVERS, DPMpp2M, Heun, Memory, Solver, UniPC, solver
from invsolve.numerics.random import ChainRandom
from tests.support import bounds
from tests.support.followed import variance_drawn

HIGH, LOW = 5.0, 0.2
SHAPE = (4, 1, 2, 2)
ROWS = [(0, i) for i in range(4)]
QUIET = ChainRandom(0, ROWS)

GENERATOR = torch.Generator().manual_seed(0)
MEANS = 1.5 * torch.randn(3, 1, 2, 2, generator=GENERATOR, dtype=torch.float64)
START = HIGH * torch.randn(SHAPE, generator=GENERATOR, dtype=torch.float64)
MIXTURE = invsolve.load_prior("gaussian-mixture", means=MEANS, std=0.5)


def mixture(x: Tensor, sigma: float) -> Tensor:
    return MIXTURE.denoise(x, torch.full((), sigma, dtype=x.dtype))


def flow(sigmas: Sequence[float]) -> list[Tensor]:
    """The flow from START at these levels, by an independent integrator."""

    def slope(sigma: float, x: np.ndarray) -> np.ndarray:
        z = torch.from_numpy(x).view(SHAPE)
        return ((z - mixture(z, sigma)) / sigma).numpy().ravel()

    solution = solve_ivp(
        slope, (HIGH, min(sigmas)), START.numpy().ravel(), "DOP853", t_eval=sigmas, rtol=1e-12, atol=1e-13
    )
    return [torch.from_numpy(column.copy()).view(SHAPE) for column in solution.y.T]


@pytest.fixture(scope="module")
def end() -> Tensor:
    return flow([LOW])[0]


def karras(steps: int) -> list[float]:
    low, high = LOW ** (1 / 7), HIGH ** (1 / 7)
    return [(high + k / steps * (low - high)) ** 7 for k in range(steps + 1)]


def uniform(steps: int) -> list[float]:
    return [HIGH + k / steps * (LOW - HIGH) for k in range(steps + 1)]


def run(
    s: Solver, denoise: Callable[[Tensor, float], Tensor], x: Tensor, levels: Sequence[float], rng: ChainRandom = QUIET
) -> Tensor:
    memory: Memory = {}
    s = s.over(len(levels) - 1)
    for k, (sigma, sigma_next) in enumerate(pairwise(levels)):
        x, memory = s.step(denoise, x, memory, sigma, sigma_next, rng.at(k))
    return x


def observed(s: Solver, end: Tensor, grid: Callable[[int], list[float]], steps: tuple[int, int]) -> float:
    coarse, fine = (float((run(s, mixture, START, grid(n)) - end).abs().max()) for n in steps)
    return math.log2(coarse / fine) / math.log2(steps[1] / steps[0])


DETERMINISTIC = {name: s for name, s in SOLVERS.items() if name not in ("ancestral", "edm", "dpmpp-2m-sde")}


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_global_order_is_the_stated_one(name: str, end: Tensor) -> None:
    s = SOLVERS[name]
    order = observed(s, end, karras, (80, 320))
    # UniPC-3 measures 3.4: the fourth order, spoilt by its first steps.
    assert s.order - 0.05 < order < s.order + 0.45


@pytest.mark.parametrize(("k", "order"), [(1, 1.0), (2, 2.0), (3, 3.0)])
def test_heavy_ball_has_its_full_order_on_equal_steps(k: int, order: float, end: Tensor) -> None:
    assert abs(observed(GHVB(k, 0.8), end, uniform, (160, 320)) - order) < 0.12


@pytest.mark.parametrize(
    ("s", "order"), [(DEIS(p, v), p + 1) for p in (1, 2, 3, 4) for v in ("sigma", "time")] + [(PNDM("adams"), 5)]
)
def test_one_step_from_an_exact_past_errs_by_the_next_power(s: Solver, order: int) -> None:
    # In whole runs the low-order first steps hide what the later ones can do.
    errors = []
    for h in (0.02, 0.01):
        levels = [1.5 + 3 * h, 1.5 + 2 * h, 1.5 + h, 1.5, 1.5 - h]
        points = flow(levels)
        eps = [(x - mixture(x, sigma)) / sigma for x, sigma in zip(points, levels, strict=True)]
        memory = remember([eps[2], eps[1], eps[0]], [levels[2], levels[1], levels[0]], 3)
        x, _ = s.step(mixture, points[3], memory, levels[3], levels[4], QUIET)
        errors.append(float((x - points[4]).abs().max()))
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.25


@pytest.mark.parametrize("variable", ["sigma", "time"])
@pytest.mark.parametrize("power", [0, 1, 2])
def test_deis_weights_integrate_their_polynomials(variable: str, power: int) -> None:
    def value(sigma: float) -> float:
        # log(1 + sigma^2) = 0.1 t + 9.95 t^2 is the VP process with beta from 0.1 to 20.
        return (sigma if variable == "sigma" else max(np.roots([9.95, 0.1, -math.log(1 + sigma**2)]).real)) ** power

    levels, after = [0.8, 1.1, 2.0], 0.5
    weights = DEIS(3, variable).weights(levels, after)  # type: ignore[arg-type]
    got = sum(w * value(sigma) for w, sigma in zip(weights, levels, strict=True))
    assert got == pytest.approx(quad(value, levels[0], after)[0], rel=1e-10)


def gaussian(variance: float) -> Callable[[Tensor, float], Tensor]:
    return lambda x, sigma: variance / (variance + sigma**2) * x


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_down_to_level_zero(name: str) -> None:
    # The flow of a Gaussian only rescales: x0 = x sqrt(S / (S + sigma^2)).
    levels = schedules.edm(60, 0.005, 20.0).tolist()
    x = levels[0] * START / HIGH
    wanted = x * math.sqrt(0.25 / (0.25 + levels[0] ** 2))
    got = run(SOLVERS[name], gaussian(0.25), x, levels)
    assert float((got / wanted - 1).abs().max()) < (0.06 if SOLVERS[name].order == 1 else 0.006)


@pytest.mark.parametrize(
    ("s", "allowed"),
    [(DDIM(1.0), 0.022), (DDIM(0.5), 0.014), (Heun(0.2), 0.01), (Heun(0.41), 0.01), (DPMpp2M(0.5), 0.01), (DPMpp2M(1.0), 0.01)],
    ids=str,
)  # fmt: skip
def test_stochastic_solvers_have_the_right_width(s: Solver, allowed: float) -> None:
    rng = ChainRandom(1, [(0, i) for i in range(16)])
    # The first-order ones err by 2.1 and 1.3 % at 400 steps, a first-order error: half as much at 800.
    levels = schedules.edm(400 if s.order == 1 else 200, 0.01, 20.0).tolist()
    blank = torch.zeros(16, 1, 64, 64, dtype=torch.float32)
    x = math.sqrt(0.25 + levels[0] ** 2) * rng.at(999).normal(blank)
    samples = run(s, gaussian(0.25), x, levels, rng)
    # Each pixel goes its own way: the variance is followed exactly, and a variance is off by twice what a width is.
    variance = variance_of(s, levels)
    assert float(samples.var()) == pytest.approx(variance, rel=2 * bounds.width_error(samples.numel()))
    assert abs(variance / 0.25 - 1) < allowed
    finer = schedules.edm(2 * (len(levels) - 1), 0.01, 20.0).tolist()
    # The last step returns D, which leaves out the variance of the last level.
    assert abs(variance_of(s, finer) - 0.25) < 0.55 * abs(variance - 0.25) + 0.01**2
    assert abs(float(samples.mean())) < bounds.mean_error(samples.numel(), 0.5)
    # Noise was drawn anew: what was there at the start is at least partly forgotten.
    correlation = float((samples * x).mean() / (samples.std() * x.std()))
    assert correlation < 0.95


@pytest.mark.parametrize("name", SOLVERS)
def test_calls_are_counted_rightly(name: str) -> None:
    s = SOLVERS[name]
    for steps in (2, 3, 7):
        seen: list[float] = []

        def denoise(x: Tensor, sigma: float, seen: list[float] = seen) -> Tensor:
            seen.append(sigma)
            return gaussian(0.25)(x, sigma)

        run(s, denoise, START, schedules.edm(steps, 0.1, 5.0).tolist())
        assert len(seen) == s.calls(steps)
        assert min(seen) > 0
    assert s.calls(s.steps_within(50)) <= 50 < s.calls(s.steps_within(50) + 1)


@pytest.mark.parametrize("name", SOLVERS)
def test_memory_is_cut_by_rows_and_outlives_a_snapshot(name: str, tmp_path: Path) -> None:
    s, levels = SOLVERS[name].over(8), karras(8)
    half: Memory = {}
    x = START
    for k, (sigma, sigma_next) in enumerate(pairwise(levels[:6])):
        x, half = s.step(mixture, x, half, sigma, sigma_next, QUIET.at(k))
    assert all(isinstance(v, Tensor) and len(v) == 4 for v in half.values())
    torch.save({"x": x, **half}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    whole = []
    for rows in ([0, 1, 2, 3], [2], [0, 3]):
        rng = ChainRandom(0, [ROWS[r] for r in rows])
        # A strategy hands over its whole state.
        memory = {key: value[rows] for key, value in state.items()}
        x = memory["x"]
        for k, (sigma, sigma_next) in enumerate(pairwise(levels[5:]), start=5):
            x, memory = s.step(mixture, x, memory, sigma, sigma_next, rng.at(k))
        whole.append(x)
    torch.testing.assert_close(whole[0], run(s, mixture, START, levels))
    torch.testing.assert_close(whole[1], whole[0][[2]])
    torch.testing.assert_close(whole[2], whole[0][[0, 3]])


def test_unipc_keeps_what_was_added_between_steps() -> None:
    # A corrector that started from its own last point would lose it.
    s = UniPC(2)
    x, memory = s.step(mixture, START, {}, 5.0, 4.0, QUIET)
    push = torch.full(SHAPE, 1e-3, dtype=torch.float64)
    kept, _ = s.step(lambda z, sigma: mixture(z - push, sigma), x + push, memory, 4.0, 3.0, QUIET)
    plain, _ = s.step(mixture, x, memory, 4.0, 3.0, QUIET)
    torch.testing.assert_close(kept - plain, push * 3.0 / 4.0)


def variance_error(s: Solver, steps: int) -> float:
    """Of samples of N(0, 0.25), relative."""
    levels = schedules.edm(steps, 0.002, 80.0).tolist()
    return abs(variance_of(s.over(steps), levels) / 0.25 - 1)


def variance_of(s: Solver, levels: list[float]) -> float:
    """Of samples of N(0, 0.25) that start with the right variance."""
    quarter = torch.tensor([[0.25]], dtype=torch.float64)
    return float(variance_drawn(s, quarter, levels, math.sqrt(0.25 + levels[0] ** 2)))


def test_the_churn_of_the_edm_preset_is_spread_over_the_run() -> None:
    # Both the flow and the noise are then followed to second order in the step, so that four times the steps leave a sixteenth.
    few, many = variance_error(SOLVERS["edm"], 400), variance_error(SOLVERS["edm"], 1600)
    assert few < 4e-3
    assert many < few / 8
    # Fixed, it leaves the error of the noise, which falls with the step and no faster.
    assert variance_error(SOLVERS["edm"], 3200) < variance_error(Heun(churn=0.2), 3200) / 10


def test_a_churn_of_the_run_is_not_taken_by_a_single_step() -> None:
    with pytest.raises(invsolve.UserError, match=r"over\(steps\)"):
        SOLVERS["edm"].step(mixture, START, {}, 5.0, 4.0, QUIET)
    assert Heun(churn_of_run=40.0).over(200) == Heun(churn=0.2)
    assert Heun(churn_of_run=40.0).over(10) == Heun(churn=math.sqrt(2) - 1)


def test_names_and_settings() -> None:
    assert solver("dpmpp-2m") is SOLVERS["dpmpp-2m"]
    assert solver(UniPC(1)) == UniPC(1)
    with pytest.raises(invsolve.UserError, match=r"unknown solver 'dpmpp2m'\. Did you mean 'dpmpp-2m'"):
        solver("dpmpp2m")


@pytest.mark.parametrize(
    "make",
    [
        lambda: DDIM(eta=1.5),
        lambda: Heun(churn=0.5),
        lambda: Heun(churn_of_run=-1.0),
        lambda: DPMpp2M(eta=-1.0),
        lambda: DEIS(5),
        lambda: DEIS(2, "rho"),  # type: ignore[arg-type]
        lambda: PNDM("none"),  # type: ignore[arg-type]
        lambda: UniPC(4),
        lambda: GHVB(0),
        lambda: GHVB(2, 0.0),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Solver]) -> None:
    with pytest.raises(invsolve.UserError, match="solver"):
        make()
