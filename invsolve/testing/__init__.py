"""The conformance kit: what every plugin must hold, kind by kind, with figures; also for plugins of your own."""

from invsolve.testing.cases import Case
from invsolve.testing.checks import checks
from invsolve.testing.distances import compare
from invsolve.testing.exact import Exact, exact_posterior
from invsolve.testing.layouts import check_layout
from invsolve.testing.noises import check_noise
from invsolve.testing.operators import check_operator
from invsolve.testing.policies import check_policy
from invsolve.testing.priors import check_prior
from invsolve.testing.report import Finding, Report
from invsolve.testing.strategies import check_strategy

__all__ = [
    "Case",
    "Exact",
    "Finding",
    "Report",
    "check_layout",
    "check_noise",
    "check_operator",
    "check_policy",
    "check_prior",
    "check_strategy",
    "checks",
    "compare",
    "exact_posterior",
]
