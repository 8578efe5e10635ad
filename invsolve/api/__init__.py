"""What a notebook calls: reconstruct, simulate, sample, log_likelihood, and the parts they are put together from."""

from invsolve.api.inputs import resolve_device, resolve_operator
from invsolve.api.loading import fill_image_size, load_prior, operator, strategy
from invsolve.api.planning import execute, plan
from invsolve.api.reconstruction import Memory, reconstruct
from invsolve.api.simulation import simulate

__all__ = [
    "Memory",
    "execute",
    "fill_image_size",
    "load_prior",
    "operator",
    "plan",
    "reconstruct",
    "resolve_device",
    "resolve_operator",
    "simulate",
    "strategy",
]
