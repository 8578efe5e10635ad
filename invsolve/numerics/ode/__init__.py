"""Solvers of the probability-flow ODE and its stochastic relatives."""
