"""How long the data steps down the norm of the residual are, in parts of that norm."""

from __future__ import annotations

import torch
from torch import Tensor

from invsolve.contracts.strategy import State
from invsolve.numerics.linalg import inner


def longest(state: State, step: Tensor, gradient: Tensor, misfit: Tensor, together: int = 1) -> Tensor:
    """What part of the misfit this step removes to first order, or an earlier one did, if that was longer, (B,).

    Args:
        state: before the step.
        step: what is subtracted from the image, (B, C, *spatial).
        gradient: of the misfit, like the step.
        misfit: norm of the residual, (B,), or (B / together,).
        together: how many rows, one after another, have one norm.
    """
    removed = inner(step, gradient).view(-1, together).sum(1)
    share = (removed / misfit.clamp_min(torch.finfo(misfit.dtype).tiny)).repeat_interleave(together)
    return share.maximum(state["stride"]) if "stride" in state else share
