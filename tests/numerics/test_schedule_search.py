"""Searched noise levels: nearer to the exact flow of a Gaussian field than the EDM schedule, on noise not searched on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import invsolve
from invsolve import UserError
from invsolve.api.sampling import along
from invsolve.cli.app import app
from invsolve.numerics import schedules
from invsolve.numerics.ode.solvers import solver
from invsolve.numerics.random import ChainRandom
from invsolve.testing.field import Field

SIZE = 16


def exact(field: Field, start: torch.Tensor, top: float) -> torch.Tensor:
    """The flow of a Gaussian ends at sqrt(S / (S + sigma^2)) of where it began, for each frequency (Wang and Vastola 2024)."""
    gain = (field.spectrum / (field.spectrum + top**2)).sqrt()
    return torch.fft.ifft2(torch.fft.fft2(start.double()) * gain).real


def off(field: Field, levels: list[float], name: str, seed: int, count: int) -> float:
    """Root mean square distance from the exact flow."""
    noise = ChainRandom(seed, [(k, 0) for k in range(count)]).at(0).normal(torch.zeros(count, 1, SIZE, SIZE))
    wanted = exact(field, field.sigma_max * noise, field.sigma_max)
    return float((along(field, levels, solver(name), seed, count, (1, SIZE, SIZE)) - wanted).square().mean().sqrt())


@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc-2", "ddim"])
def test_five_levels_are_nearer_to_the_exact_flow(name: str) -> None:
    field = Field(SIZE, std=0.5)
    found = invsolve.search_schedule(field, 5, name, count=4, fine=64)
    assert len(found.levels) == 6
    assert found.levels[0] == pytest.approx(field.sigma_max)
    assert found.levels[-1] == 0
    assert all(a > b for a, b in zip(found.levels, found.levels[1:], strict=False))
    usual = schedules.edm(5, field.sigma_min, field.sigma_max).tolist()
    (new, old), (same, before) = (
        [off(field, levels, name, seed, count) for levels in (found.levels, usual)] for seed, count in ((9, 16), (0, 4))
    )
    assert new < 0.8 * old
    # What the search says of its own noise, against the fine grid, is what holds against the exact flow.
    assert same == pytest.approx(found.error, rel=0.03)
    assert before == pytest.approx(found.usual, rel=0.03)


def test_the_command_and_the_levels_go_together(tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(app, ["prior", "schedule", "gaussian-field", "--steps", "3", "--fine", "16", "--json"])
    assert done.exit_code == 0, done.output
    levels = json.loads(done.stdout)["levels"]
    assert len(levels) == 4
    out = f"{tmp_path}/x.h5"
    done = run(
        app, ["sample", "gaussian-field", "-o", out, "--count", "1", "--levels", ",".join(map(str, levels)), "--json"]
    )
    assert done.exit_code == 0, done.output
    x = invsolve.sample("gaussian-field", 1, solver="dpmpp-2m", levels=levels)
    assert x.shape == (1, 1, 64, 64)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(UserError, match="one call per step"):
        invsolve.search_schedule(Field(8), 5, "heun")
    for levels in ([3.0, 4.0, 0.0], [3.0, 1.0], [0.0]):
        with pytest.raises(UserError, match="levels must descend to 0"):
            invsolve.sample(Field(8), levels=levels)
