"""The loop: batches, keyed noise, counts, callbacks, checks, memory, and refusal before the first step."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch

import invsolve
from invsolve import api, engine
from invsolve.contracts.strategy import State, Strategy, iterations
from invsolve.engine.options import Options
from invsolve.numerics.random import ChainRandom
from tests.support import bounds

SIGMA = 0.05


@pytest.fixture(scope="module")
def prior() -> invsolve.Prior:
    return invsolve.load_prior("gaussian-field", size=16, std=0.15)


@pytest.fixture(scope="module")
def operator() -> invsolve.Operator:
    return invsolve.operator("inpainting", fraction=0.5, image_size=16)


@pytest.fixture(scope="module")
def y(prior: invsolve.Prior, operator: invsolve.Operator) -> torch.Tensor:
    truth = prior.sample(ChainRandom(3, [(i, 0) for i in range(5)]), torch.zeros(1))
    return invsolve.simulate(truth, operator, invsolve.Gaussian(SIGMA))


def run(
    y: torch.Tensor, operator: invsolve.Operator, prior: invsolve.Prior, **options: object
) -> invsolve.Reconstruction:
    settings = {
        "noise": invsolve.Gaussian(SIGMA),
        "strategy": invsolve.strategy("dps-fitted", steps=12),
        "samples": 4,
        "progress": False,
    }
    return invsolve.reconstruct(y, operator, prior, **(settings | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["dps-fitted", "red-diff"])
def test_the_same_sample_for_every_batch_size(
    name: str, y: torch.Tensor, operator: invsolve.Operator, prior: invsolve.Prior
) -> None:
    strategy = invsolve.strategy(name, steps=12)
    one, three, sixteen = (run(y, operator, prior, strategy=strategy, batch_size=b).samples for b in (1, 3, 16))
    torch.testing.assert_close(one, three, atol=2e-5, rtol=0)
    torch.testing.assert_close(one, sixteen, atol=2e-5, rtol=0)


def test_the_same_sample_whatever_else_is_run(
    y: torch.Tensor, operator: invsolve.Operator, prior: invsolve.Prior
) -> None:
    everything = run(y, operator, prior)
    fewer_items = run(y[:2], operator, prior)
    fewer_samples = run(y, operator, prior, samples=2)
    torch.testing.assert_close(everything.samples[:2], fewer_items.samples, atol=2e-5, rtol=0)
    torch.testing.assert_close(everything.samples[:, :2], fewer_samples.samples, atol=2e-5, rtol=0)


def test_any_item_order_gives_the_same_samples(
    y: torch.Tensor, operator: invsolve.Operator, prior: invsolve.Prior
) -> None:
    measurement = invsolve.Measurement(y, operator, invsolve.Gaussian(SIGMA))
    results = []
    for order in ([0, 1, 2, 3, 4], [3, 1, 4, 0, 2]):
        sink = api.Memory(5)
        for item in order:
            planned = api.plan(
                measurement, prior, invsolve.strategy("dps-fitted", steps=8), Options(samples=2, batch_size=3)
            )
            only = OnlyItem(sink, item)
            planned.execute(only)
        results.append(sink.stack("samples"))
    torch.testing.assert_close(results[0], results[1], atol=2e-5, rtol=0)


@dataclasses.dataclass
class OnlyItem:
    inner: api.Memory
    item: int

    def is_done(self, item: int) -> bool:
        return item != self.item

    def write(self, item: int, arrays: Mapping[str, torch.Tensor], facts: Mapping[str, float]) -> None:
        self.inner.write(item, arrays, facts)


def test_seeds_differ_and_repeat(y: torch.Tensor, operator: invsolve.Operator, prior: invsolve.Prior) -> None:
    first, again, other = (run(y, operator, prior, seed=s).samples for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert float((first - other).abs().mean()) > 0.01


def test_mean_and_std_are_those_of_the_samples(
    y: torch.Tensor, operator: invsolve.Operator, prior: invsolve.Prior
) -> None:
    rec = run(y, operator, prior)
    torch.testing.assert_close(rec.mean, rec.samples.mean(1))
    torch.testing.assert_close(rec.std, rec.samples.std(1))
    assert rec.samples.shape == (5, 4, 1, 16, 16)
    assert float(run(y, operator, prior, samples=1).std.abs().max()) == 0


def test_calls_are_counted(y: torch.Tensor, operator: invsolve.Operator, prior: invsolve.Prior) -> None:
    dps = run(y, operator, prior).diagnostics
    assert dps["network_calls"] == [12.0] * 5
    assert dps["vjp_calls"] == [12.0] * 5
    # Of D, back from its residual, and of what the fitted step would change.
    assert dps["operator_calls"] == [36.0] * 5
    red = run(y, operator, prior, strategy=invsolve.strategy("red-diff", steps=7)).diagnostics
    assert red["network_calls"] == [7.0] * 5
    assert red["vjp_calls"] == [0.0] * 5
    assert red["operator_calls"] == [15.0] * 5  # the start, then forward and adjoint a step


def test_operators_are_left_without_meters(y: torch.Tensor, operator: invsolve.Operator, prior: invsolve.Prior) -> None:
    run(y, operator, prior)
    assert "forward" not in operator.__dict__
    assert "adjoint" not in operator.__dict__


@pytest.mark.discrepant
def test_callback_sees_every_step_and_can_stop(
    y: torch.Tensor, operator: invsolve.Operator, prior: invsolve.Prior
) -> None:
    seen: list[engine.StepInfo] = []
    run(y[:1], operator, prior, callback=lambda info: seen.append(info))
    assert [i.step for i in seen] == list(range(1, 13))
    assert seen[-1].steps == 12
    assert seen[-1].sigma == 0
    assert seen[0].estimate().shape == (4, 1, 16, 16)
    seen.clear()

    def stop_at_five(info: engine.StepInfo) -> bool:
        seen.append(info)
        return info.step == 5

    run(y[:1], operator, prior, callback=stop_at_five)
    assert len(seen) == 5


def test_residual_is_in_units_of_its_expected_value(
    y: torch.Tensor, operator: invsolve.Operator, prior: invsolve.Prior
) -> None:
    rec = run(y, operator, prior, strategy=invsolve.strategy("dps-fitted", steps=200), samples=8)
    final = rec.diagnostics["residual"][:, :, -1]
    # A draw from the posterior leaves what the truth leaves, of which there are five; a square is off by twice what a width is.
    error = 2 * bounds.width_error(len(y) + 1, int(operator.measured().sum()))
    assert float(final.mean()) == pytest.approx(1, abs=error)


def test_nan_is_refused_with_the_step_and_the_likely_cause(
    y: torch.Tensor, operator: invsolve.Operator, prior: invsolve.Prior
) -> None:
    with pytest.raises(engine.NonFinite, match=r"step \d+ of 30 .*likely"):
        run(y, operator, prior, strategy=invsolve.strategy("dps-fitted", steps=30, zeta=1e38))


class Bounded(invsolve.Prior):
    """Runs out of memory on more than `limit` images, like a GPU."""

    event_shape = (1, 16, 16)
    limit = 3

    def __init__(self, inner: invsolve.Prior) -> None:
        super().__init__()
        self.inner = inner
        self.sigma_min = inner.sigma_min
        self.largest = 0

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        if len(x) > self.limit:
            raise torch.OutOfMemoryError(f"tried {len(x)}")
        self.largest = max(self.largest, len(x))
        return self.inner.denoise(x, sigma)


def test_the_batch_is_halved_when_memory_runs_out(
    y: torch.Tensor, operator: invsolve.Operator, prior: invsolve.Prior
) -> None:
    bounded = Bounded(prior)
    rec = run(y, operator, bounded, batch_size=16)
    assert bounded.largest == 2
    torch.testing.assert_close(rec.samples, run(y, operator, prior, batch_size=2).samples, atol=2e-5, rtol=0)
    bounded.limit = 0
    with pytest.raises(invsolve.UserError, match="smallest batch"):
        run(y, operator, bounded)


class TooLarge(Bounded):
    """Asks the CPU for more than a machine has, on more than `limit` images."""

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        if len(x) > self.limit:
            torch.empty(2**55, dtype=torch.float64)
        return super().denoise(x, sigma)


def test_the_batch_is_halved_when_the_memory_of_the_cpu_runs_out(
    y: torch.Tensor, operator: invsolve.Operator, prior: invsolve.Prior
) -> None:
    large = TooLarge(prior)
    rec = run(y, operator, large, batch_size=16)
    assert large.largest == 2
    torch.testing.assert_close(rec.samples, run(y, operator, prior, batch_size=2).samples, atol=2e-5, rtol=0)


@dataclasses.dataclass(frozen=True)
class Greedy(Strategy):
    """Declares a need that is not met."""

    needs: ClassVar[tuple[str, ...]] = ()

    def schedule(self, problem: invsolve.Problem) -> torch.Tensor:
        return iterations(1)

    def init(self, problem: invsolve.Problem, rng: ChainRandom) -> State:
        raise AssertionError("must not start")


class Quantise(invsolve.Operator):
    image_shape = (1, 16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.detach() * 4).round() / 4


@pytest.mark.parametrize(
    ("need", "text"),
    [
        ("linear", "linear operator"),
        ("maskable", "maskable"),
        ("operator-gradient", "differentiable"),
        ("linearisation", "differentiable"),
        ("prior", "a prior"),
        ("gaussian", "Gaussian noise"),
    ],
)
def test_needs_are_checked_before_the_first_step(need: str, text: str, prior: invsolve.Prior) -> None:
    strategy = dataclasses.make_dataclass("Needy", [], bases=(Greedy,), namespace={"needs": (need,)}, frozen=True)()
    noise = invsolve.Poisson(10.0) if need == "gaussian" else invsolve.Gaussian(0.1)
    given = None if need == "prior" else prior
    with pytest.raises(invsolve.UserError, match=text):
        invsolve.reconstruct(torch.ones(1, 1, 16, 16), Quantise(), given, noise=noise, strategy=strategy)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"samples": 0}, "samples"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"noise": None}, "noise"),
        ({"device": "cuda:77"}, "device"),
        ({"device": "abacus"}, "device"),
        ({"strategy": "dsp"}, "'dps'"),
        ({"scale": (1.0, 0.0)}, "rise"),
        ({"scale": "guess"}, "scale"),
    ],
)
def test_wrong_arguments_are_one_line(
    change: dict, text: str, y: torch.Tensor, operator: invsolve.Operator, prior: invsolve.Prior
) -> None:
    with pytest.raises(invsolve.UserError, match=text) as caught:
        run(y, operator, prior, **change)
    assert "\n" not in str(caught.value)


def test_a_prior_that_does_not_fit_is_refused(y: torch.Tensor, operator: invsolve.Operator) -> None:
    with pytest.raises(invsolve.UserError, match=r"\(1, 32, 32\).*\(1, 16, 16\)"):
        run(y, operator, invsolve.load_prior("gaussian-field", size=32))


def test_permuted_axes_are_named(prior: invsolve.Prior) -> None:
    ct = invsolve.operator("ct", image_size=16, angles=10)
    with pytest.raises(invsolve.UserError, match="axes look permuted"):
        run(torch.zeros(2, 23, 10), ct, prior)


def test_nan_in_y_is_named(y: torch.Tensor, operator: invsolve.Operator, prior: invsolve.Prior) -> None:
    broken = y.clone()
    broken[3, 0, 2, 2] = torch.nan
    with pytest.raises(invsolve.UserError, match="1 NaN or infinite values in item 3"):
        run(broken, operator, prior)


@pytest.mark.discrepant
def test_physical_units_go_in_and_come_out(operator: invsolve.Operator, y: torch.Tensor, prior: invsolve.Prior) -> None:
    factor, offset = 250.0, 1000.0
    ct = invsolve.operator("ct", image_size=16, angles=12)
    truth = prior.sample(ChainRandom(3, [(i, 0) for i in range(2)]), torch.zeros(1))
    network = invsolve.simulate(truth, ct, invsolve.Gaussian(0.1))
    physical = invsolve.simulate(truth * factor + offset, ct, invsolve.Gaussian(0.1 * factor))
    a = run(network, ct, prior, noise=invsolve.Gaussian(0.1))
    b = run(physical, ct, prior, noise=invsolve.Gaussian(0.1 * factor), scale=invsolve.Scale(factor, offset))
    torch.testing.assert_close(b.samples, a.samples * factor + offset, atol=0.02 * factor, rtol=0)
    torch.testing.assert_close(b.std, a.std * factor, atol=0.02 * factor, rtol=0)


@pytest.mark.discrepant("red-diff")
@pytest.mark.parametrize("strategy", ["linear", "tv", "red-diff"])
def test_a_short_detector_is_no_trouble_for_an_offset(strategy: str, prior: invsolve.Prior) -> None:
    # The rays miss the image's corners, where the offset lies too.
    ct = invsolve.operator("ct", image_size=16, angles=24, detectors=16)
    axis = torch.arange(16) - 7.5
    disc = ((axis[:, None] ** 2 + axis[None] ** 2) < 25).float()[None, None]
    y = invsolve.simulate(disc, ct, invsolve.Gaussian(0.01))
    known: dict[str, dict[str, Any]] = {"linear": {}, "red-diff": {"steps": 200}, "tv": {"balance": 100.0}}
    settings = known[strategy]
    rec = run(
        y, ct, prior, noise=invsolve.Gaussian(0.01), strategy=invsolve.strategy(strategy, **settings), scale=(0.0, 1.0)
    )
    if strategy == "linear":
        torch.testing.assert_close(rec.mean, ct.baseline(y, 0.01), atol=1e-4, rtol=0)
    else:
        assert float((rec.mean - disc).abs().mean()) < 0.1


@pytest.mark.discrepant
def test_complex_operator_with_real_and_with_two_channel_priors(prior: invsolve.Prior) -> None:
    mri = invsolve.operator("mri", image_size=16, acceleration=2)
    truth = prior.sample(ChainRandom(3, [(0, 0)]), torch.zeros(1))
    y = invsolve.simulate(truth, mri, invsolve.Gaussian(0.01))
    assert y.is_complex()
    rec = run(y, mri, prior, noise=invsolve.Gaussian(0.01), strategy="tv", samples=1)
    assert rec.mean.shape == (1, 1, 16, 16)

    class TwoChannels(invsolve.Prior):
        event_shape = (2, 16, 16)

        def denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x * 0.0225 / (0.0225 + sigma**2)

    both = torch.cat([truth, truth.flip(-1)], 1)
    y = invsolve.simulate(both, mri, invsolve.Gaussian(0.01))
    rec = run(y, mri, TwoChannels(), noise=invsolve.Gaussian(0.01), strategy=invsolve.strategy("dps-fitted", steps=50))
    assert rec.mean.shape == (1, 2, 16, 16)
    assert float(((mri(torch.complex(rec.mean[:, :1], rec.mean[:, 1:])) - y).abs()).mean()) < 0.1


def test_poisson_noise_reaches_dps(prior: invsolve.Prior) -> None:
    blur = invsolve.operator("blur", sigma=1.0)
    truth = 2.0 + prior.sample(ChainRandom(3, [(0, 0)]), torch.zeros(1))
    noise = invsolve.Poisson(400.0)
    y = invsolve.simulate(truth, blur, noise)
    rec = run(
        y,
        blur,
        prior,
        noise=noise,
        scale=invsolve.Scale(1.0, 2.0),
        strategy=invsolve.strategy("dps-fitted", steps=200),
        samples=8,
    )
    before = float((y - truth).square().mean())
    assert float((rec.mean - truth).square().mean()) < before


def test_random_numbers_are_keyed() -> None:
    like = torch.zeros(3, 2, 5)
    both = ChainRandom(7, [(0, 0), (0, 1), (4, 0)]).at(9)
    first, second = both.normal(like), both.normal(like)
    alone = ChainRandom(7, [(4, 0)]).at(9)
    assert torch.equal(alone.normal(like[:1]), first[2:])
    assert torch.equal(alone.normal(like[:1]), second[2:])
    rows = [
        first[0],
        first[1],
        first[2],
        second[0],
        ChainRandom(7, [(0, 0)]).at(8).normal(like[:1])[0],
        ChainRandom(8, [(0, 0)]).at(9).normal(like[:1])[0],
    ]
    for i in range(len(rows)):
        for k in range(i):
            assert not torch.equal(rows[i], rows[k])


def test_random_numbers_have_the_right_moments() -> None:
    rng = ChainRandom(0, [(i, 0) for i in range(50)])
    x = rng.normal(torch.zeros(50, 2000))
    assert abs(float(x.mean())) < bounds.mean_error(x.numel())
    assert abs(float(x.std()) - 1) < bounds.width_error(x.numel())
    z = rng.normal(torch.zeros(50, 1000, dtype=torch.complex64))
    assert abs(float(z.real.std()) - 1) < bounds.width_error(z.numel())
    assert abs(float((z.real * z.imag).mean())) < bounds.mean_error(z.numel())
    u = torch.cat([rng.uniform() for _ in range(20)])
    assert 0 <= float(u.min()) <= float(u.max()) < 1
    rate = torch.full((50, 400), 3.0)
    counts = rng.poisson(rate)
    assert abs(float(counts.mean()) - 3) < bounds.mean_error(rate.numel(), math.sqrt(3))
    # Its kurtosis is 3 + 1 / rate; a variance is off by twice what a width is.
    assert abs(float(counts.var()) / 3 - 1) < 2 * bounds.width_error(rate.numel(), kurtosis=3 + 1 / 3)
