"""The conformance kit itself: it finds what is wrong, refuses claims that say nothing, and lets exact samples pass."""

from __future__ import annotations

import contextlib
import threading
import unittest
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import invsolve
from invsolve.contracts.problem import Problem
from invsolve.contracts.strategy import State, Strategy, iterations
from invsolve.numerics.random import ChainRandom
from invsolve.testing import Case, check_operator, check_strategy, checks, exact_posterior
from invsolve.testing.distances import ignorance, mode_widths, tails
from invsolve.testing.exact import SomePixels
from invsolve.testing.field import Field
from invsolve.testing.report import Finding


@dataclass(frozen=True)
class Drawn(Strategy):
    """Draws mean + factor n, of the exact posterior of half of the pixels, or of what a test makes of it."""

    name = "drawn"
    mean_error: ClassVar[float] = 0.0
    std_ratio: ClassVar[tuple[float, float]] = (1.0, 1.0)
    eigen_ratio: ClassVar[tuple[float, float]] = (1.0, 1.0)

    kind: str = "exact"

    def schedule(self, problem: Problem) -> Tensor:
        return iterations(0)

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        exact = exact_posterior()
        std, vectors = exact.modes
        white = rng.normal(exact.mean.expand(problem.batch, -1))
        if self.kind == "prior":
            values, vectors = torch.linalg.eigh(exact.prior)
            images = (white * values.clamp_min(0).sqrt()) @ vectors.T
        elif self.kind == "pixels":
            images = exact.mean + white * exact.std
        else:
            images = exact.mean + (white * std) @ vectors.T
        return {"x": images.view(-1, *problem.image_shape).to(problem.y)}


class Claiming(Drawn):
    """Claims so little that the prior's draws meet it."""

    mean_error: ClassVar[float] = 3.0
    std_ratio: ClassVar[tuple[float, float]] = (0.5, 5.0)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.5, 4.0)


def failures(strategy: Strategy) -> set[str]:
    return {finding.name for finding in check_strategy(strategy).failures}


def test_exact_samples_pass_the_sharpest_claims() -> None:
    report = check_strategy(Drawn())
    assert report, report


def test_claims_that_the_priors_draws_meet_are_refused_whatever_the_samples() -> None:
    nothing = {f"{claim} better than the prior's" for claim in ("mean", "width", "widths along the eigenvectors")}
    assert failures(Claiming("prior")) == nothing
    assert failures(Claiming("exact")) == nothing
    report = str(check_strategy(Claiming("exact")))
    assert "meets the claim mean_error = 3.0: it says nothing" in report


def test_the_priors_draws_fail_claims_that_say_something() -> None:
    assert failures(Drawn("prior")) == {"mean", "width", "widths along the eigenvectors"}


def test_pixels_of_the_right_width_without_their_correlations_are_found_along_the_eigenvectors() -> None:
    assert failures(Drawn("pixels")) == {"widths along the eigenvectors"}


def test_a_point_estimate_is_held_to_its_mean_without_the_scatter_of_draws() -> None:
    @dataclass(frozen=True)
    class Nearly(Drawn):
        """The mean, a tenth of a standard deviation off."""

        draws: ClassVar[bool] = False
        mean_error: ClassVar[float] = 0.09

        def init(self, problem: Problem, rng: ChainRandom) -> State:
            exact = exact_posterior()
            image = exact.mean + 0.1 * exact.std
            return {"x": image.view(1, *problem.image_shape).to(problem.y).expand(problem.batch, -1, -1, -1)}

    assert failures(Nearly()) == {"mean"}


def test_the_prior_is_judged_in_closed_form_as_its_own_draws_are() -> None:
    exact, draws = exact_posterior(), 4000
    images, wanted = exact.ignorant(draws, 5), ignorance(exact)
    error = float(((images.mean(0) - exact.mean) / exact.std).square().mean().sqrt())
    # The mean of 4000 is off by 1.6 % of the prior's width, which is at most 3.8 posterior standard deviations.
    assert abs(error - wanted["mean_error"]) < 3 * 3.8 / draws**0.5
    # A width of 4000 draws has a standard error of 1.1 %, and so have the quantiles at most.
    ratio = float((images.var(0).sum() / exact.covariance.trace()).sqrt())
    assert ratio == pytest.approx(wanted["std_ratio"], rel=0.034)
    low, high = tails(mode_widths(images, exact))
    assert (low, high) == (
        pytest.approx(wanted["eigen_low"], rel=0.034),
        pytest.approx(wanted["eigen_high"], rel=0.034),
    )


def test_the_posterior_of_a_part_is_that_of_an_operator_that_measures_the_part() -> None:
    exact = exact_posterior()
    used = torch.zeros(1, 16, 16, dtype=torch.bool)
    used[:, :5] = True
    # In a Gaussian field each number adds its own: precision of the prior plus that of each pixel seen.
    seen = (used[0] & SomePixels().mask).flatten().double()
    precision = torch.linalg.inv(exact.prior) + torch.diag(seen) / 0.05**2
    y = exact.problem.y[0].flatten().double()
    part = exact.given(used)
    torch.testing.assert_close(part.covariance, torch.linalg.inv(precision), atol=1e-9, rtol=0)
    torch.testing.assert_close(part.mean, torch.linalg.solve(precision, seen * y / 0.05**2), atol=1e-6, rtol=0)


def test_the_kits_field_is_the_registered_one() -> None:
    ours, theirs = Field(12, 0.4), invsolve.load_prior("gaussian-field", size=12, std=0.4)
    x = torch.randn(2, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for sigma in (torch.tensor(0.1), torch.tensor([0.2, 3.0])):
        assert torch.equal(ours.denoise(x, sigma), theirs.denoise(x, sigma))
    assert ours.error(0.3) == theirs.error(0.3)
    assert ours.sigma_min == theirs.sigma_min


class Lossy(invsolve.LinearOperator):
    """Every second pixel of a row; its adjoint forgets the last."""

    image_shape = (1, 4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::2]

    def adjoint(self, y: Tensor) -> Tensor:
        x = torch.zeros(*y.shape[:-1], 6, dtype=y.dtype)
        x[..., 0:4:2] = y[..., :2]
        return x


def test_a_wrong_adjoint_is_found_under_its_name() -> None:
    wrong = {finding.name.partition(",")[0] for finding in check_operator(Lossy()).failures}
    assert {"adjoint", "autograd equals adjoint", "dense matrix"} <= wrong
    assert not wrong & {"linear", "batch independence", "norm"}


class Hoarding(invsolve.LinearOperator):
    """Keeps the images it has seen, or something made of each."""

    image_shape = (1, 4, 6)

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x if self.kind == "images" else x.detach() * 2)
        return 2 * x


@pytest.mark.parametrize(("kind", "says"), [("images", "are still held"), ("values", "more tensors after")])
def test_an_operator_that_keeps_what_it_has_seen_is_found(kind: str, says: str) -> None:
    (finding,) = [f for f in check_operator(Hoarding(kind)).failures if f.name.startswith("keeps nothing")]
    assert says in finding.text


class Shared(invsolve.LinearOperator):
    """Hands its image on through an attribute, which another thread may have replaced meanwhile."""

    image_shape = (1, 4, 6)

    def forward(self, x: Tensor) -> Tensor:
        self.__dict__["last"] = x
        # Each thread waits until all have come this far, or nobody else comes.
        with contextlib.suppress(threading.BrokenBarrierError):
            BARRIER.wait(0.05)
        return 2 * self.__dict__["last"]

    def adjoint(self, y: Tensor) -> Tensor:
        return 2 * y


BARRIER = threading.Barrier(4)


def test_an_operator_whose_threads_disturb_one_another_is_found() -> None:
    BARRIER.reset()
    case = next(case for case in checks(Shared()) if case.property == "safe in threads")
    assert "disturb" in case.finding().text


class Stale(invsolve.LinearOperator):
    """Remembers the square of its gain in a way of its own."""

    image_shape = (1, 4, 6)

    def __init__(self) -> None:
        self.gain = torch.linspace(1, 2, 6)
        self.square: dict[torch.dtype, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        return x * self.square.setdefault(x.dtype, (self.gain**2).to(x))


def test_an_operator_that_goes_on_with_a_replaced_tensor_is_found() -> None:
    wrong = {finding.name.partition(",")[0] for finding in check_operator(Stale()).failures}
    assert wrong == {"follows replaced tensors"}


def named(cases: list[Case], name: str) -> Case:
    return next(case for case in cases if case.name == name)


def test_what_does_not_apply_and_what_is_known_is_skipped_with_its_reason() -> None:
    cases = checks(Lossy(), {"adjoint": "forgets the last column"})
    with pytest.raises(unittest.SkipTest, match="not maskable"):
        named(cases, "groups do not overlap, 4x6")()
    with pytest.raises(unittest.SkipTest, match="forgets the last column"):
        named(cases, "adjoint, 4x6 float32")()
    with pytest.raises(AssertionError, match="dense matrix of adjoint"):
        named(cases, "dense matrix, 4x6")()
    named(cases, "linear, 4x6 float64")()


def test_a_property_that_holds_against_expectation_is_a_failure() -> None:
    cases = checks(SomePixels(), {"linear, 16x16 float32": "it is nonlinear"})
    with pytest.raises(AssertionError, match="take it off the list"):
        named(cases, "linear, 16x16 float32")()
    named(cases, "linear, 16x16 float64")()


def test_an_unknown_property_and_a_class_are_refused() -> None:
    with pytest.raises(invsolve.UserError, match="no property is called 'adjoined'"):
        checks(SomePixels(), {"adjoined": "why"})
    with pytest.raises(invsolve.UserError, match="takes an instance"):
        checks(SomePixels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "subject", [SomePixels(), Field(8), invsolve.strategy("linear")], ids=["operator", "prior", "strategy"]
)
def test_every_case_has_a_name_of_its_own_that_pytest_shows(subject: object) -> None:
    names = [case.name for case in checks(subject)]  # type: ignore[arg-type]
    assert len(set(names)) == len(names) > 5
    assert [case.__name__ for case in checks(subject)] == names  # type: ignore[arg-type]


@pytest.mark.parametrize("case", checks(SomePixels(8), image_shape=(1, 8, 8), probes=8))
def test_a_strangers_test_is_two_lines(case: Case, request: pytest.FixtureRequest) -> None:
    assert request.node.callspec.id == case.name
    case()


class Broken(invsolve.LinearOperator):
    """Raises."""

    image_shape = (1, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no detector")


def test_an_error_that_all_properties_run_into_is_told_once() -> None:
    report = check_operator(Broken())
    assert [finding.text for finding in report.failures] == ["RuntimeError: no detector"]


def test_a_finding_is_one_line() -> None:
    assert str(Finding("mean", False, 0.5, 0.1, "too far")) == "FAIL mean 5.0e-01 (limit 1e-01): too far"
    assert str(Finding("groups", True, text="does not apply: not maskable", skipped=True)).startswith("skip groups")
