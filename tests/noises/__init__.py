"""Noises: their densities, and the posteriors that strategies draw with them."""
