"""The conformance kit: what every operator, prior and strategy must hold, with figures; also for plugins of your own."""

from invsolve.testing.operators import check_operator
from invsolve.testing.priors import check_prior
from invsolve.testing.report import Finding, Report
from invsolve.testing.strategies import check_strategy, exact_posterior

__all__ = ["Finding", "Report", "check_operator", "check_prior", "check_strategy", "exact_posterior"]
