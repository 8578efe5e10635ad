"""Operators that are a black box: enkg and dpg against transcriptions, and a simulator of NumPy alone from the command line."""

from __future__ import annotations

import textwrap
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import invsolve
from invsolve.contracts.problem import make_problem
from invsolve.contracts.scale import Scale
from invsolve.datasets import hdf5
from invsolve.engine.batch import run_batch
from invsolve.numerics.random import ChainRandom
from tests.support.types import Cli

SIZE, MEMBERS = 6, 10


class Simulator(invsolve.Operator):
    """Saturating sums of the rows and columns, calculated by NumPy."""

    image_shape = (1, SIZE, SIZE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(predicted(x.numpy()))


def predicted(x: np.ndarray) -> np.ndarray:
    return np.tanh(np.concatenate([x[:, 0].sum(1), x[:, 0].sum(2)], 1))


def edm(steps: int, low: float, high: float) -> list[float]:
    ramp = np.linspace(1, 0, steps)
    return [*((low ** (1 / 7) + ramp * (high ** (1 / 7) - low ** (1 / 7))) ** 7), 0.0]


def test_enkg() -> None:
    """Zheng 2024, Algorithm 1, with InverseBench's settings, in NumPy."""
    steps, weight, sigma_y = 20, 2.0, 0.01
    prior = invsolve.load_prior("gaussian-field", size=SIZE, std=0.3)
    truth = invsolve.sample(prior, 1, seed=0).double()
    y = torch.from_numpy(predicted(truth.numpy())).expand(MEMBERS, -1)
    problem = make_problem(prior, Simulator(), invsolve.Gaussian(sigma_y), y, (1, SIZE, SIZE), Scale(), MEMBERS)
    chains = [(0, s) for s in range(MEMBERS)]
    rng = ChainRandom(3, chains)

    def denoise(z: np.ndarray, sigma: float) -> np.ndarray:
        return prior.denoise(torch.from_numpy(z), torch.tensor(sigma, dtype=torch.float64)).numpy()

    levels = edm(steps, prior.sigma_min, prior.sigma_max)
    z, updates = levels[0] * rng.at(0).normal(problem.zeros()).numpy(), 0
    for k, (sigma, after) in enumerate(pairwise(levels)):
        if k > 0:
            inner = min(1 + (steps - k - 1) // 8, 10)
            for _ in range(2):
                x = z
                for level, then in pairwise(
                    edm(inner, min(prior.sigma_min, sigma), sigma) if inner > 1 else [sigma, 0.0]
                ):
                    x = x + (then - level) * (x - denoise(x, level)) / level
                there = predicted(x)
                if np.square(there - y.numpy()).sum(1).mean() <= sigma_y**2 * y.shape[1]:
                    continue
                error, spread = there - y.numpy(), there - there.mean(0)
                gain = error @ spread.T / MEMBERS
                away = (z - z.mean(0)).reshape(MEMBERS, -1)
                z = z - weight / np.linalg.norm(gain) * (gain @ away).reshape(z.shape)
                updates += 1
        z = z + (after - sigma) * (z - denoise(z, sigma)) / sigma
    images = run_batch(problem, invsolve.strategy("enkg", steps=steps, weight=weight), ChainRandom(3, chains)).images
    assert updates > 10
    np.testing.assert_allclose(images.numpy(), z, atol=1e-8)


def test_dpg() -> None:
    """Tang 2024, Algorithm 1, as their code has it for Gaussian noise, in variance-preserving coordinates and NumPy."""
    steps, draws, scale, sigma_y, pixels = 12, 40, 1.4, 0.01, SIZE * SIZE
    prior = invsolve.load_prior("gaussian-field", size=SIZE, std=0.3)
    truth = invsolve.sample(prior, 1, seed=0).double()
    chains = [(0, 0), (0, 1)]
    y = torch.from_numpy(predicted(truth.numpy())).expand(len(chains), -1)
    problem = make_problem(prior, Simulator(), invsolve.Gaussian(sigma_y), y, (1, SIZE, SIZE), Scale())
    strategy = invsolve.strategy("dpg", steps=steps, draws_a_step=draws, scale=scale)
    levels, rng = strategy.schedule(problem).tolist(), ChainRandom(3, chains)
    bars = [1 / (1 + sigma**2) for sigma in levels]
    x = np.sqrt(1 / bars[0] - 1) * rng.at(0).normal(problem.zeros()).numpy() * np.sqrt(bars[0])
    memory: list[tuple[float, np.ndarray]] = []
    pushed = 0
    for k, (bar, after) in enumerate(pairwise(bars), start=1):
        sigma, at = np.sqrt((1 - bar) / bar), rng.at(k)

        def clean(x: torch.Tensor, sigma: float = sigma, bar: float = bar) -> torch.Tensor:
            return prior.denoise(x / bar**0.5, torch.tensor(sigma, dtype=x.dtype))

        there = torch.from_numpy(x).requires_grad_()
        mean = clean(there)
        noise = at.normal(mean.detach()[:, None].expand(-1, draws, 1, SIZE, SIZE)).numpy()
        step, states = np.empty_like(x), []
        for row in range(len(chains)):
            base = float(np.square(predicted(mean[row : row + 1].detach().numpy()) - y[row].numpy()).sum())
            z = base if k == 1 else 0.9 * memory[row][0] + 0.1 * base
            r = np.sqrt(z / pixels) / 2
            around = mean[row].detach().numpy() + r * noise[row]
            error = np.square(predicted(around) - y[row].numpy()).sum(1) - base
            reward = np.exp(-error / z)
            others = (reward.sum() - reward) / (draws - 1)
            log_q = (torch.from_numpy(around) - mean[row]).square().flatten(1).sum(1) / (2 * r * r)
            loss = (torch.from_numpy(reward - others) * log_q).mean()
            (gradient,) = torch.autograd.grad(loss, there, retain_graph=True)
            raw = gradient[row].numpy()
            share = 0.1 * (steps - k) / steps
            direction = raw if k == 1 else share * memory[row][1] + (1 - share) * raw
            states.append((z, raw))
            # Ours: none where the data are met to within the noise.
            pushed += base > sigma_y**2 * y.shape[1]
            step[row] = direction / np.linalg.norm(direction) * (base > sigma_y**2 * y.shape[1])
        memory, x0 = states, mean.detach().numpy()
        beta, fresh = 1 - bar / after, at.normal(problem.zeros()).numpy()
        x = np.sqrt(after) * beta / (1 - bar) * x0 + np.sqrt(1 - beta) * (1 - after) / (1 - bar) * x
        x = x + np.sqrt((1 - after) / (1 - bar) * beta) * fresh - scale * np.sqrt(pixels) * beta * step
    images = run_batch(problem, strategy, ChainRandom(3, chains)).images
    assert pushed > 12
    np.testing.assert_allclose(images.numpy(), x, atol=1e-8)


def test_dpg_compares_rewards() -> None:
    with pytest.raises(invsolve.UserError, match="'dpg': rewards are compared: draws_a_step must be 2 or more, got 1"):
        invsolve.strategy("dpg", draws_a_step=1)


def test_enkg_takes_an_ensemble() -> None:
    prior = invsolve.load_prior("gaussian-field", size=SIZE)
    with pytest.raises(invsolve.UserError, match="'enkg' needs an ensemble: ask for hundreds of samples per item"):
        invsolve.reconstruct(
            torch.zeros(1, 2 * SIZE), Simulator(), prior, noise=invsolve.Gaussian(0.1), strategy="enkg", samples=1
        )


@pytest.mark.parametrize("members", [SIZE * SIZE - 1, SIZE * SIZE])
def test_enkg_tells_of_fewer_members_than_pixels(members: int) -> None:
    prior = invsolve.load_prior("gaussian-field", size=SIZE)
    given = {"noise": invsolve.Gaussian(0.1), "strategy": invsolve.strategy("enkg", steps=2), "samples": members}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        invsolve.reconstruct(torch.zeros(1, 2 * SIZE), Simulator(), prior, **given)  # type: ignore[arg-type]
    told = [str(w.message) for w in found if "ensemble" in str(w.message)]
    assert len(told) == (members < SIZE * SIZE)
    assert all("35 samples per item are the ensemble, of 36 pixels" in line and "\n" not in line for line in told)


@pytest.mark.parametrize(
    ("strategy", "samples", "settings"),
    [("enkg", 64, ["steps=30"]), ("dpg", 4, ["steps=60", "draws_a_step=256"])],
)
def test_a_simulator_of_numpy_alone_works_from_the_command_line(
    tmp_path: Path, cli: Cli, strategy: str, samples: int, settings: list[str]
) -> None:
    plugin, truth, scan, out = (tmp_path / name for name in ("sim.py", "truth.h5", "scan.h5", "recon.h5"))
    plugin.write_text(
        textwrap.dedent(
            '''
            """A simulator that torch cannot look into."""
            import numpy as np
            import torch
            import invsolve

            class Blocks(invsolve.Operator):
                """Saturating means of blocks of 16 x 16 pixels."""

                image_shape = (1, 64, 64)

                def forward(self, x):
                    x = x.detach().numpy()
                    return torch.from_numpy(np.tanh(4 * x[:, 0].reshape(-1, 4, 16, 4, 16).mean((2, 4))))

            @invsolve.hookimpl
            def invsolve_operators():
                return {"blocks": Blocks}
            '''
        )
    )
    image = invsolve.sample(invsolve.load_prior("gaussian-field"), 1, seed=1)
    hdf5.write_images(str(truth), image)
    code, _, err = cli(
        "simulate", truth, "-o", scan, "--operator", "blocks", "--plugin", plugin, "--noise", "gaussian:0.05"
    )
    assert code == 0, err
    command = ["reconstruct", scan, "-o", out, "--prior", "gaussian-field", "--plugin", plugin, "--scale=-1:1"]
    given = ["--strategy", strategy, "--samples", samples]
    for setting in settings:
        given += ["--set", setting]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, _, err = cli(*command, *given)
    assert code == 0, err
    # Far fewer members than pixels, of which one line is said; the blocks that are measured are fewer.
    assert err.count("64 samples per item are the ensemble, of 4096 pixels") == (strategy == "enkg")
    mean = hdf5.read_result(str(out)).mean[0:1]
    blocks = [x.view(4, 16, 4, 16).mean((1, 3)) for x in (mean.double(), image.double())]
    # Of blocks whose values vary by their own mean square, half of the error at least is gone.
    assert float((blocks[0] - blocks[1]).square().mean()) < 0.25 * float(blocks[1].square().mean())
