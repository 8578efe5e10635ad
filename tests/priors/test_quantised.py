"""Weights of 8 and 4 bits: how far rounding may move them, how large the file is, and that a damaged one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import invsolve
from invsolve import UserError
from invsolve.cli.app import app
from invsolve.plugins.priors._quantised import GROUP, plain, quantised
from invsolve.plugins.priors.unet import make_network, read_header, save
from invsolve.testing import check_prior
from tests.priors.test_prior_files import ARCHITECTURE, CONFIG, HEADER_FACTS
from tests.support.types import narrow

WIDE = {**ARCHITECTURE, "config": CONFIG | {"block_out_channels": [32, 32]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "wide.safetensors"
    save(
        path, make_network(WIDE).state_dict(), HEADER_FACTS | {"architecture": WIDE, "dtype": "float16"}, torch.float16
    )
    return path


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (7, 75), (1, 5, 103), (40, 513)])
def test_rounding_is_to_half_a_step(shape: tuple[int, ...]) -> None:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    restored = plain(quantised({"w": value}, 8), "here")["w"]
    step = value.flatten(1).abs().amax(1) / 127
    # Half a step, and the rounding of the scale to 11 bits, which the largest number meets 127 times.
    allowed = step * (0.5 + 127 * 2**-11)
    assert bool(((restored - value).flatten(1).abs() <= allowed[:, None]).all())
    coarse = plain(quantised({"w": value}, 4), "here")["w"]
    assert coarse.shape == value.shape
    rows = torch.nn.functional.pad(value.flatten(1), (0, -value.flatten(1).shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    naive = rows.abs().amax(2, keepdim=True) / 7
    worst = ((rows / naive).round() * naive - rows).square().sum()
    # The chosen scales are no worse than those of the largest weights, but for the rounding of scales.
    assert float((coarse - value).square().sum()) <= 1.01 * float(worst)


def test_small_tensors_stay() -> None:
    weights = {"bias": torch.randn(600), "few": torch.randn(4, 4)}
    kept = plain(quantised(weights, 4, torch.float32), "here")
    assert torch.equal(kept["bias"], weights["bias"])
    assert torch.equal(kept["few"], weights["few"])


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_file_is_a_prior(path: Path, tmp_path: Path, bits: int) -> None:
    out, again = tmp_path / "small.safetensors", tmp_path / "again.safetensors"
    done = CliRunner().invoke(app, ["prior", "quantise", str(path), "-o", str(out), "--bits", str(bits)])
    assert done.exit_code == 0, done.output
    prior, whole = invsolve.load_prior(out), invsolve.load_prior(path)
    large = {n for n, p in whole.state_dict().items() if p.ndim >= 2 and p.numel() >= 512}
    numbers = sum(p.numel() for n, p in whole.state_dict().items() if n in large)
    # Bits of the numbers, one scale of 16 bits a channel or a group; the rest is as it was.
    saved = path.stat().st_size - out.stat().st_size
    assert saved > 0.8 * numbers * (2 - bits / 8 - (2 / GROUP if bits == 4 else 0))
    x, sigma = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor(0.5)
    with torch.no_grad():
        off = float((prior.denoise(x, sigma) - whole.denoise(x, sigma)).square().mean().sqrt())
    assert 0 < off < (0.01 if bits == 8 else 0.1)
    assert check_prior(prior)
    prior.save(again)
    assert all(torch.equal(a, b) for a, b in zip(load_file(again).values(), load_file(out).values(), strict=True))
    assert narrow(dict, read_header(again))["bits"] == bits
    with pytest.raises(UserError, match="bits already"):
        prior.save(again, 12 - bits)


def test_what_is_damaged_or_impossible_gets_one_line(path: Path, tmp_path: Path) -> None:
    prior: Any = invsolve.load_prior(path)
    with pytest.raises(UserError, match="8 or 4 bits, got 3"):
        prior.save(tmp_path / "x.safetensors", 3)
    with pytest.raises(UserError, match="cannot be written"):
        invsolve.load_prior("gaussian-field").save(tmp_path / "x.safetensors", 8)
    whole = quantised(prior.network.state_dict(), 4)
    name = next(n for n in whole if n.endswith(":whole")).removesuffix(":whole")
    for harm in (
        {f"{name}:shape": torch.tensor([7, 10**6])},
        {f"{name}:shape": torch.tensor([-1, 3])},
        {f"{name}:scale": torch.ones(3)},
        {f"{name}:whole": torch.ones(4, 4)},
    ):
        with pytest.raises(UserError, match="do not go together"):
            plain({**whole, **harm}, "here")
    with pytest.raises(UserError, match="do not go together"):
        plain({k: v for k, v in whole.items() if k != f"{name}:scale"}, "here")
