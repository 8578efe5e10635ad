"""The linear strategies against dense-matrix formulas written out here, on small problems in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve.bench.gaussian import Compression
from invsolve.contracts.problem import Problem, make_problem
from invsolve.contracts.scale import Scale
from invsolve.engine.batch import run_batch
from invsolve.numerics.random import ChainRandom
from invsolve.testing.exact import exact_posterior
from invsolve.testing.operators import dense
from tests.support.types import narrow

NAMES = ("pigdm", "mcg", "ddnm", "ddrm", "diffpir", "dds")
CHAINS = [(0, 0), (0, 1), (1, 0)]
SIZE = 8


def make(
    operator: invsolve.Operator, sigma: float | Tensor = 0.1, channels: int = 1, rows: int = 3, size: int = SIZE
) -> Problem:
    prior = invsolve.load_prior("gaussian-field", size=size, std=0.3)
    shape = (channels, size, size)
    if channels == 2:
        prior.event_shape = shape  # the field's formula takes any number of channels
    operator = operator.to(torch.float64)
    draws = [
        prior.sample(ChainRandom(k, CHAINS[:1] * rows), torch.zeros(1, dtype=torch.float64)) for k in range(channels)
    ]
    x = torch.cat(draws, 1)
    image = torch.complex(x[:, :1], x[:, 1:] if channels == 2 else 0 * x) if operator.complex_image else x
    y = operator(image)
    noise = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    mask = operator.measured()
    y = y + sigma * (noise if mask is None else noise * mask)
    return make_problem(prior, operator, invsolve.Gaussian(sigma), y, shape, Scale())


def matrices(problem: Problem) -> tuple[Tensor, Tensor]:
    """A (numbers, pixels) and y (rows, numbers), real."""
    matrix, _ = dense(problem.linear, problem.image_shape)
    y = problem.y
    return matrix, (torch.view_as_real(y) if y.is_complex() else y).flatten(1)


def one_step(name: str, problem: Problem, sigma: float, sigma_next: float, **given: object) -> tuple[Tensor, ...]:
    """z, D, J (pixels, pixels), the noise drawn, and z', all flat."""
    strategy = invsolve.strategy(name, **given)
    z = 0.2 + sigma * ChainRandom(7, CHAINS).at(0).normal(problem.zeros())
    state = {"x": z.clone(), "shift": torch.zeros_like(z)}
    with torch.no_grad():
        moved = strategy.step(problem, state, sigma, sigma_next, ChainRandom(3, CHAINS).at(1))["x"]
        level = torch.tensor(sigma, dtype=torch.float64)
        denoised = problem.prior.denoise(z, level)
        pixels = z[0].numel()
        unit = torch.eye(pixels, dtype=torch.float64).view(pixels, *problem.image_shape)
        jacobian = problem.prior.denoise(unit, level).flatten(1).T  # the field's mean is zero: D is linear
    noise = ChainRandom(3, CHAINS).at(1).normal(z)
    return z.flatten(1), denoised.flatten(1), jacobian, noise.flatten(1), moved.flatten(1)


OPERATORS = {
    "inpainting": lambda: invsolve.operator("inpainting", fraction=0.5, image_size=SIZE),
    "blur": lambda: invsolve.operator("blur", kernel=[[0.1, 0.3, 0.0], [0.2, 0.3, 0.1]]),
    "ct": lambda: invsolve.operator("ct", image_size=SIZE, angles=5),
    "mri real": lambda: invsolve.operator("mri", image_size=SIZE, acceleration=2),
}
ROW_NOISE = {
    3: torch.tensor([0.05, 0.2, 0.4], dtype=torch.float64).view(3, 1, 1),
    4: torch.tensor([0.05, 0.2, 0.4], dtype=torch.float64).view(3, 1, 1, 1),
}


CLOSED_FORM = ("inpainting", "blur")


def rows_of(name: str) -> Tensor:
    return ROW_NOISE[3 if name == "ct" else 4]


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("variance", ["measured", "paper"])
def test_diffpir_is_the_proximal_step_of_the_paper(name: str, variance: str) -> None:
    noise_levels = rows_of(name)
    problem = make(OPERATORS[name](), noise_levels)
    sigma, sigma_next, zeta, lam = 0.5, 0.01, 0.3, 2.0
    z, d, _, n, moved = one_step(
        "diffpir", problem, sigma, sigma_next, zeta=zeta, variance=variance, weight=lam, iterations=300
    )
    a, y = matrices(problem)
    v = problem.prior.error(sigma) if variance == "measured" else sigma**2 / lam
    eps_part = sigma_next * math.sqrt(1 - zeta) / sigma
    clean = (moved - eps_part * z - sigma_next * math.sqrt(zeta) * n) / (1 - eps_part)
    for row, sigma_y in enumerate(noise_levels.flatten().tolist()):
        system = a.T @ a + sigma_y**2 / v * torch.eye(a.shape[1]).double()
        right = a.T @ (y[row] - a @ d[row])
        if name in CLOSED_FORM:
            wanted = d[row] + torch.linalg.solve(system, right)
            torch.testing.assert_close(clean[row], wanted, atol=1e-9, rtol=0)
        # Iterative solves promise the gradient, to a part tied to sigma'.
        assert float((system @ (clean[row] - d[row]) - right).norm() / right.norm()) < 1.001e-3


@pytest.mark.parametrize("name", OPERATORS)
def test_dds_reaches_the_normal_equations_and_keeps_the_old_noise(name: str) -> None:
    problem = make(OPERATORS[name](), 0.2)
    sigma, sigma_next, eta, gamma = 0.5, 0.3, 0.6, 4.0
    z, d, _, n, moved = one_step("dds", problem, sigma, sigma_next, eta=eta, gamma=gamma, solves=200)
    a, y = matrices(problem)
    a, y = a / problem.operator_norm(), y / problem.operator_norm()
    clean = torch.linalg.solve(torch.eye(a.shape[1]).double() + gamma * a.T @ a, (d + gamma * y @ a).T).T
    wanted = clean + sigma_next * (math.sqrt(1 - eta**2) * (z - d) / sigma + eta * n)
    torch.testing.assert_close(moved, wanted, atol=1e-5, rtol=0)


def test_dds_takes_so_many_krylov_steps_from_the_denoised_image() -> None:
    problem = make(OPERATORS["ct"](), 0.02)
    _, d, _, _, moved = one_step("dds", problem, 0.5, 0.0, solves=2)
    a, y = matrices(problem)
    rho = 0.02**2 / problem.prior.error(0.5)
    normal = a.T @ a + rho * torch.eye(a.shape[1]).double()
    b = (y - d @ a.T) @ a
    for row in range(3):
        # Conjugate gradients minimise the energy norm over span(b, M b).
        basis = torch.stack([b[row], normal @ b[row]], 1)
        basis, _ = torch.linalg.qr(basis)
        wanted = d[row] + basis @ torch.linalg.solve(basis.T @ normal @ basis, basis.T @ b[row])
        torch.testing.assert_close(moved[row], wanted, atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", OPERATORS)
def test_pigdm_paper_rule(name: str) -> None:
    noise_levels = rows_of(name)
    problem = make(OPERATORS[name](), noise_levels)
    sigma, sigma_next, eta = 0.5, 0.01, 0.7
    z, d, jacobian, n, moved = one_step(
        "pigdm", problem, sigma, sigma_next, variance="paper", eta=eta, weight=0.9, iterations=300
    )
    a, y = matrices(problem)
    r2 = sigma**2 / (1 + sigma**2)
    s = eta * sigma_next * math.sqrt(1 - sigma_next**2 / sigma**2)
    ddim = d + math.sqrt(sigma_next**2 - s**2) * (z - d) / sigma + s * n
    for row, sigma_y in enumerate(noise_levels.flatten().tolist()):
        system = a @ a.T + sigma_y**2 / r2 * torch.eye(len(a)).double()
        right = y[row] - a @ d[row]
        guidance = (moved[row] - ddim[row]) / 0.9
        if name in CLOSED_FORM:
            wanted = jacobian.T @ a.T @ torch.linalg.solve(system, right)
            torch.testing.assert_close(guidance, wanted, atol=1e-9, rtol=0)
        shift = torch.linalg.solve(jacobian.T, guidance)
        left = a.T @ (a @ shift) + sigma_y**2 / r2 * shift
        assert float((left - a.T @ right).norm() / (a.T @ right).norm()) < 1.001e-3


def test_pigdm_measured_is_exact_for_a_white_field() -> None:
    # White prior of variance S: v = S sigma^2 / (S + sigma^2), and D_y has to be the posterior mean of z and y together.
    operator = invsolve.operator("ct", image_size=SIZE, angles=4)
    problem = make(operator, 0.3)
    variance = 0.09
    problem.known = invsolve.load_prior("gaussian-field", spectrum=variance * torch.ones(SIZE, SIZE))
    sigma = 0.4
    z, d, _, _, moved = one_step("pigdm", problem, sigma, 0.0, iterations=300)
    a, y = matrices(problem)
    eye = torch.eye(a.shape[1]).double()
    precision = a.T @ a / 0.3**2 + eye / variance + eye / sigma**2
    wanted = (y @ a / 0.3**2 + z / sigma**2) @ torch.linalg.inv(precision)
    # As near as the inner solve promises: the gradient has fallen to a thousandth.
    gradient = 0.3**2 * (moved - wanted) @ precision
    assert float((gradient.norm(dim=1) / ((y - d @ a.T) @ a).norm(dim=1)).max()) < 1.001e-3


def test_pigdm_cuts_a_change_that_overshoots_to_the_best_length() -> None:
    problem = make(OPERATORS["blur"](), 0.02)
    sigma = 2.0
    _, d, jacobian, _, moved = one_step("pigdm", problem, sigma, 0.0)
    a, y = matrices(problem)
    v = problem.prior.error(sigma)
    covariance = sigma**2 * jacobian
    shortened = 0
    for row in range(3):
        u = torch.linalg.solve(v * a @ a.T + 0.02**2 * torch.eye(len(a)).double(), y[row] - a @ d[row])
        change = covariance.T @ a.T @ u
        curvature = change @ (a.T @ a / 0.02**2) @ change + change @ torch.linalg.solve(covariance, change)
        length = min(float(change @ a.T @ (y[row] - a @ d[row]) / 0.02**2 / curvature), 1.0)
        shortened += length < 0.9
        torch.testing.assert_close(moved[row], d[row] + length * change, atol=1e-6, rtol=1e-5)
    assert shortened


def ddrm_by_hand(
    a: Tensor,
    y: Tensor,
    z: Tensor,
    d: Tensor,
    n: Tensor,
    levels: tuple[float, float],
    sigma_y: float,
    eta: float,
    eta_b: float,
) -> Tensor:
    """One row; equations 7 and 8, mode by mode, in the full basis of torch's own decomposition."""
    sigma, sigma_next = levels
    u, s, vh = torch.linalg.svd(a, full_matrices=True)
    data, dv, zv, nv = u.T @ y, vh @ d, vh @ z, vh @ n
    out = torch.empty_like(dv)
    for i in range(len(dv)):
        value = float(s[i]) if i < len(s) else 0.0
        if value <= max(sigma_y, 1e-4 * float(s[0])):  # no data, or noisier than images are
            out[i] = dv[i] + sigma_next * (math.sqrt(1 - eta**2) * (zv[i] - dv[i]) / sigma + eta * nv[i])
        elif value * sigma_next < sigma_y:
            pull = (data[i] - value * dv[i]) / sigma_y
            out[i] = dv[i] + sigma_next * (math.sqrt(1 - eta**2) * pull + eta * nv[i])
        else:
            spread = math.sqrt(sigma_next**2 - eta_b**2 * sigma_y**2 / value**2)
            out[i] = (1 - eta_b) * dv[i] + eta_b * data[i] / value + spread * nv[i]
    return vh.T @ out


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(("strategy", "eta_b"), [("ddrm", 0.7), ("ddnm", 1.0)])
def test_ddrm_and_noisy_ddnm_mode_by_mode(name: str, strategy: str, eta_b: float) -> None:
    noise_levels = rows_of(name)
    problem = make(OPERATORS[name](), noise_levels)
    given = {"eta_b": eta_b} if strategy == "ddrm" else {}
    z, d, _, n, moved = one_step(strategy, problem, 0.5, 0.3, eta=0.8, **given)
    a, y = matrices(problem)
    for row, sigma_y in enumerate(noise_levels.flatten().tolist()):
        wanted = ddrm_by_hand(a, y[row], z[row], d[row], n[row], (0.5, 0.3), sigma_y, 0.8, eta_b)
        torch.testing.assert_close(moved[row], wanted, atol=1e-6, rtol=0)


def test_ddrm_starts_around_data_that_are_better_than_the_first_level() -> None:
    problem = make(OPERATORS["inpainting"](), 0.1)
    strategy = invsolve.strategy("ddrm", steps=5)
    x = strategy.init(problem, ChainRandom(3, CHAINS).at(0))["x"]
    sigma = float(strategy.schedule(problem)[0])
    n = ChainRandom(3, CHAINS).at(0).normal(problem.zeros())
    mask = narrow(torch.Tensor, problem.operator.measured())
    wanted = torch.where(mask, problem.y + math.sqrt(sigma**2 - 0.1**2) * n, sigma * n)
    torch.testing.assert_close(x, wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["ddnm", "mcg", "ddrm"])
def test_noise_free_pixels_come_back_as_measured(name: str) -> None:
    problem = make(OPERATORS["inpainting"](), 0.0)
    images = run_batch(problem, invsolve.strategy(name, steps=12), ChainRandom(0, CHAINS)).images
    mask = problem.operator.measured().expand_as(images)
    atol = 1e-6 if name == "mcg" else 1e-14
    torch.testing.assert_close(images[mask], problem.y[mask], atol=atol, rtol=0)
    assert float((images - problem.y)[~mask].abs().max()) > 0.01


def test_noise_free_ddnm_step_is_the_null_space_formula() -> None:
    problem = make(OPERATORS["ct"](), 0.0)
    z, d, _, n, moved = one_step("ddnm", problem, 0.5, 0.3, eta=0.8)
    a, y = matrices(problem)
    clean = moved - 0.3 * (0.6 * (z - d) / 0.5 + 0.8 * n)
    # The nearest image to D among those that explain the data: A clean = y, and clean - D in the row space.
    # That is as near as the pseudo-inverse promises: its gradient has fallen to a millionth.
    assert float(((clean @ a.T - y) @ a).norm() / ((d @ a.T - y) @ a).norm()) < 1.001e-6
    _, _, rows = torch.linalg.svd(a, full_matrices=False)
    change = clean - d
    torch.testing.assert_close(change @ rows.T @ rows, change, atol=1e-9, rtol=0)


def test_rows_with_and_without_noise_live_in_one_ddnm_batch() -> None:
    sigma = torch.tensor([0.0, 0.2, 0.0], dtype=torch.float64).view(3, 1, 1, 1)
    together = make(OPERATORS["inpainting"](), sigma)
    strategy = invsolve.strategy("ddnm", steps=12)
    images = run_batch(together, strategy, ChainRandom(0, CHAINS)).images
    alone = make_problem(
        together.known, together.operator, invsolve.Gaussian(0.0), together.y[:1], together.image_shape, Scale()
    )
    torch.testing.assert_close(
        run_batch(alone, strategy, ChainRandom(0, CHAINS[:1])).images, images[:1], atol=1e-9, rtol=0
    )


def test_time_travel_walks_each_stretch_again_and_costs_what_it_says() -> None:
    problem = make(OPERATORS["inpainting"](), 0.1)
    strategy = invsolve.strategy("ddnm", steps=7, travel=3, repeats=2)
    levels = invsolve.strategy("ddnm", steps=7).schedule(problem).tolist()
    walk = [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 7, 6, 7]
    assert strategy.schedule(problem).tolist() == [levels[k] for k in walk]
    assert run_batch(problem, strategy, ChainRandom(0, CHAINS)).facts["network_calls"] == 14


def test_travelling_back_adds_the_noise_between_the_levels() -> None:
    problem = make(OPERATORS["inpainting"](), 0.1)
    z = torch.ones(3, 1, SIZE, SIZE, dtype=torch.float64)
    moved = invsolve.strategy("ddnm").step(problem, {"x": z}, 0.3, 0.5, ChainRandom(3, CHAINS).at(1))["x"]
    wanted = z + 0.4 * ChainRandom(3, CHAINS).at(1).normal(z)
    torch.testing.assert_close(moved, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("name", "given"), [(n, {}) for n in NAMES] + [("ddnm", {"repeats": 3})])
def test_at_cost_tells_the_cost(name: str, given: dict[str, int]) -> None:
    problem = make(OPERATORS["inpainting"](), 0.1)
    strategy = invsolve.strategy(name, **given).at_cost(24)
    facts = run_batch(problem, strategy, ChainRandom(0, CHAINS)).facts
    assert facts["network_calls"] + facts["vjp_calls"] == 24


def test_mcg_is_dps_with_a_projection_onto_noised_data() -> None:
    noise_levels = rows_of("blur")
    problem = make(OPERATORS["blur"](), noise_levels)
    sigma, sigma_next, zeta = 0.5, 0.3, 0.7
    z, d, jacobian, n, moved = one_step("mcg", problem, sigma, sigma_next, zeta=zeta)
    a, y = matrices(problem)
    rng = ChainRandom(3, CHAINS).at(1)
    rng.normal(problem.zeros())
    second = rng.normal(problem.zeros()).flatten(1)
    ratio = (sigma_next / sigma) ** 2
    for row, sigma_y in enumerate(noise_levels.flatten().tolist()):
        residual = y[row] - a @ d[row]
        gradient = -jacobian.T @ a.T @ residual / residual.norm()
        x = d[row] + ratio * (z[row] - d[row]) + sigma_next * math.sqrt(1 - ratio) * n[row]
        x = x - zeta * math.sqrt((1 + sigma**2) * (1 + sigma_next**2)) / problem.operator_norm() * gradient
        gain = torch.linalg.solve(a.T @ a + sigma_y**2 / sigma_next**2 * torch.eye(len(x)).double(), a.T)
        wanted = x + gain @ (y[row] + sigma_next * a @ second[row] - a @ x)
        torch.testing.assert_close(moved[row], wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("coils", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_complex_mri_as_one_channel_and_two(name: str, channels: int, coils: int) -> None:
    if coils == 1:
        operator = invsolve.operator("mri", image_size=SIZE, acceleration=2)
    else:
        maps = torch.randn(2, SIZE, SIZE, 2, generator=torch.Generator().manual_seed(3))
        operator = invsolve.operator("mri", coil_maps=maps, acceleration=2)
    problem = make(operator, 0.02, channels)
    # A gradient step of MCG is as long as its zeta, however little noise is left: shorter here than by default.
    given = {"zeta": 0.1} if name == "mcg" else {}
    outcome = run_batch(problem, invsolve.strategy(name, steps=60, **given), ChainRandom(0, CHAINS))
    assert outcome.images.shape == (3, channels, SIZE, SIZE)
    final = problem.misfit(problem.residual(outcome.images))
    blank = problem.misfit(problem.residual(problem.zeros()))
    assert float((final / blank).max()) < 0.25


@pytest.mark.parametrize("name", NAMES)
def test_each_row_has_its_own_noise(name: str) -> None:
    sigma = torch.tensor([0.05, 0.3, 0.05], dtype=torch.float64)
    problem = make(Compression(), sigma.view(3, 1), size=16)
    strategy = invsolve.strategy(name, steps=10)
    images = run_batch(problem, strategy, ChainRandom(0, CHAINS)).images
    for row in range(3):
        alone = make_problem(
            problem.known,
            problem.operator,
            invsolve.Gaussian(float(sigma[row])),
            problem.y[row : row + 1],
            problem.image_shape,
            Scale(),
        )
        single = run_batch(alone, strategy, ChainRandom(0, CHAINS[row : row + 1])).images
        torch.testing.assert_close(single, images[row : row + 1], atol=1e-7, rtol=0)


def test_ddrm_on_a_large_operator_names_what_to_use_instead() -> None:
    operator = invsolve.operator("blur", sigma=1.0, boundary="zero")
    y = torch.zeros(1, 1, 100, 100)
    prior = invsolve.load_prior("gaussian-field", size=100)
    with pytest.raises(invsolve.UserError, match=r"take a strategy that works without one; mmps, .* would do"):
        invsolve.reconstruct(y, operator, prior, noise=invsolve.Gaussian(0.1), strategy="ddrm")


def test_dps_weighs_poisson_data_as_the_paper_does_and_divides_by_the_operators_norm() -> None:
    # Chung 2023, section 3.2: the gradient of (y - A D)' Lambda (y - A D), Lambda = diag(1 / (2 y)), with normalised length.
    gain, sigma, sigma_next = 50.0, 0.5, 0.3
    operator = invsolve.operator("ct", image_size=SIZE, angles=5).to(torch.float64)
    prior = invsolve.load_prior("gaussian-field", size=SIZE, std=0.3)
    x = 0.5 + 0.1 * torch.randn(3, 1, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise = invsolve.Poisson(gain)
    y = noise.sample(operator(x.abs()) + 1.0, ChainRandom(0, CHAINS))
    factor, offset = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64), 0.6
    problem = make_problem(prior, operator, noise, y, (1, SIZE, SIZE), Scale(factor, offset))
    strategy = invsolve.strategy("dps", zeta=0.7)
    z = sigma * ChainRandom(7, CHAINS).normal(problem.zeros())
    with torch.no_grad():
        moved = strategy.step(problem, {"x": z.clone()}, sigma, sigma_next, ChainRandom(3, CHAINS).at(1))["x"]
    n = ChainRandom(3, CHAINS).at(1).normal(z)
    probe = z.clone().requires_grad_()
    d = prior.denoise(probe, torch.tensor(sigma, dtype=torch.float64))
    physical = factor.view(3, 1, 1, 1) * d + offset
    floored = y.clamp_min(1e-12)
    assert float((y / y.flatten(1).mean(1).view(3, 1, 1)).min()) > 0.0025, "no bin at the floor of the precision"
    loss = ((y - operator(physical)) ** 2 / (2 * floored)).flatten(1).sum(1)
    (direction,) = torch.autograd.grad(loss.sum(), probe)
    ratio = (sigma_next / sigma) ** 2
    ancestral = d.detach() + ratio * (z - d.detach()) + sigma_next * math.sqrt(1 - ratio) * n
    ours = (ancestral - moved).flatten(1)
    cosine = torch.nn.functional.cosine_similarity(ours, direction.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)
    # A step is at most 0.3 zeta kappa long (times the precision's spread): the operator's norm and the row's scale are out of it.
    kappa = math.sqrt((1 + sigma**2) * (1 + sigma_next**2))
    assert float(ours.norm(dim=1).max()) <= 0.3 * 0.7 * kappa * float(problem.precision().max())


@pytest.mark.parametrize("sigma_next", [0.02, 0.3, 0.0])
def test_a_step_of_ddnm_with_noisy_data_is_one_of_ddrm(sigma_next: float) -> None:
    blur = narrow(invsolve.LinearOperator, invsolve.operator("blur", sigma=1.0))
    problem = exact_posterior(blur, samples=2, size=8, dtype=torch.float64).problem
    state = {"x": 0.5 * ChainRandom(1, [(0, 0), (0, 1)]).normal(problem.zeros())}
    moved = [
        invsolve.strategy(name).step(problem, state, 0.5, sigma_next, ChainRandom(2, [(0, 0), (0, 1)]))["x"]
        for name in ("ddnm", "ddrm")
    ]
    assert torch.equal(*moved)
    assert not torch.equal(moved[0], state["x"])
