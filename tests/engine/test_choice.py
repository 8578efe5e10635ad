"""What `reconstruct` takes when no strategy is named."""

import warnings
from pathlib import Path

import pytest
import torch

import invsolve
from invsolve.jobs.reconstruction import reconstruct_file
from invsolve.jobs.request import Request
from invsolve.numerics.random import ChainRandom

NOISE = invsolve.Gaussian(0.05)


class Bent(invsolve.Operator):
    image_shape = (1, 8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * x**3


class Closed(invsolve.Operator):
    """Nothing can be differentiated through it."""

    image_shape = (1, 8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach()


@pytest.fixture
def prior() -> invsolve.Prior:
    return invsolve.load_prior("gaussian-field", size=8)


def measured(operator: invsolve.Operator, prior: invsolve.Prior) -> torch.Tensor:
    truth = prior.sample(ChainRandom(0, [(0, 0)]), torch.zeros(1))
    return invsolve.simulate(truth, operator, NOISE)


def taken(rec: invsolve.Reconstruction) -> str:
    return rec.provenance["strategy"]["name"]


def test_moment_comes_first_without_a_word(prior: invsolve.Prior) -> None:
    operator = invsolve.operator("blur", sigma=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rec = invsolve.reconstruct(measured(operator, prior), operator, prior, noise=NOISE)
    assert taken(rec) == "mmps"


def test_where_several_images_may_fit_the_default_says_that_tds_weighs_them(prior: invsolve.Prior) -> None:
    with pytest.warns(
        UserWarning, match=r"'Bent' is not linear, .*'mmps' takes a posterior for one mode .*: 'tds' weighs"
    ):
        rec = invsolve.reconstruct(measured(Bent(), prior), Bent(), prior, noise=NOISE)
    assert taken(rec) == "mmps"


def test_a_prior_without_gradients_gets_red_diff_and_a_reason(prior: invsolve.Prior) -> None:
    prior.differentiable = False
    operator = invsolve.operator("blur", sigma=1.0)
    with pytest.warns(UserWarning, match=r"'mmps' needs a prior that can be differentiated; .*'red-diff' is used"):
        rec = invsolve.reconstruct(measured(operator, prior), operator, prior, noise=NOISE)
    assert taken(rec) == "red-diff"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        pytest.param("clip", "saturation", marks=pytest.mark.discrepant),
        ("quantize", "rounding"),
        ("jpeg", "rounding"),
    ],
)
def test_what_is_flat_is_not_given_to_moment(name: str, why: str, prior: invsolve.Prior) -> None:
    operator = invsolve.operator(name)
    for given in (operator, operator @ invsolve.operator("blur", sigma=1.0), invsolve.stack([operator, Bent()])):
        given.image_shape = (1, 8, 8)
        with pytest.raises(
            invsolve.UserError, match=rf"tangent tells how it goes on; .*flat over ranges of x \({why}\)"
        ):
            invsolve.reconstruct(measured(given, prior), given, prior, noise=NOISE, strategy="moment", scale=(-1, 1))
    if name != "clip":
        return
    with pytest.warns(UserWarning, match=r"'dps-fitted' is used"):
        rec = invsolve.reconstruct(measured(operator, prior), operator, prior, noise=NOISE, scale=(-1, 1))
    assert taken(rec) == "dps-fitted"


def test_where_none_fits_the_first_says_why(prior: invsolve.Prior) -> None:
    with pytest.raises(invsolve.UserError, match=r"'mmps' needs a linear operator .*another can be named"):
        invsolve.reconstruct(torch.zeros(1, 1, 8, 8), Closed(), prior, noise=NOISE)
    with pytest.raises(invsolve.UserError, match="'mmps' needs a prior; none is given"):
        invsolve.reconstruct(torch.zeros(1, 1, 8, 8), invsolve.operator("blur", sigma=1.0), None, noise=NOISE)


def test_parameters_go_to_the_strategy_that_is_taken(tmp_path: Path, prior: invsolve.Prior) -> None:
    from invsolve.datasets import hdf5

    scan, out = tmp_path / "scan.h5", tmp_path / "recon.h5"
    operator = invsolve.operator("blur", sigma=1.0)
    hdf5.write_scan(scan, measured(operator, invsolve.load_prior("gaussian-field")), operator, NOISE)
    reconstruct_file(Request(scan, out, "gaussian-field", "auto", {"solves": 2, "steps": 5}))
    assert hdf5.read_result(out).config["strategy"]["parameters"]["solves"] == 2
    with pytest.raises(invsolve.UserError, match="zeta"):
        reconstruct_file(Request(scan, tmp_path / "other.h5", "gaussian-field", "auto", {"zeta": 2.0}))
