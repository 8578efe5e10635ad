"""invsolve: posterior reconstruction of undersampled measurements with diffusion priors.

Names are loaded on first use, so `import invsolve` costs milliseconds and does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from invsolve import testing as testing
    from invsolve.acquisition.beginning import acquire as acquire
    from invsolve.acquisition.session import Session as Session
    from invsolve.api.adapting import adapt as adapt
    from invsolve.api.likelihood import Likelihood as Likelihood
    from invsolve.api.likelihood import log_likelihood as log_likelihood
    from invsolve.api.loading import load_prior as load_prior
    from invsolve.api.loading import make as make
    from invsolve.api.loading import noise as noise
    from invsolve.api.loading import operator as operator
    from invsolve.api.loading import policy as policy
    from invsolve.api.loading import strategy as strategy
    from invsolve.api.reconstruction import reconstruct as reconstruct
    from invsolve.api.sampling import sample as sample
    from invsolve.api.schedule_search import search_schedule as search_schedule
    from invsolve.api.simulation import simulate as simulate
    from invsolve.contracts.acquisition import Knowledge as Knowledge
    from invsolve.contracts.acquisition import Policy as Policy
    from invsolve.contracts.layout import Layout as Layout
    from invsolve.contracts.layout import Make as Make
    from invsolve.contracts.maskable import MaskableOperator as MaskableOperator
    from invsolve.contracts.measurement import Measurement as Measurement
    from invsolve.contracts.noise import Gaussian as Gaussian
    from invsolve.contracts.noise import Noise as Noise
    from invsolve.contracts.noise import Poisson as Poisson
    from invsolve.contracts.operator import LinearOperator as LinearOperator
    from invsolve.contracts.operator import Operator as Operator
    from invsolve.contracts.operator import matching as matching
    from invsolve.contracts.paper import Paper as Paper
    from invsolve.contracts.per_item import per_item as per_item
    from invsolve.contracts.plugin import collect as collect
    from invsolve.contracts.plugin import hookimpl as hookimpl
    from invsolve.contracts.prior import Prior as Prior
    from invsolve.contracts.prior import per_row as per_row
    from invsolve.contracts.problem import Problem as Problem
    from invsolve.contracts.result import Reconstruction as Reconstruction
    from invsolve.contracts.scale import Scale as Scale
    from invsolve.contracts.stack import stack as stack
    from invsolve.contracts.strategy import State as State
    from invsolve.contracts.strategy import Strategy as Strategy
    from invsolve.datasets.mri.compression import compress_coils as compress_coils
    from invsolve.errors import UserError as UserError
    from invsolve.networks.network_prior import prior_from as prior_from
    from invsolve.networks.selftest import SelfTest as SelfTest
    from invsolve.networks.selftest import self_test as self_test
    from invsolve.numerics import schedules as schedules
    from invsolve.numerics.ode import solvers as solvers
    from invsolve.numerics.random import ChainRandom as ChainRandom
    from invsolve.operators.ct.geometry import Geometry as Geometry
    from invsolve.operators.mri.masks import kspace_mask as kspace_mask
    from invsolve.pipeline import Pipeline as Pipeline


__version__ = "0.1.0"

#: Where each public name lives; the names are loaded from there on first use.
HOME = {
    "reconstruct": "invsolve.api.reconstruction",
    "simulate": "invsolve.api.simulation",
    "acquire": "invsolve.acquisition.beginning",
    "Session": "invsolve.acquisition.session",
    "Policy": "invsolve.contracts.acquisition",
    "Knowledge": "invsolve.contracts.acquisition",
    "load_prior": "invsolve.api.loading",
    "sample": "invsolve.api.sampling",
    "search_schedule": "invsolve.api.schedule_search",
    "log_likelihood": "invsolve.api.likelihood",
    "Likelihood": "invsolve.api.likelihood",
    "prior_from": "invsolve.networks.network_prior",
    "self_test": "invsolve.networks.selftest",
    "SelfTest": "invsolve.networks.selftest",
    "adapt": "invsolve.api.adapting",
    "operator": "invsolve.api.loading",
    "noise": "invsolve.api.loading",
    "policy": "invsolve.api.loading",
    "make": "invsolve.api.loading",
    "strategy": "invsolve.api.loading",
    "Operator": "invsolve.contracts.operator",
    "LinearOperator": "invsolve.contracts.operator",
    "MaskableOperator": "invsolve.contracts.maskable",
    "stack": "invsolve.contracts.stack",
    "matching": "invsolve.contracts.operator",
    "per_item": "invsolve.contracts.per_item",
    "Paper": "invsolve.contracts.paper",
    "CG": "invsolve.numerics.krylov",
    "Solution": "invsolve.numerics.krylov",
    "State": "invsolve.contracts.strategy",
    "ChainRandom": "invsolve.numerics.random",
    "Layout": "invsolve.contracts.layout",
    "Make": "invsolve.contracts.layout",
    "Strategy": "invsolve.contracts.strategy",
    "Problem": "invsolve.contracts.problem",
    "Prior": "invsolve.contracts.prior",
    "per_row": "invsolve.contracts.prior",
    "Noise": "invsolve.contracts.noise",
    "Gaussian": "invsolve.contracts.noise",
    "Poisson": "invsolve.contracts.noise",
    "Scale": "invsolve.contracts.scale",
    "Geometry": "invsolve.operators.ct.geometry",
    "compress_coils": "invsolve.datasets.mri.compression",
    "kspace_mask": "invsolve.operators.mri.masks",
    "Measurement": "invsolve.contracts.measurement",
    "Reconstruction": "invsolve.contracts.result",
    "Pipeline": "invsolve.pipeline",
    "UserError": "invsolve.errors",
    "hookimpl": "invsolve.contracts.plugin",
    "collect": "invsolve.contracts.plugin",
}
_MODULES = {
    "testing": "invsolve.testing",
    "schedules": "invsolve.numerics.schedules",
    "solvers": "invsolve.numerics.ode.solvers",
}
__all__ = [*HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in HOME:
        return getattr(importlib.import_module(HOME[name]), name)
    raise AttributeError(f"module 'invsolve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
