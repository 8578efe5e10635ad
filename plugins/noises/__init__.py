"""Noises, one a file. Gaussian and Poisson live with the contract, because a problem is defined with them."""

from collections.abc import Mapping

from invsolve.contracts.noise import Gaussian, Noise, Poisson
from invsolve.contracts.plugin import collect, hookimpl


@hookimpl
def invsolve_noises() -> Mapping[str, type]:
    return {Gaussian.name: Gaussian, Poisson.name: Poisson, **collect(__name__, Noise)}
