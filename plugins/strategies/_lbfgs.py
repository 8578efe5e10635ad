"""L-BFGS of every row for itself, one iteration a call, with its history in the state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from invsolve.contracts.strategy import State
from invsolve.numerics.linalg import inner, rows

#: Value (B,) and gradient (B, ...) at x (B, ...).
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
#: Part of the promised decrease that must come true; trials of a step, each half of the one before.
ENOUGH, TRIALS = 1e-4, 4


def start(x: Tensor, objective: Objective, history: int) -> State:
    """The state before the first iteration: "x", "value", "gradient", and the empty history "moved" and "changed"."""
    value, gradient = objective(x)
    nothing = x.new_zeros(len(x), history, *x.shape[1:])
    return {"x": x, "value": value, "gradient": gradient, "moved": nothing, "changed": nothing}


def iterate(state: State, objective: Objective) -> State:
    """One iteration (Nocedal & Wright 2006, Algorithms 7.4 and 7.5), with backtracking; a row no trial serves stays."""
    x, value, gradient = state["x"], state["value"], state["gradient"]
    way = -_two_loops(gradient, state["moved"], state["changed"])
    slope = inner(way, gradient)
    # Before there is a history the gradient has no length to trust.
    fresh = state["changed"].flatten(1).abs().sum(1) == 0
    length = torch.where(fresh, 1 / gradient.flatten(1).abs().sum(1).clamp_min(1), 1.0).to(x)
    # A decrease that rounding hides is none: the row has arrived, and no batch of another size sees it elsewhere.
    hidden = 30 * torch.finfo(x.dtype).eps * value.abs()
    found = -slope <= hidden
    there, new_value, new_gradient = x, value, gradient
    if bool(found.all()):
        return dict(state)
    for _ in range(TRIALS):
        trial = x + rows(length, x) * way
        trial_value, trial_gradient = objective(trial)
        good = ~found & (trial_value <= value + ENOUGH * length * slope + hidden)
        there = torch.where(rows(good, x), trial, there)
        new_value = torch.where(good, trial_value, new_value)
        new_gradient = torch.where(rows(good, x), trial_gradient, new_gradient)
        found = found | good
        if bool(found.all()):
            break
        length = length / 2
    moved, changed = there - x, new_gradient - gradient
    # Only what keeps the inverse Hessian positive is remembered.
    useful = rows(inner(moved, changed) > 1e-10 * inner(changed, changed), x)[:, None]
    kept = {
        name: torch.where(useful, torch.cat([new[:, None], state[name][:, :-1]], 1), state[name])
        for name, new in (("moved", moved), ("changed", changed))
    }
    return {"x": there, "value": new_value, "gradient": new_gradient, **kept}


def _two_loops(gradient: Tensor, moved: Tensor, changed: Tensor) -> Tensor:
    """The inverse Hessian of the history, newest first, times the gradient; empty entries, zero, take no part."""
    q, shares = gradient, []
    for s, y in zip(moved.unbind(1), changed.unbind(1), strict=True):
        product = inner(s, y)
        rho = torch.where(product > 0, 1 / product, 0.0)
        share = rho * inner(s, q)
        shares.append((rho, share))
        q = q - rows(share, q) * y
    s, y = moved[:, 0], changed[:, 0]
    scale = torch.where(inner(y, y) > 0, inner(s, y) / inner(y, y), 1.0)
    q = rows(scale, q) * q
    for s, y, (rho, share) in reversed(list(zip(moved.unbind(1), changed.unbind(1), shares, strict=True))):
        q = q + rows(share - rho * inner(y, q), q) * s
    return q
