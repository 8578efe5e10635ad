"""Conformal intervals: finite-sample coverage against the beta-binomial law, their file, and its commands."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy import stats

import invsolve
from invsolve.api.conformal import (
    calibrate_intervals,
    covered,
    image_score,
    load_calibration,
    quantile_rank,
    scores,
)
from invsolve.numerics.random import ChainRandom
from tests.support.types import Cli

CONFIG = {"strategy": {"name": "mmps"}, "samples": 8}


def items(
    count: int, rng: np.random.Generator, wrong: float = 3.0
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Items of 2 x 3 pixels with a spread that is wrong by a factor, and an error that the pixels of an image share in part."""
    made = []
    for _ in range(count):
        std = torch.as_tensor(rng.gamma(4.0, size=(1, 2, 3)))
        error = rng.standard_t(3, size=(1, 2, 3)) * rng.gamma(2.0)
        made.append((torch.zeros(1, 2, 3).double(), std, wrong * std * torch.as_tensor(error)))
    return made


def test_coverage_of_new_items_is_beta_binomial() -> None:
    rng, n, m, level = np.random.default_rng(torch.initial_seed() % 2**32), 19, 12, 0.8
    k = quantile_rank(n, level)
    assert k == 16
    held, pixel = [], []
    for _ in range(300):
        factors = calibrate_intervals(items(n, rng), CONFIG, level, share=0.6)
        new = items(m, rng)
        outcomes = [covered(factors.intervals(mean, std), truth, 0.6) for mean, std, truth in new]
        held.append(round(sum(o["image_held"] for o in outcomes)))
        # One pixel by itself, whose factor is its own.
        pixel.append(sum(bool(scores(*one)[0, 1, 2] <= factors.pixel[0, 1, 2]) for one in new))
    law = stats.betabinom(m, k, n + 1 - k)
    # Vovk 2012: at least `level` on average, and at most 1 / (n + 1) more.
    assert level <= law.mean() / m <= level + 1 / (n + 1)
    edges = [0, 7, 8, 9, 10, 11, 12, 13]
    expected = [300 * float(law.pmf(np.arange(a, b)).sum()) for a, b in pairwise(edges)]
    for counts in (held, pixel):
        seen, _ = np.histogram(counts, edges)
        assert stats.chisquare(seen, np.array(expected) * 300 / sum(expected)).pvalue > 1e-3


def test_scores_and_their_share_of_an_image() -> None:
    mean, std = torch.zeros(1, 1, 4), torch.tensor([[[1.0, 2.0, 0.0, 0.0]]])
    found = scores(mean, std, torch.tensor([[[3.0, 1.0, 0.0, 1.0]]]))
    assert found.flatten().tolist() == [3.0, 0.5, 0.0, float("inf")]
    assert image_score(found, 0.5) == 0.5
    assert image_score(found, 0.75) == 3.0
    assert image_score(found, 0.9) == float("inf")


def test_too_few_items_promise_nothing() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(invsolve.UserError, match="at least 9"):
        calibrate_intervals(items(8, rng), CONFIG, 0.9)
    assert calibrate_intervals(items(9, rng), CONFIG, 0.9).items == 9
    with pytest.raises(invsolve.UserError, match="between 0 and 1"):
        calibrate_intervals(items(9, rng), CONFIG, 1.0)


def test_file(tmp_path: Path) -> None:
    factors = calibrate_intervals(items(9, np.random.default_rng(0)), CONFIG, 0.8, 0.5)
    factors.save(tmp_path / "c.h5")
    read = load_calibration(tmp_path / "c.h5")
    torch.testing.assert_close(read.pixel, factors.pixel)
    assert (read.image, read.level, read.share, read.items) == (factors.image, 0.8, 0.5, 9)
    read.check(CONFIG)
    with pytest.raises(invsolve.UserError, match="another strategy"):
        read.check({**CONFIG, "strategy": {"name": "dds"}})
    with pytest.raises(invsolve.UserError, match="--overwrite"):
        factors.save(tmp_path / "c.h5")
    with h5py.File(tmp_path / "no.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(invsolve.UserError, match="no calibration file"):
        load_calibration(tmp_path / "no.h5")


def test_commands(cli: Cli, tmp_path: Path) -> None:
    prior = invsolve.load_prior("gaussian-field", size=8, std=0.3)
    x = prior.sample(ChainRandom(1, [(i, 0) for i in range(24)]), torch.zeros(1))
    made = ["--operator", "inpainting", "--set", "fraction=0.5", "--noise", "gaussian:0.1"]
    run = ["--prior", "gaussian-field:size=8,std=0.3", "--strategy", "mmps", "--set", "steps=6", "--samples", 6]
    for name, part in {"known": x[:12], "new": x[12:]}.items():
        with h5py.File(tmp_path / f"{name}.x.h5", "w") as file:
            file["x"] = part.numpy()
        code, _, err = cli("simulate", tmp_path / f"{name}.x.h5", "-o", tmp_path / f"{name}.h5", *made)
        assert code == 0, err
    code, _, err = cli("reconstruct", tmp_path / "known.h5", "-o", tmp_path / "known.r.h5", *run, "--scale", "-1:1")
    assert code == 0, err
    file_ = tmp_path / "factors.h5"
    code, _, err = cli("evaluate", tmp_path / "known.r.h5", "--write-calibration", file_, "--level", 0.8)
    assert code == 0, err
    assert "factor" in err
    out = tmp_path / "new.r.h5"
    code, _, err = cli("reconstruct", tmp_path / "new.h5", "-o", out, *run, "--scale", "-1:1", "--calibration", file_)
    assert code == 0, err
    with h5py.File(out) as file:
        low, high = (file[f"diagnostics/interval_{end}"][()] for end in ("low", "high"))
        mean, std = file["mean"][()], file["std"][()]
    factor = load_calibration(file_).pixel.numpy()
    np.testing.assert_allclose((high - low) / 2, factor * std, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose((high + low) / 2, mean, rtol=1e-4, atol=1e-5)
    code, text, err = cli("evaluate", out, "--truth", tmp_path / "new.x.h5", "--calibration", file_, "--json")
    assert code == 0, err
    inside = json.loads(text)["mean"]["in_pixel_intervals"]
    # 80 % of 12 x 64 pixels; of one calibration the coverage of a pixel is a draw from a beta distribution.
    assert 0.7 < inside < 0.95
    other = [*run[:4], "--set", "steps=7", *run[6:]]
    code, _, err = cli("reconstruct", tmp_path / "new.h5", "-o", tmp_path / "o.h5", *other, "--scale", "-1:1",
                       "--calibration", file_)  # fmt: skip
    assert code == 2
    assert "another strategy" in err
