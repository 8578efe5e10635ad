"""Priors in closed form, exact at every noise level."""
