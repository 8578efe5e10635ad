"""A prior and data of another unit: refused before the first step, with a scale that works when it is pasted."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

import invsolve
from invsolve import registry
from invsolve.api import Memory
from invsolve.api.discrepancy import DiscrepancyWarning
from invsolve.api.planning import plan
from invsolve.api.units import ScaleWarning
from invsolve.datasets import phantoms
from invsolve.engine import Options
from invsolve.numerics.krylov import CG
from tests.support.types import Cli

SIZE = 32
#: Operators, and a noise level for images of up to 1.
OPERATORS: dict[str, tuple[dict[str, Any], float]] = {
    "inpainting": ({"fraction": 0.5, "image_size": SIZE}, 0.02),
    "ct": ({"image_size": SIZE, "angles": 30}, 0.2),
    "blur": ({"sigma": 1.5}, 0.02),
}
#: Bundled priors, a factor that takes images of up to 1 out of their units, and the range that the prior then needs.
WRONG = [("ct-128", 1.0), ("mr-128", 255.0), ("natural", 1000.0), ("gaussian-field", 1000.0)]


def chest() -> torch.Tensor:
    """Values from 0 to 1."""
    return phantoms.render(phantoms.thorax(), SIZE)[None]


def scan(operator: str, factor: float) -> invsolve.Measurement:
    parameters, sigma = OPERATORS[operator]
    forward = invsolve.operator(operator, **parameters)
    noise = invsolve.Gaussian(sigma * factor)
    return invsolve.Measurement(invsolve.simulate(factor * chest(), forward, noise, seed=1), forward, noise)


def load(name: str) -> invsolve.Prior:
    return invsolve.load_prior(name, size=SIZE) if name == "gaussian-field" else invsolve.load_prior(name)


def advised(text: str) -> tuple[float, float]:
    match = re.search(r"give --scale=(\S+):(\S+) \(Python: scale=\(([^,]+), ([^)]+)\)\)", text)
    assert match is not None, text
    assert match[1] == match[3]
    assert match[2] == match[4]
    return float(match[1]), float(match[2])


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(("prior", "factor"), WRONG)
def test_another_unit_is_refused_with_the_range_of_the_images(prior: str, factor: float, operator: str) -> None:
    with pytest.raises(invsolve.UserError, match=f"prior '{prior}' knows images from") as error:
        plan(scan(operator, factor), load(prior), "moment", Options())
    low, high = advised(str(error.value))
    # The chest's values lie between 0 and 1, 99.5 % of them below 0.95; noise and streaks shift a quantile by a tenth or two.
    top = factor * float(chest().flatten().quantile(0.995))
    assert high == pytest.approx(top, rel=0.25)
    # Air is where the prior has it; a field has none.
    assert low == 0 if prior != "gaussian-field" else abs(low) < 0.35 * top


@pytest.mark.parametrize("factor", [1e-4, 255.0])
def test_a_complex_prior_gets_a_range_about_zero(factor: float) -> None:
    forward, noise = invsolve.operator("mri", image_size=SIZE, acceleration=2), invsolve.Gaussian(0.02 * factor)
    turned = chest() * torch.exp(1j * torch.linspace(-3, 3, SIZE))
    y = invsolve.simulate(factor * turned, forward, noise, seed=1)
    with pytest.raises(invsolve.UserError, match="prior 'mr-complex-128' knows images from -1 to 1") as error:
        plan(invsolve.Measurement(y, forward, noise), load("mr-complex-128"), "moment", Options())
    low, high = advised(str(error.value))
    assert low == -high
    # Half of the lines are missing: what they fold onto one another is less than twice the image.
    assert 0.5 * factor < high < 1.5 * factor


def test_the_advised_scale_works_when_it_is_given() -> None:
    measured = scan("inpainting", 255.0)
    with pytest.raises(invsolve.UserError) as error:
        plan(measured, "natural", "diffpir", Options())
    scale = advised(str(error.value))
    strategy = invsolve.strategy("diffpir", steps=10)

    def psnr(given: tuple[float, float]) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DiscrepancyWarning)
            mean = invsolve.reconstruct(measured, prior="natural", strategy=strategy, samples=1, scale=given).mean
        return 10 * math.log10(255**2 / float((mean - 255 * chest()).square().mean()))

    # As good as the range that the images are known to have.
    assert psnr(scale) > psnr((0.0, 255.0)) - 1


@pytest.mark.parametrize("prior", [name for name, cls in registry.available("prior").items() if name.endswith("128")])
def test_images_of_the_priors_own_unit_pass_without_a_word(prior: str) -> None:
    loaded = load(prior)
    low, high = loaded.data_range or (0.0, 1.0)
    image = low + (high - low) * chest().expand(1, loaded.event_shape[0] or 1, SIZE, SIZE)
    forward = invsolve.operator("inpainting", fraction=0.7, image_size=SIZE, channels=loaded.event_shape[0] or 1)
    noise = invsolve.Gaussian(0.01 * (high - low))
    y = invsolve.simulate(image, forward, noise)
    for unit in ("", loaded.unit):
        run = plan(invsolve.Measurement(y, forward, noise, unit=unit), loaded, "moment", Options())
        assert run.scale.range == pytest.approx((low, high))


def test_a_unit_that_nobody_named_is_doubted_where_it_fills_little_of_the_range() -> None:
    # 0 to 255 in Hounsfield units is water to bone: possible, and eight grey levels' bits more likely.
    with pytest.warns(ScaleWarning, match="of a unit that nobody named; give --scale=0:") as told:
        plan(scan("inpainting", 255.0), "ct-128", "moment", Options())
    assert advised(str(told[0].message))[1] == pytest.approx(255 * 0.92, rel=0.25)
    measured = scan("inpainting", 255.0)
    measured.unit = "HU"
    plan(measured, "ct-128", "moment", Options())


def test_a_wrong_scale_that_was_given_is_told_before_and_comes_first_after() -> None:
    strategy = invsolve.strategy("diffpir", steps=5)
    with (
        pytest.warns(ScaleWarning, match=r"the scale -1000 .. 1200 is given, but .* give --scale=0:"),
        pytest.warns(DiscrepancyWarning, match=r"Either the scale is wrong \(the scale -1000 .. 1200 is given"),
    ):
        invsolve.reconstruct(
            scan("inpainting", 1.0), prior="ct-128", strategy=strategy, samples=1, scale=(-1000.0, 1200.0)
        )


def test_data_that_say_nothing_are_not_judged() -> None:
    forward = invsolve.operator("inpainting", fraction=0.5, image_size=SIZE)
    measured = invsolve.Measurement(torch.zeros(1, 1, SIZE, SIZE), forward, invsolve.Gaussian(0.1))
    plan(measured, "natural", "moment", Options())


def test_noise_that_drowns_the_image_is_no_unit() -> None:
    forward, noise = invsolve.operator("blur", sigma=1.0), invsolve.Gaussian(3.0)
    y = invsolve.simulate(chest(), forward, noise, seed=1)
    plan(invsolve.Measurement(y, forward, noise), "natural", "moment", Options())


class Counted(invsolve.LinearOperator):
    """An operator that notes how many images of a linear reconstruction it makes."""

    image_shape = (1, SIZE, SIZE)

    def __init__(self, formula: bool) -> None:
        super().__init__()
        self.formula, self.made = formula, [0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2.0 * x

    @property
    def baseline_floor(self) -> float | None:
        return None if self.formula else 1e-6

    def baseline(self, y: torch.Tensor, sigma: float | torch.Tensor = 0.0, solver: CG | None = None) -> torch.Tensor:
        self.made[0] += len(y)
        return y / 2 if self.formula else super().baseline(y, sigma, solver)


@pytest.mark.parametrize("blank", [0, 1])
@pytest.mark.parametrize(("formula", "extra"), [(True, 0), (False, 1)])
def test_a_look_at_the_range_costs_no_more_than_the_noise(formula: bool, extra: int, blank: int) -> None:
    # The run's own linear reconstruction of an item is the one that was looked at.
    operator, items = Counted(formula), 6
    truth = chest().repeat(items, 1, 1, 1)
    truth[:blank] = 0  # Dead slices before it tell nothing.
    noise = invsolve.Gaussian(0.02 if not blank else 0.0)
    measured = invsolve.Measurement(invsolve.simulate(truth, operator, noise, seed=1), operator, noise)
    run = plan(measured, "natural", invsolve.strategy("diffpir", steps=2), Options(samples=1))
    assert operator.made[0] == 1 + extra + blank
    run.linear_too = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DiscrepancyWarning)
        sink = Memory(items)
        run.execute(sink)
    assert operator.made[0] == items + extra + blank
    torch.testing.assert_close(sink.stack("linear"), measured.y[0:items] / 2, atol=2e-3, rtol=0)


@pytest.mark.parametrize("sigma", [1.0, 0.5])
def test_noise_that_hides_the_images_is_looked_at_with_a_scale_that_fits(sigma: float) -> None:
    # At 0.5 each round held the image down further, until the scale that "fits" was nearly zero and the right one refused.
    operator, noise = Counted(formula=False), invsolve.Gaussian(sigma)
    y = invsolve.simulate(chest().repeat(6, 1, 1, 1), operator, noise, seed=1)
    plan(invsolve.Measurement(y, operator, noise), "natural", "moment", Options())
    # The image and the noise, before and after, and rounds that end when the scale does not change.
    assert operator.made[0] <= 9


def test_slices_of_one_unit_of_which_the_first_is_blank_are_judged() -> None:
    operator, noise = Counted(formula=True), invsolve.Gaussian(0.0)
    truth = 255 * chest().repeat(4, 1, 1, 1)
    truth[0] = 0
    with pytest.raises(invsolve.UserError, match="prior 'natural' knows images from"):
        plan(invsolve.Measurement(operator(truth), operator, noise), "natural", "moment", Options())


def test_the_command_refuses_and_takes_the_scale_that_it_advised(tmp_path: Path, cli: Cli) -> None:
    truth, measured, out = (tmp_path / name for name in ("truth.h5", "scan.h5", "recon.h5"))
    with h5py.File(truth, "w") as file:
        file["x"] = chest().numpy()
    cli("simulate", truth, "-o", measured, "--operator", "inpainting", "--set", "fraction=0.5")
    call = ["reconstruct", measured, "-o", out, "--prior", "ct-128", "--strategy", "diffpir", "--set", "steps=4"]
    code, _, err = cli(*call)
    assert code == 2
    assert err.count("\n") == 1
    assert "prior 'ct-128' knows images from -1000 to 1200 HU" in err
    assert not out.exists()
    match = re.search(r"--scale=\S+:\S+", err)
    assert match is not None
    code, _, err = cli(*call, match[0])
    assert code == 0, err
    assert "given, but" not in err
