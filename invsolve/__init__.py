"""invsolve: posterior reconstruction of undersampled measurements with diffusion priors.

Names are loaded on first use, so `import invsolve` costs milliseconds and does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from invsolve import testing as testing
    from invsolve.api import load_prior as load_prior
    from invsolve.api import operator as operator
    from invsolve.api import reconstruct as reconstruct
    from invsolve.api import simulate as simulate
    from invsolve.api import strategy as strategy
    from invsolve.contracts import schedules as schedules
    from invsolve.contracts import solvers as solvers
    from invsolve.contracts.layout import Layout as Layout
    from invsolve.contracts.layout import Measurement as Measurement
    from invsolve.contracts.network_prior import prior_from as prior_from
    from invsolve.contracts.noise import Gaussian as Gaussian
    from invsolve.contracts.noise import Poisson as Poisson
    from invsolve.contracts.operator import LinearOperator as LinearOperator
    from invsolve.contracts.operator import MaskableOperator as MaskableOperator
    from invsolve.contracts.operator import Operator as Operator
    from invsolve.contracts.operator import matching as matching
    from invsolve.contracts.operator import stack as stack
    from invsolve.contracts.prior import Prior as Prior
    from invsolve.contracts.problem import Problem as Problem
    from invsolve.contracts.random import ChainRandom as ChainRandom
    from invsolve.contracts.result import Reconstruction as Reconstruction
    from invsolve.contracts.scale import Scale as Scale
    from invsolve.contracts.strategy import State as State
    from invsolve.contracts.strategy import Strategy as Strategy
    from invsolve.errors import UserError as UserError
    from invsolve.hooks import hookimpl as hookimpl
    from invsolve.likelihood import Likelihood as Likelihood
    from invsolve.likelihood import log_likelihood as log_likelihood
    from invsolve.pipeline import Pipeline as Pipeline
    from invsolve.prior_check import SelfTest as SelfTest
    from invsolve.prior_check import self_test as self_test
    from invsolve.sampling import sample as sample

__version__ = "0.1.0"

_HOME = {
    "reconstruct": "invsolve.api",
    "simulate": "invsolve.api",
    "load_prior": "invsolve.api",
    "sample": "invsolve.sampling",
    "log_likelihood": "invsolve.likelihood",
    "Likelihood": "invsolve.likelihood",
    "prior_from": "invsolve.contracts.network_prior",
    "self_test": "invsolve.prior_check",
    "SelfTest": "invsolve.prior_check",
    "operator": "invsolve.api",
    "strategy": "invsolve.api",
    "Operator": "invsolve.contracts.operator",
    "LinearOperator": "invsolve.contracts.operator",
    "MaskableOperator": "invsolve.contracts.operator",
    "stack": "invsolve.contracts.operator",
    "matching": "invsolve.contracts.operator",
    "State": "invsolve.contracts.strategy",
    "ChainRandom": "invsolve.contracts.random",
    "Layout": "invsolve.contracts.layout",
    "Strategy": "invsolve.contracts.strategy",
    "Problem": "invsolve.contracts.problem",
    "Prior": "invsolve.contracts.prior",
    "Gaussian": "invsolve.contracts.noise",
    "Poisson": "invsolve.contracts.noise",
    "Scale": "invsolve.contracts.scale",
    "Measurement": "invsolve.contracts.layout",
    "Reconstruction": "invsolve.contracts.result",
    "Pipeline": "invsolve.pipeline",
    "UserError": "invsolve.errors",
    "hookimpl": "invsolve.hooks",
}
_MODULES = {
    "testing": "invsolve.testing",
    "schedules": "invsolve.contracts.schedules",
    "solvers": "invsolve.contracts.solvers",
}
__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'invsolve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
