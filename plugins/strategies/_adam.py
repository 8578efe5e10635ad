"""Adam's step, every row for itself, with its moments in the state."""

from __future__ import annotations

from torch import Tensor

from invsolve.numerics.linalg import rows


def adam(
    gradient: Tensor, first: Tensor, second: Tensor, count: Tensor, decay: tuple[float, float] = (0.9, 0.99)
) -> tuple[Tensor, Tensor, Tensor]:
    """The move to subtract, in units of the learning rate, and the new moments (Kingma & Ba 2015, Algorithm 1).

    Args:
        gradient, first, second: (B, ...).
        count: of this step, from 1, (B,).
        decay: rates of both moments.
    """
    b1, b2 = decay
    first = b1 * first + (1 - b1) * gradient
    second = b2 * second + (1 - b2) * gradient**2
    t = rows(count, gradient)
    return first / (1 - b1**t) / ((second / (1 - b2**t)).sqrt() + 1e-8), first, second
