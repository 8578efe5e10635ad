"""The strategy contract: frozen settings, a schedule, and a step from state to state. The engine owns the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from invsolve.contracts.paper import Paper

if TYPE_CHECKING:
    from invsolve.contracts.problem import Problem
    from invsolve.numerics.random import ChainRandom

#: Plain tensors whose first axis is the batch. "x" is the iterate; "residual" (B,), if present, is |y - A(D)|, a diagnostic;
#: "stride" (B,), if present, what part of that residual the longest data step so far would have removed, to first order: above
#: 1 it stepped over the data. "converged" (B,), integers, if present: not zero in rows that no further step changes.
State = dict[str, Tensor]

#: What a strategy can declare in `needs`, with the words the engine uses when it is missing.
NEEDS = {
    "prior": "a prior",
    "prior-gradient": "a prior that can be differentiated",
    "linear": "a linear operator",
    "maskable": "a maskable operator",
    "operator-gradient": "an operator whose forward is differentiable torch code",
    "linearisation": "a linear operator with Gaussian noise, or an operator whose forward is differentiable torch code",
    "tangent": "an operator whose tangent tells how it goes on",
    "gaussian": "Gaussian noise",
    "gaussian-like": "noise that Gaussian noise of its mean and variance can stand for",
    "noise-slope": "noise whose log-likelihood has a slope",
    "low-noise": "noise well below what the prior's images vary by",
}


@dataclass(frozen=True)
class Strategy:
    """How to draw from the posterior. Subclass as a frozen dataclass: its fields are its parameters.

    A `step` must not keep anything in self; what it needs next time goes into the state. It runs without gradients;
    open `torch.enable_grad()` where you need them, and return detached tensors.

    Class attributes:
        needs: names from `NEEDS`; the engine checks them before the first step.
        couples_samples: True when the samples of one item interact (particles); they are then kept in one batch and
            follow one another in it, `problem.samples_per_item` rows per item.
        couples_items: True when the items of a file are slices that interact; all slices of a volume are then one batch,
            in their order, and `problem.through_plane` gives differences and inner products across them.
        draws: True when repeated runs scatter like the posterior; False for point estimates.
        data_strength: parameters that decide how closely the samples follow the data: 1 where a larger value follows them more
            closely, -1 where less, 0 where that depends on whether the data steps are too short or too long, which the state's
            "stride" then tells. "steps" stands here where more steps bring samples that miss the data closer to them. It
            is what is advised when the residual does not fit the noise; `check_strategy` measures it.
        explains: False for images that are not meant to fit the data to within the noise, such as a filtered back-projection.
        inner_limit: the parameter that limits the iterations of solves inside a step; empty where none does.
        decomposes: True when it works in the operator's singular basis, which large operators have only in closed form.
        preference: place in the order in which one is chosen where none is named, 0 first; None where it is never chosen.
        advice: what `invsolve inspect` suggests it for ("a quick look", "with a prior", "without a prior"), and with which
            options; empty where it does not.
        unimodal: True when it takes the posterior for one mode, and is overconfident where there are several.
        weighs_modes: True when the modes of a posterior get their weights, as particles give them.
        cost: network calls per step, in words, for tables.
        aliases: other names under which it is found.
        paper: the publication that it implements; None where it is nobody's but ours.
        builds_on: further publications that it rests on.
        presets: named sets of parameters, taken with the parameter `preset`; "published" holds the paper's settings where
            the defaults are others.
        mean_error, std_ratio, eigen_ratio: what is claimed against the exact posterior of a Gaussian field: mean error in
            posterior standard deviations; sample over posterior standard deviation, of all pixels together; and the same
            along the posterior's eigenvectors, between which bounds 90 % of them lie, as what is too narrow along one
            and too wide along another can look right in every pixel. `check_strategy` holds it to that.
    """

    needs: ClassVar[tuple[str, ...]] = ("prior",)
    couples_samples: ClassVar[bool] = False
    couples_items: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    decomposes: ClassVar[bool] = False
    preference: ClassVar[int | None] = None
    advice: ClassVar[tuple[str, str]] = ("", "")
    unimodal: ClassVar[bool] = False
    weighs_modes: ClassVar[bool] = False
    cost: ClassVar[str] = "forward"
    data_strength: ClassVar[Mapping[str, int]] = {}
    explains: ClassVar[bool] = True
    inner_limit: ClassVar[str] = ""
    mean_error: ClassVar[float] = 0.5
    std_ratio: ClassVar[tuple[float, float]] = (0.7, 1.4)
    eigen_ratio: ClassVar[tuple[float, float]] = (0.5, 2.0)
    name: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()
    paper: ClassVar[Paper | None] = None
    builds_on: ClassVar[tuple[Paper, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    def at_cost(self, evaluations: int) -> Self:
        """The same strategy with its length set so that a sample costs about so many evaluations.

        An evaluation is a network call or a vector-Jacobian product. Here: one call a step, two where gradients through the
        prior are needed; the field `steps` is what changes. Override it where a step costs otherwise.
        """
        if "steps" not in self.__dataclass_fields__ or "prior" not in self.needs:
            return self
        cost = 2 if "prior-gradient" in self.needs else 1
        return replace(self, steps=max(evaluations // cost, 2))  # type: ignore[call-arg]

    def takes_items_one_by_one(self, other: type) -> bool:
        """Whether another strategy couples no items and needs no more than this one."""
        return issubclass(other, Strategy) and not other.couples_items and set(other.needs) <= set(self.needs)

    def doubt(self, problem: Problem) -> str:
        """Return a line to warn of before a run: why the samples may be far off, as for too few particles; empty for nothing."""
        return ""

    def schedule(self, problem: Problem) -> Tensor:
        """Return the noise levels, descending, (steps + 1,). Their length sets the number of steps."""
        raise NotImplementedError

    def init(self, problem: Problem, rng: ChainRandom) -> State:
        """Return the state before the first step."""
        raise NotImplementedError

    def step(self, problem: Problem, state: State, sigma: float, sigma_next: float, rng: ChainRandom) -> State:
        """Advance from noise level `sigma` to `sigma_next`."""
        raise NotImplementedError

    def result(self, problem: Problem, state: State) -> Tensor:
        """Return the images (B, C, *spatial), in network units, that a state stands for."""
        return state["x"]

    def diagnostics(self, problem: Problem, state: State) -> dict[str, Tensor]:
        """Return tensors (B, ...) worth keeping beside the images, such as the mask an active strategy chose."""
        return {}

    def used(self, problem: Problem, state: State) -> Tensor | None:
        """Return which entries of y the images rest on, boolean, broadcast to y; None for all that are measured."""
        return None


def iterations(count: int) -> Tensor:
    """The schedule of a method that does not diffuse: `count` steps at noise level zero."""
    return torch.zeros(count + 1, dtype=torch.float64)


def settings(strategy: Strategy) -> dict[str, Any]:
    """The strategy's parameters, for the record."""
    return {name: getattr(strategy, name) for name in strategy.__dataclass_fields__}
