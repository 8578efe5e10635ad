"""Images from a prior alone, by function and command, and the log-likelihood against closed-form densities."""

from __future__ import annotations

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import distributions as dist

import invsolve
from invsolve.api import sampling
from invsolve.datasets.hdf5 import read_images
from invsolve.numerics import schedules
from invsolve.numerics.ode.solvers import SOLVERS, DPMpp2M
from invsolve.numerics.random import ChainRandom
from tests.support import bounds
from tests.support.followed import variance_drawn
from tests.support.types import Cli, narrow

DOUBLE = torch.zeros(1, dtype=torch.float64)
NARROW = """
\"\"\"A Gaussian prior with units.\"\"\"
import invsolve
from invsolve import registry


class Narrow(registry.find("prior", "gaussian-field")):
    \"\"\"Eight pixels a side.\"\"\"

    examples = ({},)

    def __init__(self):
        super().__init__(size=8, std=0.5)
        self.data_range, self.unit = (0.0, 2.0), "1/cm"


@invsolve.hookimpl
def invsolve_priors():
    return {"narrow": Narrow}
"""


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_draws_the_field(name: str) -> None:
    prior = invsolve.load_prior("gaussian-field", size=16, std=0.4, mean=0.3)
    images = invsolve.sample(prior, 64, solver=name, steps=40, seed=1, batch_size=64)
    white = torch.fft.fft2(images.double() - 0.3, norm="ortho") / prior.spectrum.sqrt()
    spectrum = narrow(torch.Tensor, prior.spectrum)
    levels = schedules.edm(40, prior.sigma_min, prior.sigma_max).tolist()
    wanted = variance_drawn(SOLVERS[name].over(40), spectrum, levels, levels[0]) / spectrum
    # The coefficients of 64 images are 64 x 256 free numbers; a variance is off by twice what a width is.
    error = 2 * bounds.width_error(64 + 1, bounds.dimensions(torch.diag(wanted.flatten())))
    assert float(white.abs().square().mean() / wanted.mean()) == pytest.approx(1, abs=error)
    # What is left is the solver's own at so few steps.
    assert abs(float(wanted.mean()) - 1) < (0.3 if SOLVERS[name].order == 1 else 0.1)
    assert abs(float(images.mean()) - 0.3) < bounds.mean_error(
        64, math.sqrt(float(prior.spectrum[0, 0] * wanted[0, 0]) / 256)
    )


def test_images_do_not_depend_on_the_batch_and_come_in_physical_units() -> None:
    prior = invsolve.load_prior("gaussian-field", size=8)
    network = invsolve.sample(prior, 5, solver=DPMpp2M(eta=1.0), steps=8, seed=3)
    prior.data_range = (0.0, 10.0)
    physical = invsolve.sample(prior, 5, solver=DPMpp2M(eta=1.0), steps=8, seed=3, batch_size=2)
    torch.testing.assert_close(physical, 5 * network + 5)
    assert not torch.allclose(physical[0], physical[1])


def test_free_sizes_are_filled() -> None:
    class Free(invsolve.Prior):
        """White images of any size."""

        event_shape = (2, None, None)

        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x / (1 + sigma**2)

    assert invsolve.sample(Free(), 2, shape=(2, 6, 5), steps=4).shape == (2, 2, 6, 5)
    assert sampling.image_shape(Free()) == (2, 128, 128)
    assert sampling.image_shape(Free(), 32) == (2, 32, 32)
    with pytest.raises(invsolve.UserError, match="asked for"):
        invsolve.sample(Free(), shape=(1, 6, 5))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"count": 0}, "count"),
        ({"steps": 1}, "steps"),
        ({"solver": "dpm"}, "unknown solver 'dpm'"),
        ({"shape": (1, 9, 9)}, "asked for"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_requests_are_refused(arguments: dict, text: str) -> None:
    with pytest.raises(invsolve.UserError, match=text):
        invsolve.sample(invsolve.load_prior("gaussian-field", size=8), **arguments)


def test_command_writes_an_image_file(tmp_path: Path, cli: Cli) -> None:
    plugin = tmp_path / "narrow.py"
    plugin.write_text(NARROW)
    out = tmp_path / "samples.h5"
    options = ("--count", 3, "--steps", 12, "--seed", 4, "--plugin", plugin)
    code, printed, err = cli("sample", "narrow", "-o", out, *options, "--solver", "unipc-2", "--json")
    assert code == 0, err
    assert json.loads(printed)["image_shape"] == [1, 8, 8]
    with h5py.File(out) as file:
        x = torch.from_numpy(file["x"][:])
        assert file["x"].attrs["axes"] == "item channel row column"
        assert file.attrs["unit"] == "1/cm"
        assert file.attrs["seed"] == 4
        assert json.loads(file.attrs["config"])["solver"] == "unipc-2"
    torch.testing.assert_close(x, invsolve.sample("narrow", 3, solver="unipc-2", steps=12, seed=4))
    code, _, err = cli("sample", "narrow", "-o", out, *options)
    assert code == 2
    assert "--overwrite" in err
    assert cli("sample", "narrow", "-o", out, *options, "--overwrite")[0] == 0
    code, _, err = cli("sample", "narrow", "-o", tmp_path / "b.h5", "--size", 9, "--plugin", plugin)
    assert code == 2
    assert "size 9" in err
    code, _, err = cli("sample", "narrow", "-o", tmp_path / "b.h5", "--solver", "unipc", "--plugin", plugin)
    assert code == 2
    assert "unipc-2" in err
    assert not (tmp_path / "b.h5").exists()


def field() -> tuple[invsolve.Prior, torch.Tensor, torch.Tensor]:
    """A Gaussian prior, two images, and their log-density at the prior's smallest level."""
    prior = invsolve.load_prior("gaussian-field", size=5, std=0.3, mean=0.2)
    x = prior.sample(ChainRandom(0, [(0, 0), (0, 1)]), DOUBLE)
    covariance = prior.covariance() + prior.sigma_min**2 * torch.eye(25, dtype=torch.float64)
    exact = dist.MultivariateNormal(torch.full((25,), 0.2, dtype=torch.float64), covariance)
    return prior, x, exact.log_prob(x.flatten(1))


def test_likelihood_of_a_gaussian_field() -> None:
    prior, x, wanted = field()
    likelihood = invsolve.log_likelihood(prior, x, steps=30, exact=True)
    torch.testing.assert_close(likelihood.nats, wanted, atol=0.02, rtol=0)
    bits = likelihood.bits_per_dimension()
    torch.testing.assert_close(bits, -wanted / (25 * math.log(2)), atol=2e-3, rtol=0)
    torch.testing.assert_close(likelihood.bits_per_dimension(1 / 128), bits + 7)


def test_likelihood_converges_with_the_fourth_power_of_the_step() -> None:
    prior, x, wanted = field()
    errors = [
        float((invsolve.log_likelihood(prior, x, steps=n, exact=True).nats - wanted).abs().max()) for n in (10, 20)
    ]
    assert errors[0] / errors[1] > 8


def test_likelihood_of_a_mixture() -> None:
    means = torch.randn(3, 1, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = invsolve.load_prior("gaussian-mixture", means=means, weights=[1.0, 2.0, 3.0], std=0.3)
    x = prior.sample(ChainRandom(0, [(0, i) for i in range(5)]), DOUBLE)
    weights = dist.Categorical(probs=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    parts = dist.Independent(dist.Normal(means.flatten(1), math.hypot(0.3, prior.sigma_min)), 1)
    wanted = dist.MixtureSameFamily(weights, parts).log_prob(x.flatten(1))
    likelihood = invsolve.log_likelihood(prior, x, steps=25, exact=True)
    torch.testing.assert_close(likelihood.nats, wanted, atol=0.02, rtol=0)


def test_hutchinsons_estimator_is_unbiased_and_repeatable() -> None:
    prior, x, _ = field()
    exact = invsolve.log_likelihood(prior, x[:1], steps=12, exact=True).nats
    many = invsolve.log_likelihood(prior, x[:1].expand(200, -1, -1, -1), steps=12, batch_size=200).nats
    assert abs(float(many.mean() - exact)) < bounds.mean_error(200, float(many.std()))
    some = invsolve.log_likelihood(prior, x[:1].expand(3, -1, -1, -1), steps=12, batch_size=2).nats
    torch.testing.assert_close(some, many[:3])
    more = invsolve.log_likelihood(prior, x[:1].expand(100, -1, -1, -1), steps=12, probes=8, batch_size=50).nats
    error = math.hypot(bounds.width_error(200), bounds.width_error(100))
    assert float(more.std() / many.std()) == pytest.approx(1 / math.sqrt(8), rel=error)


def test_likelihood_is_a_density_in_physical_units() -> None:
    prior, x, _ = field()
    network = invsolve.log_likelihood(prior, x, steps=10).nats
    prior.data_range = (10.0, 14.0)
    torch.testing.assert_close(
        invsolve.log_likelihood(prior, 12 + 2 * x, steps=10).nats, network - 25 * math.log(2), atol=1e-9, rtol=0
    )


def test_likelihood_refuses_what_it_cannot_do() -> None:
    prior, x, _ = field()
    with pytest.raises(invsolve.UserError, match="takes images"):
        invsolve.log_likelihood(prior, x[..., :4])
    with pytest.raises(invsolve.UserError, match="level"):
        invsolve.log_likelihood(prior, x, level=99.0)
    prior.differentiable = False
    with pytest.raises(invsolve.UserError, match="differentiated"):
        invsolve.log_likelihood(prior, x)


@pytest.mark.parametrize(("dtype", "numbers"), [(torch.float32, 10), (torch.float64, 7), (torch.complex64, 8)])
def test_draws_are_box_and_mullers_from_streams_made_anew(dtype: torch.dtype, numbers: int) -> None:
    chains = [(0, 0), (0, 1), (3, 1), (3, 1), (0, 2), (2, 2**32 - 1)]
    rng = ChainRandom(7, chains).at(4)
    draws, uniform = rng.normal(torch.zeros(len(chains), numbers, dtype=dtype)), rng.uniform()
    wide = dtype == torch.float64
    reals = numbers * (2 if dtype.is_complex else 1)
    blocks = -(-reals * (8 if wide else 4) // 32)

    def fresh(chain: tuple[int, int], draw: int, blocks: int) -> np.random.Philox:
        key = np.random.SeedSequence([7, blocks]).generate_state(2, np.uint64)
        counter = np.array([chain[1] * blocks, draw, 4, chain[0]], np.uint64)
        return np.random.Philox(key=key, counter=counter)

    for chain, row in zip(chains, draws, strict=True):
        words = fresh(chain, 1, blocks).random_raw(4 * blocks).view(np.uint64 if wide else np.uint32)
        first, second = ((words + 0.5) / 2.0 ** (64 if wide else 32)).reshape(2, -1)
        radius = np.sqrt(-2 * np.log(first))
        normal = np.concatenate([radius * np.cos(2 * np.pi * second), radius * np.sin(2 * np.pi * second)])[:reals]
        flat = torch.view_as_real(row).flatten() if dtype.is_complex else row
        np.testing.assert_allclose(flat.numpy(), normal, atol=1e-12 if wide else 2e-6, rtol=0)
    assert uniform.tolist() == [np.random.Generator(fresh(chain, 2, 2**32)).random() for chain in chains]


def test_normal_numbers_are_the_same_bits_in_every_batch_and_have_normal_tails() -> None:
    chains = [(item, sample) for item in range(3) for sample in range(200)]
    whole = ChainRandom(1, chains).at(2).normal(torch.zeros(len(chains), 1001))
    for rows in ([0], [599], [7, 8, 9], [250, 3, 251], list(range(100, 463))):
        some = ChainRandom(1, [chains[row] for row in rows]).at(2).normal(torch.zeros(len(rows), 1001))
        assert torch.equal(some, whole[rows])
    x = whole.double().flatten().sort().values
    # Kolmogorov's distance of n exact numbers exceeds 1.63 / sqrt(n) once in a hundred.
    exact = torch.special.ndtr(x)
    steps = torch.arange(len(x)) / len(x)
    assert float((exact - steps).abs().max()) < 1.63 / len(x) ** 0.5
    for limit in (3.0, 4.0):
        wanted = 2 * len(x) * float(torch.special.ndtr(torch.tensor(-limit, dtype=torch.float64)))
        assert abs(int((x.abs() > limit).sum()) - wanted) < 4 * wanted**0.5
    # Neither samples, nor items, nor the halves of a row that share radii are correlated.
    for a, b in ((whole[:-1], whole[1:]), (whole[:400], whole[200:]), (whole[:, :500], whole[:, 500:1000])):
        for f in (torch.Tensor.double, torch.square):
            u, v = f(a).double().flatten(), f(b).double().flatten()
            assert abs(float(torch.corrcoef(torch.stack([u, v]))[0, 1])) < 4 / len(u) ** 0.5


def test_samples_of_signals_are_written_as_such(tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli("sample", "levy", "-o", tmp_path / "s.h5", "--count", "2", "--steps", "2")
    assert code == 0, err
    assert read_images(tmp_path / "s.h5").shape == (2, 1, 64)
