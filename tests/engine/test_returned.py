"""Operators, priors, noises and strategies of one's own that return another shape or type: one line that names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve import registry
from invsolve.errors import UserError

#: Strategies that say how many steps they take.
STEPPED = [n for n, c in registry.available("strategy").items() if "steps" in getattr(c, "__dataclass_fields__", {})]


class Odd(invsolve.Prior):
    """The prior of unit white noise, D = x / (1 + sigma^2), and what becomes of its return value."""

    name = "odd"

    def __init__(self, spoil: Any) -> None:
        super().__init__()
        self.spoil = spoil
        self.event_shape, self.sigma_min, self.sigma_max = (1, None, None), 0.01, 10.0

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.spoil(x / (1 + sigma**2))


class OddBlur(invsolve.Operator):
    """The identity, and what becomes of its return value."""

    name = "odd"

    def __init__(self, spoil: Any) -> None:
        super().__init__()
        self.spoil, self.image_shape = spoil, (1, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.spoil(x)


class _Spoiled:
    """What becomes of what one method of a noise returns."""

    method: str
    spoil: Any

    def __getattribute__(self, name: str) -> Any:
        plain = super().__getattribute__(name)
        if name not in ("sample", "std", "log_likelihood") or name != self.method:
            return plain
        return lambda *given: self.spoil(plain(*given))


@dataclass(frozen=True)
class OddNoise(_Spoiled, invsolve.Gaussian):
    """White noise of one's own."""

    method: str = ""
    spoil: Any = None

    name: ClassVar[str] = "odd"


@dataclass(frozen=True)
class OddCounts(_Spoiled, invsolve.Poisson):
    """Counts of one's own."""

    method: str = ""
    spoil: Any = None

    name: ClassVar[str] = "odd"


def strategy(method: str, spoil: Any) -> invsolve.Strategy:
    """A strategy of which one method returns something else."""
    chosen = registry.find("strategy", "dps-fitted")

    def spoiled(self: Any, *given: Any) -> Any:
        return spoil(getattr(chosen, method)(self, *given))

    made: invsolve.Strategy = type("Own", (chosen,), {method: spoiled, "name": "own"})(steps=3)
    return made


def run(prior: Any = None, operator: Any = None, noise: Any = None, chosen: Any = None, y: float = 1.0) -> object:
    same = lambda value: value  # noqa: E731
    return invsolve.reconstruct(
        torch.full((3, 1, 4, 4), y),
        operator or OddBlur(same),
        prior or Odd(same),
        noise=noise or invsolve.Gaussian(0.1),
        strategy=chosen or registry.find("strategy", "dps-fitted")(steps=3),
        progress=False,
    )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda v: v[:1], r"denoise returned a tensor of shape \(1, 1, 4, 4\), expected \(3, 1, 4, 4\)"),
        (lambda v: v.mean(0), r"denoise returned a tensor of shape \(1, 4, 4\)"),
        (lambda v: v.double(), "denoise returned float64, expected float32"),
        (lambda v: v.to(torch.complex64), "denoise returned complex64, expected float32"),
        (lambda v: (v,), "denoise returned tuple, expected a tensor"),
        (lambda v: v.repeat(1, 2, 1, 1), r"denoise returned a tensor of shape \(3, 2, 4, 4\)"),
    ],
)
def test_a_prior(spoil: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"prior 'odd': {said}"):
        run(prior=Odd(spoil))
    if "float64" not in said:
        with pytest.raises(UserError, match="prior 'odd': denoise returned"):
            invsolve.sample(Odd(spoil), 3, shape=(1, 4, 4), steps=2)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda v: v.mean(0, keepdim=True), r"forward returned a tensor of shape \(1, 1, 4, 4\) for 3 rows"),
        (lambda v: v.sum(), r"forward returned a tensor of shape \(\) for 1 rows"),
        (lambda v: v.long(), "forward returned int64, expected a tensor of floating-point or complex"),
        (lambda v: v.numpy(), "forward returned ndarray"),
    ],
)
def test_an_operator(spoil: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"operator 'odd': {said}"):
        run(operator=OddBlur(spoil))


def test_an_operator_of_complex_numbers_for_real_data() -> None:
    with pytest.raises(UserError, match="y is real, but operator 'odd' measures complex numbers; give complex64 data"):
        run(operator=OddBlur(lambda v: v.to(torch.complex64)))


@pytest.mark.parametrize(
    ("method", "spoil", "said"),
    [
        (
            "std",
            lambda v: torch.ones(2, 1, 4, 4),
            r"std returned a tensor of shape \(2, 1, 4, 4\), expected one that is",
        ),
        ("std", lambda v: 0.1, "std returned float, expected a real tensor"),
        ("log_likelihood", lambda v: v.sum(), r"log_likelihood returned a tensor of shape \(\), expected \(3,\)"),
    ],
)
def test_a_noise(method: str, spoil: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"noise 'odd': {said}"):
        run(noise=OddCounts(10.0, method, spoil), chosen=registry.find("strategy", "pnp-dm")(steps=3))


def test_a_noise_that_draws_another_shape() -> None:
    odd = OddNoise(0.1, "sample", lambda v: v[..., :1])
    with pytest.raises(UserError, match=r"noise 'odd': sample returned a tensor of shape \(1, 1, 4, 1\)"):
        invsolve.simulate(torch.ones(2, 1, 4, 4), OddBlur(lambda v: v), odd)


@pytest.mark.parametrize(
    ("method", "spoil", "said"),
    [
        ("schedule", lambda v: v.flip(0), "schedule returned levels that rise, are negative or not finite"),
        ("schedule", lambda v: v[:0], "its schedule is empty"),
        ("schedule", lambda v: v.tolist(), "schedule returned list, expected a tensor"),
        ("init", lambda v: v["x"], "init returned Tensor, expected a dictionary of tensors"),
        (
            "init",
            lambda v: {"x": v["x"][:1]},
            r"init returned 'x' of shape \(1, 1, 4, 4\), expected 3 along its first axis",
        ),
        ("step", lambda v: {**v, "residual": v["residual"].sum()}, "step returned 'residual' of shape"),
        ("step", lambda v: {**v, "count": 3}, "step returned int under 'count', expected a tensor"),
        ("result", lambda v: v[:, 0], r"result returned a tensor of shape \(3, 4, 4\), expected \(3, 1, 4, 4\)"),
    ],
)
def test_a_strategy(method: str, spoil: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"strategy 'own': {said}"):
        run(chosen=strategy(method, spoil))


@pytest.mark.parametrize("steps", [0, -5])
@pytest.mark.parametrize(
    "name",
    [n for n, cls in registry.available("strategy").items() if "steps" in vars(cls).get("__dataclass_fields__", {})],
)
def test_no_strategy_takes_no_step(name: str, steps: int) -> None:
    cls: Any = registry.find("strategy", name)
    with pytest.raises(UserError, match=f"strategy '{name}'.*steps"):
        run(operator=invsolve.operator("blur", sigma=0.5), chosen=cls(steps=steps))


def test_an_operator_that_measures_nothing_leaves_the_prior() -> None:
    """Every strategy whose needs are met ends, and the posterior is the prior: of unit white noise, sampled by `mcg`."""
    nothing = invsolve.operator("blur", kernel=torch.zeros(3, 3))
    prior = Odd(lambda v: v)
    for name in ("mcg", "red-diff", "flowchef", "tv", "dps"):
        run(prior=prior, operator=nothing, chosen=registry.find("strategy", name)(steps=2), y=0.1)
    drawn = invsolve.reconstruct(
        torch.full((1, 1, 16, 16), 0.1),
        nothing,
        prior,
        noise=invsolve.Gaussian(0.1),
        strategy=registry.find("strategy", "mcg")(steps=30),
        samples=8,
        progress=False,
    )
    # 2048 numbers of variance 1: their mean square scatters by sqrt(2 / 2048); thirty steps are a few percent off.
    assert abs(float(torch.as_tensor(drawn.samples).square().mean()) - 1) < 0.05 + 4 * (2 / 2048) ** 0.5
