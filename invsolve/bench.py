"""How far each strategy is from the exact posterior: Gaussian fields seen through five operators, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from invsolve import api, registry
from invsolve.contracts.operator import LinearOperator, MaskableOperator, matching
from invsolve.contracts.problem import real_view
from invsolve.errors import UserError, suggestion
from invsolve.testing.strategies import compare, exact_posterior

SIZE = 16


class Compression(LinearOperator):
    """A quarter as many random projections (standard normal over sqrt(pixels)) as pixels."""

    image_shape = (1, SIZE, SIZE)

    def __init__(self) -> None:
        super().__init__()
        count = SIZE * SIZE
        self.matrix = torch.randn(count // 4, count, generator=torch.Generator().manual_seed(0)) / math.sqrt(count)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ matching(self.matrix, x).T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ matching(self.matrix, y)).view(-1, *self.image_shape)


def _fourier() -> LinearOperator:
    view = real_view(api.operator("mri", image_size=SIZE, acceleration=3), 1)
    assert isinstance(view, LinearOperator)
    return view


def _named(name: str, **given: Any) -> Callable[[], LinearOperator]:
    def make() -> LinearOperator:
        operator = api.operator(name, **given)
        assert isinstance(operator, LinearOperator)
        return operator

    return make


PROBLEMS: dict[str, Callable[[], LinearOperator]] = {
    "inpainting": _named("inpainting", fraction=0.5, image_size=SIZE),
    "blur": _named("blur", sigma=1.5),
    "compression": Compression,
    "ct": _named("ct", image_size=SIZE, angles=8),
    "fourier": _fourier,
}


def bench_posterior(
    strategies: Sequence[str],
    problems: Sequence[str],
    evaluations: int | None,
    samples: int,
    device: str,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Compare strategies with the exact posterior of a 16 x 16 Gaussian field (pixel sd 0.15), sigma_y 0.05.

    Args:
        strategies: names; empty for all that draw samples.
        problems: names from PROBLEMS; empty for all.
        evaluations: network calls and vector-Jacobian products a sample; None for each strategy's default.
        samples: draws a problem.
        say: told what is running.

    Returns:
        One row a strategy and problem: the figures of `invsolve.testing.strategies.compare`.

    Raises:
        UserError: an unknown name.
    """
    for name in problems:
        if name not in PROBLEMS:
            raise UserError(f"unknown problem {name!r}.{suggestion(name, PROBLEMS)}")
    known = registry.available("strategy")
    chosen = list(strategies) or [n for n, cls in known.items() if cls.draws]  # type: ignore[attr-defined]
    rows = []
    for problem in problems or list(PROBLEMS):
        for name in chosen:
            strategy = api.strategy(name) if evaluations is None else api.strategy(name).at_cost(evaluations)
            operator = PROBLEMS[problem]()
            if "maskable" in strategy.needs and not isinstance(operator, MaskableOperator):
                continue
            say(f"{problem}: {name}")
            found = compare(strategy, exact_posterior(operator, samples=samples, device=device))
            rows.append({"problem": problem, "strategy": name, **found})
    return rows
